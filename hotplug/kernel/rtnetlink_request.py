"""A request to rtnetlink, and what is said to it.

linux/netlink.h; net/core/rtnetlink.c: of the four numbers that each kind of object has, the third
asks (RTNL_KIND_GET), and what is asked for by name or index is told in one message.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from hotplug.kernel.rtnetlink_abi import (
    ERROR_CODE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTNL_KIND_GET,
    RTNL_KIND_MASK,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One of the messages of a datagram."""

    kind: int
    body: bytes
    flags: int = 0  # besides NLM_F_REQUEST, and NLM_F_ACK where it is needed

    @property
    def asks(self) -> bool:
        return self.kind & RTNL_KIND_MASK == RTNL_KIND_GET

    @property
    def is_dump(self) -> bool:
        return self.asks and self.flags & NLM_F_DUMP == NLM_F_DUMP


@dataclass(slots=True)
class Answer:
    """What the kernel says to one request."""

    request: Request
    messages: list[bytes] = field(default_factory=list)  # headers and all
    prompt: int = 0  # so many of them were told before the requests behind it were served
    whole: bool = True  # not so of a dump that a change has interrupted
    error: OSError | None = None
    _first: int = -1

    def take(self, kind: int, flags: int, message: bytes, datagram: int) -> bool:
        """A message, and which datagram it was in. Whether it ends the answer."""
        self.whole = self.whole and not flags & NLM_F_DUMP_INTR
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            code = int.from_bytes(message[ERROR_CODE], sys.byteorder, signed=True)
            if code:
                self.error = OSError(-code, os.strerror(-code))
            return True
        if not self.messages:
            self._first = datagram
        self.messages.append(message)
        self.prompt += datagram == self._first
        return self.request.asks and not self.request.is_dump
