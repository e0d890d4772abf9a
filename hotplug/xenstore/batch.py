"""Requests of one caller and their replies."""

from __future__ import annotations

from _thread import allocate_lock

from hotplug.xenstore.protocol import ABORT, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Sequence
    from typing import TypeAlias

    Outgoing: TypeAlias = tuple[int, bytes]  # message type and payload
    Rider: TypeAlias = "tuple[Batch, Sequence[Outgoing], int]"  # the number is a transaction's


class Batch:
    """Compared by identity."""

    __slots__ = ("ahead", "first", "is_wanted", "missing", "refusals", "replies", "wake")

    def __init__(self, count: int) -> None:
        self.replies: list[bytes | None] = [None] * count  # None where xenstored refused
        self.refusals: dict[int, int] = {}  # index to errno
        self.first = 0  # what the req_id of the first one is, or would be
        self.missing = 0  # how many of those that were sent have no reply yet
        self.ahead: list[Batch] = []  # of others, sent in front of it in one piece with it
        self.is_wanted = True  # False: its owner has given it up
        self.wake: LockType | None = None  # held while the owner sleeps


def packed(req_id: int, requests: Sequence[Outgoing], transaction: int) -> list[bytes]:
    """What to send, the first one with this number."""
    parts = []
    for kind, payload in requests:
        parts.append(HEADER.pack(kind, req_id, transaction, len(payload)))
        parts.append(payload)
        req_id += 1
    return parts


class Riders:
    """Requests that are sent with the next ones, whosever these are."""

    __slots__ = ("_mutex", "_waiting")

    def __init__(self) -> None:
        self._mutex = allocate_lock()
        self._waiting: list[Rider] = []

    def add(self, batch: Batch, requests: Sequence[Outgoing], transaction: int) -> None:
        batch.missing = len(requests)  # so that whoever waits does, or hears of the end
        with self._mutex:
            if batch.is_wanted:
                self._waiting.append((batch, requests, transaction))

    def abort(self, number: bytes) -> None:
        """End a transaction that came too late for whoever asked for it, and waits no more."""
        self.add(Batch(1), (ABORT,), int(number.rstrip(b"\0")))

    def discard(self, batch: Batch) -> bool:
        """Have them sent by nobody; False if they were already."""
        with self._mutex:
            before = len(self._waiting)
            self._waiting = [rider for rider in self._waiting if rider[0] is not batch]
            return len(self._waiting) < before

    def drop(self, batch: Batch) -> None:
        """Its owner does not wait any more: never send it (again)."""
        with self._mutex:
            batch.is_wanted = False
            self._waiting = [rider for rider in self._waiting if rider[0] is not batch]

    def take(self) -> Sequence[Rider]:
        if not self._waiting:  # as good as always
            return ()
        with self._mutex:
            taken, self._waiting = self._waiting, []
        return taken
