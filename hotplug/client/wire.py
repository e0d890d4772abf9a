"""The control socket's packets. Imports nothing of ours, and the thin client speaks it in C.

The socket is SOCK_SEQPACKET, so a packet is a message and there is no framing.

A request is a list of NUL-terminated byte strings::

    "xen-hotplug 1"            the protocol's name and version
    VERB                       "run" or "status"
    CWD                        the caller's working directory, "" if it has none
    N  argv[0] .. argv[N-1]    N in decimal
    NAME=VALUE ..              the environment variables of VARIABLES that are set

A reply is one byte, the exit status, followed by text for stderr (or JSON for "status").
"""

from __future__ import annotations

from typing import NamedTuple

MAGIC = b"xen-hotplug 1"
SOCKET = "control"  # below the runtime directory
MAX_PACKET = 65536  # bytes; a xenstore path is at most 3,072 and there are few arguments

# Also in client.c; a test compares the two.
VARIABLES = (
    "XENBUS_PATH",
    "XENBUS_TYPE",
    "XENBUS_BASE_PATH",
    "ACTION",
    "UDEV_CALL",
    "script",
    "vif",
    "INTERFACE",
    "netdev",
    "bridge",
    "ip",
    "dhcp",
    "type_if",
    "vifname",
    "mtu",
)


class Request(NamedTuple):
    """What a client asks for; all bytes, as the process was given them."""

    verb: bytes
    cwd: bytes
    argv: tuple[bytes, ...]
    variables: dict[bytes, bytes]


class WireError(ValueError):
    """A packet that no client of ours sends."""


def pack_request(request: Request) -> bytes:
    """Encode a request."""
    fields = [MAGIC, request.verb, request.cwd, b"%d" % len(request.argv), *request.argv]
    fields += [name + b"=" + value for name, value in request.variables.items()]
    return b"\0".join(fields) + b"\0"


def unpack_request(packet: bytes) -> Request:
    """Decode a request; WireError if it is not one."""
    if not packet.endswith(b"\0"):
        raise WireError("the packet does not end with a NUL")
    fields = packet[:-1].split(b"\0")
    if fields[0] != MAGIC:
        raise WireError(f"unknown protocol {fields[0][:40]!r}, this agent speaks {MAGIC!r}")
    if len(fields) < 4 or not fields[3].isdigit() or len(fields[3]) > 5:
        raise WireError("the number of arguments is missing")
    count = int(fields[3])
    if count < 1 or len(fields) < 4 + count:
        raise WireError(f"{count} arguments announced, {len(fields) - 4} fields follow")
    variables = {}
    for pair in fields[4 + count :]:
        name, found, value = pair.partition(b"=")
        if not found:
            raise WireError(f"{pair[:40]!r} is not NAME=VALUE")
        variables[name] = value
    return Request(fields[1], fields[2], tuple(fields[4 : 4 + count]), variables)


def pack_reply(status: int, text: bytes) -> bytes:
    """Encode a reply."""
    return bytes((status,)) + text[: MAX_PACKET - 1]


def unpack_reply(packet: bytes) -> tuple[int, bytes]:
    """Decode a reply; an empty packet is the end of the connection."""
    if not packet:
        raise WireError("the agent closed the connection without an answer")
    return packet[0], packet[1:]
