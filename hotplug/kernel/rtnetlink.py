"""Requests to the kernel's rtnetlink.

The messages are pyroute2's (rtnetlink_messages.py) but for those about links, of which every event
of a card has three (link_messages.py). The socket is ours: pyroute2's IPRoute (0.9) keeps an event
loop and a socket for each thread that asks, and takes more than twice the time.

- A request with NLM_F_ACK is answered before send() returns: rtnetlink works in the caller's
  context, under one lock for the whole network namespace (RTNL). So an answer is there at once, or
  the kernel itself hangs.
- NETLINK_GET_STRICT_CHK (Linux 4.20) makes dumps honour an interface index in the request.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

from hotplug.kernel.rtnetlink_abi import (
    ERROR_CODE,
    HEADER,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BUFFER = 1 << 16  # bytes; the kernel's dumps come in pieces of at most 32 KiB
SECONDS = 5  # for an answer; see above
TIMEVAL = struct.Struct("@ll")
DUMPS = 16  # tries at one that the kernel says was interrupted by a change


class Rtnetlink:
    """A socket for requests, for several threads: one asks at a time."""

    __slots__ = ("_mutex", "_sequence", "_socket")

    def __init__(self) -> None:
        self._socket = connect()
        # The kernel's own clock: Python's would be a poll() before each call.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, TIMEVAL.pack(SECONDS, 0))
        self._mutex = threading.Lock()
        self._sequence = itertools.count(1)

    def exchange(self, kind: int, body: bytes, flags: int = NLM_F_ACK) -> list[bytes] | None:
        """Send a request, return the messages that answer it, headers and all.

        None for a dump that a change has interrupted.
        """
        with self._mutex:
            sequence = next(self._sequence)
            length = HEADER.size + len(body)
            self._socket.send(HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + body)
            return self._answers(sequence)

    def dump(
        self, kind: int, fields: Mapping[str, Any], attributes: Sequence[tuple[str, Any]] = ()
    ) -> list[Any]:
        """All of a kind, in pyroute2's terms."""
        from hotplug.kernel import rtnetlink_messages as messages  # noqa: PLC0415 - takes 40 ms

        found = self.dump_raw(kind, messages.encode(kind, fields, attributes))
        return list(map(messages.decode, found))

    def dump_raw(self, kind: int, body: bytes) -> list[bytes]:
        """All of a kind; asked again if something changed while the kernel told."""
        for _ in range(DUMPS):
            found = self.exchange(kind, body, NLM_F_DUMP)
            if found is not None:
                return found
        raise OSError(errno.EAGAIN, "the kernel's list of network devices does not rest")

    def ask(
        self,
        kind: int,
        fields: Mapping[str, Any],
        attributes: Sequence[tuple[str, Any]] = (),
        flags: int = 0,
    ) -> list[Any]:
        """A request in pyroute2's terms: what was answered before the acknowledgement."""
        from hotplug.kernel import rtnetlink_messages as messages  # noqa: PLC0415 - takes 40 ms

        body = messages.encode(kind, fields, attributes)
        return list(map(messages.decode, self.exchange(kind, body, NLM_F_ACK | flags) or []))

    def _answers(self, sequence: int) -> list[bytes] | None:
        """The messages that answer a request; None if a dump was interrupted."""
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, answered, message in split(self._receive()):
                if answered != sequence:
                    continue  # of a request that was given up
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    code = int.from_bytes(message[ERROR_CODE], sys.byteorder, signed=True)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found if whole else None
                found.append(message)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(BUFFER)
        except BlockingIOError:
            text = f"the kernel has not answered for {SECONDS} s"
            raise TimeoutError(errno.ETIMEDOUT, text) from None

    def close(self) -> None:
        self._socket.close()


def connect(groups: int = 0) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    connection.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    connection.bind((0, groups))
    return connection


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and bytes of each message in a datagram."""
    start = 0
    while len(data) - start >= HEADER.size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[start : start + length]
        start += length + -length % 4
