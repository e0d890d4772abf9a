"""How long an event may take, and whether anybody still waits for it.

A worker that hangs in the kernel cannot be stopped, only given up: whoever notices first (the
clock, the client that went away) takes the event from it, and the worker undoes its work as soon
as it comes back. The one moment at which it cannot be taken is while the store is written.
"""

from __future__ import annotations

import enum
import threading
import time
from typing import TYPE_CHECKING

from hotplug.errors import AbandonedError, DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

GRACE = 0.25  # seconds for a worker that does not hang to say itself what took so long


class Phase(enum.Enum):
    """Who owns the event."""

    RUNNING = enum.auto()
    COMMITTING = enum.auto()
    EXPIRED = enum.auto()
    ABANDONED = enum.auto()
    DONE = enum.auto()


class EventDeadline:
    """A clock and a flag, shared by the worker and by whoever gives it up."""

    __slots__ = (
        "_let_go",
        "_mutex",
        "_phase",
        "committed",
        "end",
        "note",
        "seconds",
        "started",
        "what",
    )

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.what = "waiting for its turn"
        self.note: Callable[[], object] | None = None  # called when that, or the phase, changes
        self.committed = False  # whether this run has written the device to the store
        self._phase = Phase.RUNNING
        self._mutex = threading.Lock()
        self._let_go: Callable[[], object] | None = None

    def started_before(self, seconds: float) -> None:
        """Some of the time was spent before we knew of the event."""
        self.end -= seconds

    def check(self) -> None:
        if self._phase is Phase.ABANDONED:
            raise AbandonedError("the caller went away")
        if self._phase is Phase.EXPIRED or time.monotonic() >= self.end:
            raise self.error()

    def remaining(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def stage(self, what: str) -> None:
        self.what = what
        if self.note is not None:
            self.note()

    def hold(self, let_go: Callable[[], object]) -> None:
        self._let_go = let_go

    def let_go(self) -> None:
        """Take from a worker that hangs what it must not keep. The store may hang as well."""
        if self._let_go is not None:
            self._let_go()

    def error(self) -> DeadlineError:
        return DeadlineError(f"gave up after {self.seconds:.0f} s while {self.what}")

    def committing(self) -> Self:
        return self

    def __enter__(self) -> None:
        with self._mutex:
            self.check()
            self._phase = Phase.COMMITTING
        if self.note is not None:
            self.note()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.committed = kind is None
        self._phase = Phase.RUNNING

    def expire(self) -> bool:
        """Take the event from its worker; False if it is writing just now: ask again soon."""
        return self._take(Phase.EXPIRED)

    def abandon(self) -> bool:
        """The same, because nobody waits for the event."""
        return self._take(Phase.ABANDONED)

    def finish(self) -> bool:
        """The work is done: it cannot be taken any more. False if it was."""
        return self._take(Phase.DONE)

    @property
    def may_be_committed(self) -> bool:
        return self.committed or self._phase is Phase.COMMITTING

    def _take(self, phase: Phase) -> bool:
        with self._mutex:
            if self._phase is not Phase.RUNNING:
                return False
            self._phase = phase
            return True

    @property
    def was_taken(self) -> bool:
        return self._phase in (Phase.EXPIRED, Phase.ABANDONED)
