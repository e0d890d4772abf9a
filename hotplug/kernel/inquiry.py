"""Asks loop devices what they are bound to, and does not wait for those that never answer.

LOOP_GET_STATUS64 asks the backing file's file system for the inode's attributes (Linux 5.8,
loop_get_status calls vfs_getattr without its mutex held): on a dead FUSE, NFS or CIFS mount it
hangs, and only SIGKILL ends that. So a thread asks and we wait for as long as it makes progress.
A thread that hangs is left behind; it costs a stack until the file system comes back.

One dead file system may carry hundreds of devices. After the first one that hangs, the others
that seem to lie on the same file system are not asked until it has answered. And slow answers of
many devices must not add up: what LIMIT leaves over is asked the next time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from hotplug.kernel import loop_sysfs
from hotplug.kernel.mounts import finder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATIENCE = 1.0  # seconds without progress; a healthy device answers within a millisecond
LIMIT = 5.0  # seconds for all answers together; 4,000 healthy devices take a tenth of one

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
        answers: dict[int, T] = {}
        until = time.monotonic() + LIMIT
        left = self._answering(numbers)
        while left and time.monotonic() < until:
            batch = Batch(self._ask, left)
            thread = threading.Thread(target=batch.run, name="loop-inquiry", daemon=True)
            thread.start()
            stuck = batch.wait(self._patience, until)
            answers.update(batch.answers)
            if stuck is None:
                break
            self._hanging[left[stuck]] = thread
            left = self._answering(left[stuck + 1 :])
        return answers

    def _answering(self, numbers: Iterable[int]) -> list[int]:
        """Without those that hang or that lie where something hangs."""
        self._hanging = {n: thread for n, thread in self._hanging.items() if thread.is_alive()}
        if not self._hanging:
            return list(numbers)
        find = finder()
        dead = {filesystem(number, find) for number in self._hanging} - {None}
        return [n for n in numbers if n not in self._hanging and filesystem(n, find) not in dead]


class Batch(Generic[T]):
    """Numbers that one thread asks one after the other."""

    __slots__ = ("_ask", "_given_up", "_numbers", "_over", "_position", "answers")

    def __init__(self, ask: Callable[[int], T], numbers: list[int]) -> None:
        self._ask = ask
        self._numbers = numbers
        self._position = 0
        self._given_up = False
        self._over = threading.Event()
        self.answers: dict[int, T] = {}

    def run(self) -> None:
        try:
            for number in self._numbers:
                # ENOTCONN, ESTALE, EIO: a file system that says so is as dead as a silent one
                with contextlib.suppress(OSError):
                    answer = self._ask(number)
                    if self._given_up:
                        return  # the rest is being asked by another thread
                    self.answers[number] = answer
                self._position += 1
        finally:
            self._over.set()

    def wait(self, patience: float, until: float) -> int | None:
        """Wait for the end, or until one number takes too long: its position."""
        position, since = 0, time.monotonic()
        while not self._over.wait(patience / 8):
            now = time.monotonic()
            if position != self._position:
                position, since = self._position, now
            if now - since >= patience or now > until:
                self._given_up = True
                return self._position
        return None


def filesystem(number: int, find: Callable[[str], int | None]) -> int | None:
    """Where the file behind a loop device seems to lie, as ``st_dev``; asks no file system."""
    path = loop_sysfs.backing_name(number)
    return find(path) if path is not None else None
