"""Requests to the kernel's rtnetlink.

The messages are pyroute2's (rtnetlink_messages.py) but for those about links, of which every event
of a card has three (link_messages.py). The socket is ours: pyroute2's IPRoute (0.9) keeps an event
loop and a socket for each thread that asks, and takes more than twice the time.

- A datagram may have several requests. They are served in order before send() returns: rtnetlink
  works in the caller's context, under one lock for the whole network namespace (RTNL). A refused
  one keeps none of those behind it. So answers are there at once, or the kernel itself hangs.
- Who is refused is told, who succeeds only if he asked for it (NLM_F_ACK). Answers have the order
  of the requests, so that of the last one says that all are there.
- But for a dump's: what fits into 32 KiB is told in its turn, the rest as answers are read. Before
  Linux 6.9 that is also the end, NLMSG_DONE, and of a dump of addresses the IPv6 ones, if there are
  IPv4 ones. As long as one is not at its end, another is refused (EBUSY).
- NETLINK_GET_STRICT_CHK (Linux 4.20) makes dumps honour an interface index in the request.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

from hotplug.kernel import genetlink
from hotplug.kernel.rtnetlink_abi import (
    HEADER,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    SOL_NETLINK,
)
from hotplug.kernel.rtnetlink_request import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

BATCH = 64  # requests in a datagram: the answers to more might not fit into the socket's buffer
DUMPS = 16  # tries at one that the kernel says was interrupted by a change


class Rtnetlink:
    """A socket for requests, for several threads: one asks at a time."""

    __slots__ = ("_mutex", "_sequence", "_socket")

    def __init__(self) -> None:
        self._socket = connect_impatiently()
        self._mutex = threading.Lock()
        self._sequence = itertools.count(1)

    def exchange_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Send requests, at most one dump among them, and wait for what is said to each.

        In one datagram, if they are not very many. All of them are tried.
        """
        with self._mutex:
            try:
                return [
                    answer
                    for start in range(0, len(requests), BATCH)
                    for answer in self._exchange(requests[start : start + BATCH])
                ]
            except BaseException:
                self._start_over()
                raise

    def _start_over(self) -> None:
        """Another socket, after requests that were given up.

        The kernel tells nothing to one whose buffer ran over (ENOBUFS) until that was read to its
        end, and refuses it another dump. The next to ask has nothing to do with that.
        """
        with contextlib.suppress(OSError):
            former, self._socket = self._socket, connect_impatiently()
            former.close()

    def exchange(self, request: Request) -> Answer:
        """One request; OSError if it was refused."""
        (answer,) = self.exchange_all((request,))
        if answer.error is not None:
            raise answer.error
        return answer

    def _exchange(self, requests: Sequence[Request]) -> Iterable[Answer]:
        answers: dict[int, Answer] = {}
        awaited: set[int] = set()
        datagram: list[bytes] = []
        last = max((n for n, request in enumerate(requests) if not request.is_dump), default=-1)
        for number, request in enumerate(requests):
            sequence = next(self._sequence)
            answers[sequence] = Answer(request)
            if request.is_dump or number == last:
                awaited.add(sequence)
            ack = NLM_F_ACK if number == last and not request.asks else 0
            datagram.append(packed(request, NLM_F_REQUEST | ack, sequence))
        self._socket.send(b"".join(datagram))
        self._collect(answers, awaited)
        return answers.values()

    def _collect(self, answers: Mapping[int, Answer], awaited: set[int]) -> None:
        """Read until those that are awaited are whole."""
        for datagram in itertools.count():
            if not awaited:
                return
            for kind, flags, sequence, message in split(genetlink.receive(self._socket)):
                answer = answers.get(sequence)  # None: of requests that were given up
                if answer is not None and answer.take(kind, flags, message, datagram):
                    awaited.discard(sequence)

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
            answer = self.exchange(Request(kind, body, NLM_F_DUMP))
            if answer.whole:
                return answer.messages
        raise OSError(errno.EAGAIN, "the kernel's list of network devices does not rest")

    def close(self) -> None:
        self._socket.close()


def connect_impatiently() -> socket.socket:
    connection = connect()
    genetlink.limit(connection)
    return connection


def connect(groups: int = 0) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    connection.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    connection.bind((0, groups))
    return connection


def packed(request: Request, flags: int, sequence: int) -> bytes:
    length = HEADER.size + len(request.body)
    header = HEADER.pack(length, request.kind, flags | request.flags, sequence, 0)
    return header + request.body + bytes(-length % 4)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and bytes of each message in a datagram."""
    start = 0
    while len(data) - start >= HEADER.size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[start : start + length]
        start += length + -length % 4
