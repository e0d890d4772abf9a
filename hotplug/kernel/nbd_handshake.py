"""The NBD handshake, without I/O: what a client says and how it reads the answers.

A generator that yields bytes to be sent, or how many bytes it wants, and is sent those. It ends
where the transmission phase begins and never takes a byte too many: what follows is the kernel's.

- NBD_OPT_GO is asked first, because its refusal carries a reason. A server that does not know it
  gets NBD_OPT_EXPORT_NAME, which a server can refuse only by hanging up.
- The oldstyle handshake (before nbd 2.9.17, 2010) has no export names and is refused.
- TLS is not spoken. The kernel could not decrypt; kTLS is not wired to nbd.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from hotplug.kernel import nbd_abi as abi

if TYPE_CHECKING:
    from struct import Struct

T = TypeVar("T")
Dialogue: TypeAlias = Generator[int | bytes, bytes, T]

MAX_REPLY = 65536  # bytes; the specification's longest strings are 4096, an error text is one
MAX_REPLIES = 64  # for one option; a server sends one per kind of information, there are five
MAX_SIZE = 1 << 63  # bytes; the kernel's loff_t is signed
DEFAULT_BLOCK_SIZE = 512  # bytes; the specification lets a silent server be asked for 1
MAX_BLOCK_SIZE = 4096  # bytes; the kernel refuses more than a page

REFUSALS = {
    abi.NBD_REP_ERR_POLICY: "the server's policy forbids it",
    abi.NBD_REP_ERR_INVALID: "the server calls the request invalid",
    abi.NBD_REP_ERR_PLATFORM: "the server's platform cannot do it",
    abi.NBD_REP_ERR_TLS_REQD: "the server insists on TLS, which the kernel's client cannot speak",
    abi.NBD_REP_ERR_UNKNOWN: "the server has no such export",
    abi.NBD_REP_ERR_SHUTDOWN: "the server is shutting down",
    abi.NBD_REP_ERR_BLOCK_SIZE_REQD: "the server insists on block sizes of its own",
}


class HandshakeError(ValueError):
    """The server refused, or is no NBD server."""


class Agreed(NamedTuple):
    """An export as the server describes it."""

    size: int
    flags: int
    block_size: int = DEFAULT_BLOCK_SIZE


def handshake(export: bytes) -> Dialogue[Agreed]:
    """Ask for an export by name and read what it is like."""
    greeting = yield 16
    if not greeting.startswith(abi.NBD_MAGIC):
        raise HandshakeError("this is no NBD server")
    if greeting.endswith(abi.NBD_CLISERV_MAGIC):
        raise HandshakeError("the server speaks only the oldstyle handshake, without export names")
    if not greeting.endswith(abi.NBD_OPTS_MAGIC):
        raise HandshakeError("the server speaks an unknown kind of NBD")
    (flags,) = abi.HANDSHAKE_FLAGS.unpack((yield abi.HANDSHAKE_FLAGS.size))
    flags &= abi.NBD_FLAG_FIXED_NEWSTYLE | abi.NBD_FLAG_NO_ZEROES
    yield abi.CLIENT_FLAGS.pack(flags)
    agreed = None
    if flags & abi.NBD_FLAG_FIXED_NEWSTYLE:
        agreed = yield from go(export)
    if agreed is None:
        agreed = yield from export_name(export, zeroes=not flags & abi.NBD_FLAG_NO_ZEROES)
    return checked(agreed)


def go(export: bytes) -> Dialogue[Agreed | None]:
    """NBD_OPT_GO; None if the server does not know it."""
    name = len(export).to_bytes(4, "big") + export
    wishes = b"\0\1" + abi.INFO_TYPE.pack(abi.NBD_INFO_BLOCK_SIZE)  # one, named
    yield option(abi.NBD_OPT_GO, name + wishes)
    agreed = None
    block_size = DEFAULT_BLOCK_SIZE
    for _ in range(MAX_REPLIES):
        type_, body = yield from reply(abi.NBD_OPT_GO)
        if type_ == abi.NBD_REP_ACK:
            if agreed is None:
                raise HandshakeError("the server did not say how large the export is")
            return agreed._replace(block_size=block_size)
        if type_ == abi.NBD_REP_ERR_UNSUP:
            return None
        if type_ & abi.NBD_REP_FLAG_ERROR:
            raise refusal(type_, body)
        if type_ == abi.NBD_REP_INFO and body[:2] == abi.INFO_TYPE.pack(abi.NBD_INFO_EXPORT):
            _, size, flags = unpack(abi.INFO_EXPORT, body)
            agreed = Agreed(size, flags)
        if type_ == abi.NBD_REP_INFO and body[:2] == abi.INFO_TYPE.pack(abi.NBD_INFO_BLOCK_SIZE):
            _, minimum, _, _ = unpack(abi.INFO_BLOCK_SIZE, body)
            block_size = max(minimum, DEFAULT_BLOCK_SIZE)
    raise HandshakeError(f"the server sent {MAX_REPLIES} replies to one question")


def export_name(export: bytes, *, zeroes: bool) -> Dialogue[Agreed]:
    """NBD_OPT_EXPORT_NAME: a server that has no such export hangs up."""
    yield option(abi.NBD_OPT_EXPORT_NAME, export)
    size, flags = abi.EXPORT_NAME_REPLY.unpack((yield abi.EXPORT_NAME_REPLY.size))
    if zeroes:
        yield abi.EXPORT_NAME_ZEROES
    return Agreed(size, flags)


def option(number: int, data: bytes) -> bytes:
    return abi.OPTION_HEADER.pack(abi.NBD_OPTS_MAGIC, number, len(data)) + data


def reply(number: int) -> Dialogue[tuple[int, bytes]]:
    """One reply to an option: its type and its data."""
    header = yield abi.REPLY_HEADER.size
    magic, answered, type_, length = abi.REPLY_HEADER.unpack(header)
    if magic != abi.NBD_REP_MAGIC or answered != number:
        raise HandshakeError(f"the server's answer does not belong to option {number}")
    if length > MAX_REPLY:
        raise HandshakeError(f"the server's answer is {length} bytes, the limit is {MAX_REPLY}")
    return type_, ((yield length) if length else b"")


def refusal(type_: int, body: bytes) -> HandshakeError:
    reason = REFUSALS.get(type_, f"the server refused with error {type_ & 0x7FFFFFFF}")
    message = body.decode(errors="replace").strip()
    return HandshakeError(f"{reason} ({message})" if message else reason)


def unpack(layout: Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise HandshakeError(f"the server's information has {len(body)} bytes, not {layout.size}")
    return layout.unpack(body)


def checked(agreed: Agreed) -> Agreed:
    """Refuse what the kernel would misunderstand."""
    if agreed.size >= MAX_SIZE:
        raise HandshakeError(f"the export is said to have {agreed.size} bytes")
    size = agreed.block_size
    if size > MAX_BLOCK_SIZE or size & (size - 1):
        raise HandshakeError(
            f"the server wants blocks of {size} bytes, the kernel takes at most {MAX_BLOCK_SIZE}"
        )
    return agreed
