"""Generic netlink: messages with attributes to a kernel family that is known by name.

- Everything is in the byte order of the machine, every attribute is padded to 4 bytes.
- A family's number is given out when its module is loaded; "nlctrl" (16) tells it by name and
  answers ENOENT for a family that is not there.
- With NLM_F_ACK the last answer to a request is an NLMSG_ERROR, whose code 0 means success.

linux/netlink.h, linux/genetlink.h.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from socket import socket as Socket  # noqa: N812 - the module of that name is imported late

NETLINK_GENERIC = 16
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLA_F_NESTED = 1 << 15
NLA_TYPE_MASK = 0x3FFF

GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1  # u16
CTRL_ATTR_FAMILY_NAME = 2  # string

MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
ERROR = struct.Struct("=i")  # struct nlmsgerr begins with a negative errno
TIMEVAL = struct.Struct("@ll")

MAX_ANSWER = 65536  # bytes; the kernel sends at most 32 KiB at a time
SECONDS = 5  # the kernel answers from within sendto; without an answer something is broken

_sequence = itertools.count(1)


def attribute(type_: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), type_) + data + bytes(-len(data) % 4)


def u32(type_: int, value: int) -> bytes:
    return attribute(type_, struct.pack("=I", value))


def u64(type_: int, value: int) -> bytes:
    return attribute(type_, struct.pack("=Q", value))


def string(type_: int, value: str) -> bytes:
    return attribute(type_, os.fsencode(value) + b"\0")


def nested(type_: int, inner: bytes) -> bytes:
    return attribute(type_ | NLA_F_NESTED, inner)


def attributes(
    data: bytes, wanted: Container[int] | None = None, start: int = 0
) -> dict[int, bytes]:
    """The attributes in a row of bytes, by type; of the fifty that a link has, few are wanted."""
    found = {}
    unpack, last = ATTRIBUTE.unpack_from, len(data) - ATTRIBUTE.size
    while start <= last:
        length, type_ = unpack(data, start)
        if length < ATTRIBUTE.size:
            break
        type_ &= NLA_TYPE_MASK
        if wanted is None or type_ in wanted:
            found[type_] = data[start + ATTRIBUTE.size : start + length]
        start += length + 3 & ~3
    return found


def request(family: int, sequence: int, command: int, version: int, body: bytes) -> bytes:
    length = MESSAGE.size + GENERIC.size + len(body)
    header = MESSAGE.pack(length, family, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)
    return header + GENERIC.pack(command, version, 0) + body


def answers(data: bytes, sequence: int) -> Iterator[tuple[int, bytes]]:
    """Type and payload of the messages in a datagram that answer ``sequence``."""
    while len(data) >= MESSAGE.size:
        length, type_, _, answered, _ = MESSAGE.unpack_from(data)
        if length < MESSAGE.size:
            return
        if answered == sequence:
            yield type_, data[MESSAGE.size : length]
        data = data[length + -length % 4 :]


def limit(connection: Socket) -> None:
    """Wait for the kernel by its own clock: Python's would be two system calls more each time."""
    import socket  # noqa: PLC0415 - as below

    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, TIMEVAL.pack(SECONDS, 0))


def receive(connection: Socket) -> bytes:
    """A datagram of a connection with a ``limit``."""
    try:
        return connection.recv(MAX_ANSWER)
    except BlockingIOError:
        text = f"the kernel has not answered for {SECONDS} s"
        raise TimeoutError(errno.ETIMEDOUT, text) from None


def call(family: int, command: int, version: int, body: bytes) -> dict[int, bytes]:
    """Send a request and wait for its end. OSError if the kernel refuses."""
    import socket  # noqa: PLC0415 - costs milliseconds, and most disks do not come here

    sequence = next(_sequence)
    found: dict[int, bytes] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as connection:
        limit(connection)
        connection.send(request(family, sequence, command, version, body))
        while True:
            for type_, payload in answers(receive(connection), sequence):
                if type_ == NLMSG_ERROR:
                    (code,) = ERROR.unpack_from(payload)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                found |= attributes(payload[GENERIC.size :])


def family_id(name: str) -> int | None:
    """The number of a family, None if the kernel does not have it."""
    try:
        found = call(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, string(CTRL_ATTR_FAMILY_NAME, name))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return int.from_bytes(found[CTRL_ATTR_FAMILY_ID][:2], sys.byteorder)
