"""NETLINK_NETFILTER: what nf_tables and conntrack are told and asked, apart from its meaning.

- A message is a netlink header, struct nfgenmsg and attributes. Numbers in the attributes are
  big-endian, unlike in those of other kinds of netlink.
- A batch is one transaction: all of it is done or nothing. The kernel works it off within
  sendmsg(), so every answer is there when that returns. It goes on after a refusal, to tell of all
  of them, and then undoes everything (nfnetlink_rcv_batch, net/netfilter/nfnetlink.c).
- What fails only at the end of the batch is told for its first message.
- A kernel without nf_tables, or without conntrack's part of this, says so to a batch by EOPNOTSUPP,
  and to a question by EINVAL (nfnetlink_rcv_msg).

linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hotplug.kernel import genetlink
from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from socket import socket as Socket  # noqa: N812 - the module of that name is imported late

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10  # a refusal comes without a copy of what was refused
NLM_F_DUMP_INTR = 0x10
NLM_F_NONREC = 0x100  # of a delete: not what is in it
NLM_F_DUMP = 0x300  # of a get
NLM_F_CREATE = 0x400  # of a new
NLMSG_DONE = 3
GENERIC = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource; big-endian
MSG_DONTWAIT = 0x40  # linux/socket.h
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
UNANSWERED = (*UNSUPPORTED, errno.EINVAL)
ROW = 100  # messages sent at once, so that the refusals of all fit into the socket's buffer
ATTEMPTS = 10  # of a listing that somebody changes meanwhile


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be done, to be put into a batch or sent alone."""

    subsystem: int
    kind: int  # of the subsystem's messages
    family: int
    body: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A message of the kernel's."""

    kind: int
    flags: int
    sequence: int
    payload: bytes
    port: int = 0  # of whoever asked for it


def be32(type_: int, value: int) -> bytes:
    return attribute(type_, value.to_bytes(4, "big", signed=value < 0))


def packed(message: Message, sequence: int) -> bytes:
    return _packed(
        message.subsystem << 8 | message.kind, message.flags, sequence, message.family, message.body
    )


def _packed(
    kind: int, flags: int, sequence: int, family: int, body: bytes = b"", resource: int = 0
) -> bytes:
    length = genetlink.MESSAGE.size + GENERIC.size + len(body)
    header = genetlink.MESSAGE.pack(length, kind, genetlink.NLM_F_REQUEST | flags, sequence, 0)
    return header + GENERIC.pack(family, 0, resource) + body


def batch(messages: Sequence[Message], first: int) -> bytes:
    """Messages as one transaction, numbered from ``first``; only the last one is acknowledged."""
    *others, last = messages
    last = replace(last, flags=last.flags | genetlink.NLM_F_ACK)
    inner = [packed(message, first + 1 + i) for i, message in enumerate([*others, last])]
    resource = last.subsystem
    begin = _packed(abi.NFNL_MSG_BATCH_BEGIN, 0, first, 0, resource=resource)
    end = _packed(abi.NFNL_MSG_BATCH_END, 0, first + len(messages) + 1, 0, resource=resource)
    return b"".join([begin, *inner, end])


