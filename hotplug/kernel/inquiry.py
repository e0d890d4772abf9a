"""Asks loop devices what they are bound to, and does not wait for those that never answer.

LOOP_GET_STATUS64 asks the backing file's file system for the inode's attributes (Linux 5.8,
loop_get_status calls vfs_getattr without its mutex held): on a dead FUSE, NFS or CIFS mount it
hangs, and only SIGKILL ends that. So a thread asks them, one after the other. If it stops making
progress, each of the rest gets a thread of its own: one dead file system may carry hundreds of
devices, and they shall not take their time one after the other.

A thread that hangs is left behind; it costs a stack until the file system comes back, and its
device is not asked again before.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATIENCE = 1.0  # seconds without progress; a healthy device answers within a millisecond
LIMIT = 5.0  # seconds for slow answers one after the other; 4,000 healthy ones take 0.1

T = TypeVar("T")


class Inquiry(Generic[T]):
    """The devices that owe us an answer. One caller at a time."""

    __slots__ = ("_ask", "_hanging", "_patience")

    def __init__(self, ask: Callable[[int], T], patience: float = PATIENCE) -> None:
        self._ask = ask
        self._patience = patience
        self._hanging: dict[int, threading.Thread] = {}

    def ask(self, numbers: Iterable[int]) -> dict[int, T]:
        """The answers of those that answer, in a bounded time."""
        self._hanging = {n: thread for n, thread in self._hanging.items() if thread.is_alive()}
        first = Batch(self._ask, [n for n in numbers if n not in self._hanging])
        first.wait(self._patience)
        rest = [Batch(self._ask, [number]) for number in first.give_up()]
        until = time.monotonic() + self._patience
        answers: dict[int, T] = {}
        for batch in (first, *rest):
            batch.over.wait(max(0.0, until - time.monotonic()) if rest else 0.0)
            if (number := batch.current) is not None:
                self._hanging[number] = batch.thread
            answers |= batch.answers
        return answers

    def wait_for(self, numbers: Iterable[int], seconds: float) -> None:
        """Give devices that hang the time to answer at last."""
        until = time.monotonic() + seconds
        for thread in [self._hanging[number] for number in numbers if number in self._hanging]:
            thread.join(max(0.0, until - time.monotonic()))


class Batch(Generic[T]):
    """Devices that a thread asks one after the other."""

    __slots__ = ("_ask", "_done", "_todo", "answers", "current", "over", "thread")

    def __init__(self, ask: Callable[[int], T], numbers: Iterable[int]) -> None:
        self._ask = ask
        self._todo = deque(numbers)
        self._done = 0
        self.answers: dict[int, T] = {}
        self.current: int | None = None  # the device that is being asked
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="loop-inquiry", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while (number := self._next()) is not None:
                self.current = number
                # ENOTCONN, ESTALE, EIO: a file system that says so is as dead as a silent one
                with contextlib.suppress(OSError):
                    self.answers[number] = self._ask(number)
                self._done += 1
        finally:
            self.current = None
            self.over.set()

    def _next(self) -> int | None:
        try:
            return self._todo.popleft()
        except IndexError:
            return None

    def wait(self, patience: float) -> None:
        """Wait for the end, or until one device takes too long, or all of them together."""
        done, since = 0, time.monotonic()
        until = since + LIMIT
        while not self.over.wait(patience / 8):
            now = time.monotonic()
            if done != self._done:
                done, since = self._done, now
            if now - since >= patience or now >= until:
                return

    def give_up(self) -> list[int]:
        """Ask no more; the devices that were not asked."""
        return list(iter(self._next, None))
