"""Requests to the kernel's rtnetlink, in pyroute2's messages: the only module that knows pyroute2.

The messages are pyroute2's, the socket is ours. Its IPRoute (0.9) keeps an event loop and a
socket for each thread that asks, and takes more than twice the time; an event here is two or
three requests, from whichever worker is free.

- A request with NLM_F_ACK is answered before send() returns: rtnetlink works in the caller's
  context, under one lock for the whole network namespace (RTNL). So an answer is there at once, or
  the kernel itself hangs.
- NETLINK_GET_STRICT_CHK (Linux 4.20) makes dumps honour an interface index in the request.

Importing pyroute2 takes 150 ms and 20 MB: its package imports everything that it has. We want
four kinds of messages, so their modules are imported below an empty package of that name, which
takes a fifth of that; and only when the first vif comes.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import itertools
import os
import socket
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

from hotplug.kernel.rtnetlink_abi import (
    ERROR,
    HEADER,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_SETLINK,
    SOL_NETLINK,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PACKAGE = "pyroute2"


def message_classes(*names: str) -> list[Any]:
    """Classes of pyroute2.netlink.rtnl, each from the module of its name."""
    found = importlib.util.find_spec(PACKAGE) if PACKAGE not in sys.modules else None
    if found is not None and found.submodule_search_locations is not None:
        empty = types.ModuleType(PACKAGE)
        empty.__path__ = list(found.submodule_search_locations)
        sys.modules[PACKAGE] = empty
    try:
        modules = [importlib.import_module(f"{PACKAGE}.netlink.rtnl.{name}") for name in names]
    finally:
        if found is not None:
            del sys.modules[PACKAGE]  # who wants all of it, imports all of it
    return [getattr(module, name) for module, name in zip(modules, names, strict=True)]


ifaddrmsg, ifinfmsg, ndmsg, rtmsg = message_classes("ifaddrmsg", "ifinfmsg", "ndmsg", "rtmsg")
MESSAGES: Mapping[int, Any] = {
    **dict.fromkeys((RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK), ifinfmsg),
    **dict.fromkeys((RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR), ifaddrmsg),
    **dict.fromkeys((RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE), rtmsg),
    **dict.fromkeys((RTM_NEWNEIGH, RTM_DELNEIGH), ndmsg),
}
BUFFER = 1 << 16  # bytes; the kernel's dumps come in pieces of at most 32 KiB
SECONDS = 5.0  # for an answer; see above
DUMPS = 16  # tries at one that the kernel says was interrupted by a change


class Rtnetlink:
    """A socket for requests, for several threads: one asks at a time."""

    __slots__ = ("_mutex", "_sequence", "_socket")

    def __init__(self) -> None:
        self._socket = connect()
        self._mutex = threading.Lock()
        self._sequence = itertools.count(1)

    def ask(
        self, kind: int, fields: Mapping[str, Any], attributes: Sequence[tuple[str, Any]] = ()
    ) -> list[Any]:
        """Send a request, return what was answered before the acknowledgement."""
        return self._exchange(kind, NLM_F_REQUEST | NLM_F_ACK, fields, attributes) or []

    def change(
        self,
        kind: int,
        fields: Mapping[str, Any],
        attributes: Sequence[tuple[str, Any]] = (),
        flags: int = 0,
    ) -> None:
        """Send a request that has no answer but success."""
        self._exchange(kind, NLM_F_REQUEST | NLM_F_ACK | flags, fields, attributes)

    def dump(
        self, kind: int, fields: Mapping[str, Any], attributes: Sequence[tuple[str, Any]] = ()
    ) -> list[Any]:
        """All of a kind; asked again if something changed while the kernel told."""
        for _ in range(DUMPS):
            found = self._exchange(kind, NLM_F_REQUEST | NLM_F_DUMP, fields, attributes)
            if found is not None:
                return found
        raise OSError(errno.EAGAIN, "the kernel's list of network devices does not rest")

    def _exchange(
        self,
        kind: int,
        flags: int,
        fields: Mapping[str, Any],
        attributes: Sequence[tuple[str, Any]],
    ) -> list[Any] | None:
        with self._mutex:
            sequence = next(self._sequence)
            self._socket.send(encode(kind, flags, sequence, fields, attributes))
            return self._answers(sequence)

    def _answers(self, sequence: int) -> list[Any] | None:
        """The messages that answer a request; None if a dump was interrupted."""
        found: list[Any] = []
        whole = True
        while True:
            data = self._receive()
            for kind, flags, answered, body in split(data):
                if answered != sequence:
                    continue  # of a request that was given up
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    (code,) = ERROR.unpack_from(body, HEADER.size) if len(body) >= 20 else (0,)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found if whole else None
                found.append(decode(kind, body))

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(BUFFER)
        except TimeoutError:  # the socket's own has no words
            text = f"the kernel has not answered for {SECONDS:g} s"
            raise TimeoutError(errno.ETIMEDOUT, text) from None

    def close(self) -> None:
        self._socket.close()


def connect(groups: int = 0) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    connection.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    connection.settimeout(SECONDS)
    connection.bind((0, groups))
    return connection


def encode(
    kind: int,
    flags: int,
    sequence: int,
    fields: Mapping[str, Any],
    attributes: Sequence[tuple[str, Any]],
) -> bytes:
    """A request; ``fields`` are the header's, ``attributes`` by pyroute2's names."""
    message = MESSAGES[kind]()
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = sequence
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [(name, kernel_value(value)) for name, value in attributes]
    message.encode()
    return bytes(message.data)


def kernel_value(value: Any) -> Any:
    """A link's name may be any bytes, and pyroute2 would have them be UTF-8."""
    return os.fsencode(value) if isinstance(value, str) and not value.isascii() else value


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and bytes of each message in a datagram."""
    while len(data) >= HEADER.size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[:length]
        data = data[length + -length % 4 :]


def decode(kind: int, data: bytes) -> Any:
    """A message of the kernel's, as pyroute2's class for it."""
    message = MESSAGES[kind](data)
    message.decode()
    return message


def changed_links(data: bytes) -> Iterator[Any]:
    """The links in a datagram of the group RTMGRP_LINK that are new or have changed."""
    for kind, _, _, body in split(data):
        if kind == RTM_NEWLINK:
            yield decode(kind, body)