class Channel:
    """A way to ask netfilter, of the network namespace of its first use. For several threads.

    It stays open: to close it waits until the kernel has freed what was deleted, which takes 10 ms
    and more (nft_rcv_nl_event, net/netfilter/nf_tables_api.c).
    """

    __slots__ = ("_mutex", "_sequence", "_socket")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._socket: Socket | None = None
        self._sequence = 0

    @property
    def port(self) -> int:
        """Our address in this network namespace; 0 before the first use."""
        connected = self._socket
        return int(connected.getsockname()[0]) if connected is not None else 0

    def close(self) -> None:
        with self._mutex:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def commit(self, messages: Sequence[Message]) -> dict[int, int]:
        """Do all of it or nothing. Which messages were refused, with errnos; none: it is done."""
        with self._mutex:
            first = self._send(batch(messages, self._sequence), len(messages) + 2)
            answers = dict(errors(self._answers(first)))
        if first in answers:
            raise OSError(answers[first], os.strerror(answers[first]))
        if not answers:
            raise OSError(errno.EIO, "the kernel did not answer a transaction of netfilter")
        return {sequence - first - 1: code for sequence, code in answers.items() if code}

    def tell(self, messages: Sequence[Message]) -> set[int]:
        """Do each by itself. The errnos of those that were refused."""
        refused: set[int] = set()
        for start in range(0, len(messages), ROW):
            row = messages[start : start + ROW]
            with self._mutex:
                data = b"".join(packed(message, self._sequence) for message in row)
                refused |= {code for _, code in errors(self._answers(self._send(data, 1)))}
        return refused

    def look(self, messages: Sequence[Message]) -> list[bytes | None]:
        """The attributes of several things, None of what is not there; all in one round trip."""
        with self._mutex:
            numbered = enumerate(messages, self._sequence)
            data = b"".join(packed(message, sequence) for sequence, message in numbered)
            first = self._send(data, len(messages))
            answers = list(itertools.islice(self._answers(first), len(messages)))
        if len(answers) < len(messages):  # each has one, be it that there is no such thing
            raise OSError(errno.ENOBUFS, "answers of the kernel's about netfilter were lost")
        for _, code in errors(answers):
            if code not in (errno.ENOENT, *UNANSWERED):
                raise OSError(code, os.strerror(code))
        found = {a.sequence: a.payload for a in answers if a.kind != genetlink.NLMSG_ERROR}
        payloads = [found.get(first + i) for i in range(len(messages))]
        return [None if payload is None else payload[GENERIC.size :] for payload in payloads]

    def dump(self, message: Message) -> list[bytes]:
        """The attributes of all that there is. OSError if the kernel refuses."""
        for _ in range(ATTEMPTS):
            with self._mutex:
                found = self._dump(message)
            if found is not None:
                return found
        raise OSError(errno.EINTR, "a listing of netfilter was changed by others again and again")

    def _dump(self, message: Message) -> list[bytes] | None:
        """None if the listing is of before and after a change."""
        found: list[bytes] = []
        whole = True
        listing = replace(message, flags=message.flags | NLM_F_DUMP)
        first = self._send(packed(listing, self._sequence), 1)
        while True:
            for answer in answers_in(genetlink.receive(self._connected)):
                if answer.sequence != first:
                    continue  # of an earlier question, that was given up
                whole = whole and not answer.flags & NLM_F_DUMP_INTR
                if answer.kind in (genetlink.NLMSG_ERROR, NLMSG_DONE):
                    (code,) = genetlink.ERROR.unpack_from(answer.payload)
                    if code:
                        number = errno.EOPNOTSUPP if -code in UNANSWERED else -code
                        raise OSError(number, os.strerror(number))
                    return found if whole else None
                found.append(answer.payload[GENERIC.size :])

    def _answers(self, first: int) -> Iterator[Answer]:
        """What was answered within sendmsg() to what has this number and later ones."""
        while True:
            try:
                data = self._connected.recv(genetlink.MAX_ANSWER, MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from (answer for answer in answers_in(data) if answer.sequence >= first)

    @property
    def _connected(self) -> Socket:
        if self._socket is None:
            self._socket = connection()
        return self._socket

    def _send(self, data: bytes, numbers: int) -> int:
        """Send what has so many sequence numbers; the first of them."""
        first = self._sequence
        self._sequence += numbers
        self._connected.send(data)
        return first


def each(data: bytes) -> Iterator[bytes]:
    """The contents of attributes in a row, whatever their types."""
    while len(data) >= genetlink.ATTRIBUTE.size:
        length, _ = genetlink.ATTRIBUTE.unpack_from(data)
        if length < genetlink.ATTRIBUTE.size:
            return
        yield data[genetlink.ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def errors(answers: Iterable[Answer]) -> Iterator[tuple[int, int]]:
    """Sequence and errno of all that was refused; 0 is an acknowledgement."""
    for answer in answers:
        if answer.kind == genetlink.NLMSG_ERROR:
            (code,) = genetlink.ERROR.unpack_from(answer.payload)
            yield answer.sequence, -code


def answers_in(data: bytes) -> Iterator[Answer]:
    """The messages in a datagram."""
    while len(data) >= genetlink.MESSAGE.size:
        length, kind, flags, sequence, port = genetlink.MESSAGE.unpack_from(data)
        if length < genetlink.MESSAGE.size:
            return
        yield Answer(kind, flags, sequence, data[genetlink.MESSAGE.size : length], port)
        data = data[length + -length % 4 :]


def connection() -> Socket:
    import socket  # noqa: PLC0415 - costs milliseconds, and disks do not come here

    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    try:
        made.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        genetlink.limit(made)
    except BaseException:
        made.close()
        raise
    return made
