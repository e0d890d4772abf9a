"""Wakes a thread when something arrives on a descriptor that others read as well.

Set, it goes off once. Threads that read the descriptor themselves unset it before and set it again
after, which costs them a system call each and spares both a race for the data. Imported only by
programs that run a pump.
"""

from __future__ import annotations

import os
import select
import time


class Alarm:
    """Owns an epoll and an eventfd; not the descriptor."""

    __slots__ = ("_descriptor", "_doorbell", "_epoll", "_pause", "_set")

    def __init__(self, descriptor: int, pause: float) -> None:
        self._descriptor = descriptor
        self._pause = pause  # seconds in which more may arrive, or others read it
        self._set = False
        self._epoll = select.epoll()  # close-on-exec, as every descriptor of Python's
        self._doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._doorbell, select.EPOLLIN)
        self._epoll.register(descriptor, select.EPOLLONESHOT)

    def set(self) -> None:
        if not self._set:
            self._set = True
            self._epoll.modify(self._descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def unset(self) -> None:
        """It may have gone off already: who was woken must ask whether it still is to read."""
        if self._set:
            self._set = False
            # Without ONESHOT a hangup, which cannot be masked, would be reported for ever.
            self._epoll.modify(self._descriptor, select.EPOLLONESHOT)

    def wait(self) -> None:
        """Sleep until it has gone off or rings."""
        self._epoll.poll()
        if self._pause:
            time.sleep(self._pause)

    def went_off(self) -> None:
        """Say that it has to be set again."""
        self._set = False

    def ring(self) -> None:
        """Wake the sleeper, now and whenever it goes to sleep again."""
        os.eventfd_write(self._doorbell, 1)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._doorbell)
