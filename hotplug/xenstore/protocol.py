"""The wire protocol of xenstore, without I/O.

The truth is Xen's docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h; names and order are
theirs. A message is a header of four native 32-bit numbers and up to 4096 bytes. Replies carry the
``req_id`` of their request and may come in any order; watch events come unasked.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from hotplug.xenstore.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")
    Parser: TypeAlias = Generator[int, bytes, T]  # yields how many bytes it wants, is sent them

HEADER = struct.Struct("=IIII")  # struct xsd_sockmsg: type, req_id, tx_id, len
PAYLOAD_MAX = 4096  # bytes, XENSTORE_PAYLOAD_MAX; xenstored drops who sends more
REQUEST_IDS = 1 << 32
NO_TRANSACTION = 0

# enum xsd_sockmsg_type: those that this library knows.
CONTROL = 0
DIRECTORY = 1
READ = 2
GET_PERMS = 3
WATCH = 4
UNWATCH = 5
TRANSACTION_START = 6
TRANSACTION_END = 7
INTRODUCE = 8
RELEASE = 9
GET_DOMAIN_PATH = 10
WRITE = 11
MKDIR = 12
RM = 13
SET_PERMS = 14
WATCH_EVENT = 15
ERROR = 16
IS_DOMAIN_INTRODUCED = 17
RESUME = 18
SET_TARGET = 19
RESET_WATCHES = 21
DIRECTORY_PART = 22

# What a request does, for "xenstore refused to ..."
VERBS = {
    CONTROL: "control the daemon",
    DIRECTORY: "list",
    READ: "read",
    GET_PERMS: "read the permissions",
    WATCH: "watch",
    UNWATCH: "unwatch",
    TRANSACTION_START: "start a transaction",
    TRANSACTION_END: "end the transaction",
    INTRODUCE: "introduce the domain",
    RELEASE: "release the domain",
    GET_DOMAIN_PATH: "tell the domain's path",
    WRITE: "write",
    MKDIR: "create",
    RM: "remove",
    SET_PERMS: "set the permissions",
    IS_DOMAIN_INTRODUCED: "tell whether the domain is introduced",
    RESUME: "resume the domain",
    SET_TARGET: "set the target",
    RESET_WATCHES: "reset the watches",
    DIRECTORY_PART: "list a part",
}

START = (TRANSACTION_START, b"\0")
COMMIT = (TRANSACTION_END, b"T\0")
ABORT = (TRANSACTION_END, b"F\0")


@dataclass(frozen=True, slots=True)
class Request:
    """Any request about a path. ``body`` is what follows the path and its NUL."""

    kind: int
    path: str
    body: bytes = b""


# Errors travel by name, so that both sides may number them differently.
ERRNO = {name.encode(): number for number, name in errno.errorcode.items()}


def error_number(payload: bytes) -> int:
    """The errno that an ERROR message names; EPROTO for a name that this system does not know."""
    return ERRNO.get(payload.rstrip(b"\0"), errno.EPROTO)


def messages(deliver: Callable[[int, int, bytes], None]) -> Parser[None]:
    """Parse messages for ever; ``deliver`` is given type, req_id and payload of each."""
    size = HEADER.size
    unpack = HEADER.unpack
    while True:
        kind, req_id, _, length = unpack((yield size))
        if length > PAYLOAD_MAX:
            raise ProtocolError(f"a message of {length} bytes, the limit is {PAYLOAD_MAX}")
        deliver(kind, req_id, (yield length))


class Inbox:
    """Gives a parser the pieces it wants out of the pieces that arrive."""

    __slots__ = ("_parser", "_rest", "_want")

    def __init__(self, parser: Parser[None]) -> None:
        self._parser = parser
        self._want = next(parser)
        self._rest = b""

    @property
    def missing(self) -> int:
        """How many bytes must come before the parser can go on; always more than 0."""
        return self._want - len(self._rest)

    def feed(self, data: bytes) -> None:
        """Take what arrived, however it was cut."""
        if self._rest:
            data = self._rest + data
        send = self._parser.send
        want = self._want
        start = 0
        while (stop := start + want) <= len(data):
            want = send(data[start:stop])
            start = stop
        self._want = want
        self._rest = data[start:]


def watch_event(payload: bytes) -> tuple[str, bytes]:
    """Path and token of a WATCH_EVENT."""
    fields = payload.split(b"\0")
    if len(fields) < 3:
        raise ProtocolError(f"a watch event without path and token: {payload[:80]!r}")
    return fields[0].decode("utf-8", "surrogateescape"), fields[1]


def names(payload: bytes) -> list[str]:
    """The children that a DIRECTORY reply lists."""
    return payload.decode("utf-8", "surrogateescape").split("\0")[:-1]


def directory_part(payload: bytes) -> tuple[bytes, bytes]:
    """Generation and names of a DIRECTORY_PART reply.

    The names are bytes to be joined with those of the other parts. The last part ends with an
    empty name.
    """
    generation, found, listed = payload.partition(b"\0")
    if not found:
        raise ProtocolError(f"a directory part without a generation: {payload[:80]!r}")
    return generation, listed


@dataclass(frozen=True, slots=True)
class Permission:
    """What a domain may do with a node.

    The first of a node's permissions names its owner, who may do everything, and says what every
    domain may do that has no permission of its own.
    """

    domid: int
    read: bool = False
    write: bool = False


LETTERS = {(False, False): "n", (True, False): "r", (False, True): "w", (True, True): "b"}
ACCESS = {letter: access for access, letter in LETTERS.items()}


def pack_permissions(permissions: Iterable[Permission]) -> bytes:
    """As SET_PERMS sends them, e.g. ``n0`` and ``r5``, each with a NUL."""
    return b"".join(
        b"%s%d\0" % (LETTERS[one.read, one.write].encode(), one.domid) for one in permissions
    )


def unpack_permissions(payload: bytes) -> tuple[Permission, ...]:
    """What GET_PERMS answers."""
    found = []
    for text in names(payload):
        access = ACCESS.get(text[:1])
        if access is None or not text[1:].isdecimal():
            raise ProtocolError(f"not a permission: {text!r}")
        found.append(Permission(int(text[1:]), *access))
    return tuple(found)
