"""Programs of others: run one, and say in a sentence why it failed.

Every run is bounded by a deadline. On the way back the event's own may be over, or nobody may
wait any more; then it is a Grace, which leaves enough time to undo.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from typing import TYPE_CHECKING

from hotplug.errors import DeadlineError, HotplugError, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from hotplug.ports import Deadline, Finished, Host

GRACE = 10.0  # seconds for the way back, however late it begins


class Grace:
    """A deadline for undoing: what the event has left, but never less than GRACE.

    The clock starts at its first use, and one Grace serves all that is undone.
    """

    __slots__ = ("_deadline", "_end")

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._end: float | None = None

    def remaining(self) -> float:
        now = time.monotonic()
        if self._end is None:
            self._end = now + max(GRACE, self._deadline.remaining())
        return max(0.0, self._end - now)

    def check(self) -> None:
        if not self.remaining():
            raise DeadlineError("there was no time left to undo what had been done")

    def stage(self, what: str) -> None:
        """What the event was doing when it failed is the better text."""

    def hold(self, let_go: Callable[[], object]) -> None:
        """Nobody takes the way back from us."""

    def committing(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def run(
    host: Host,
    deadline: Deadline,
    argv: Sequence[str],
    *,
    missing: str,
    variables: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end; HotplugError with ``missing`` if it is not installed."""
    deadline.stage(f"running {' '.join(argv)}")
    try:
        return host.programs.run(argv, deadline, variables)
    except FileNotFoundError as error:
        raise HotplugError(missing) from error
    except OSError as error:
        raise HotplugError(f"{argv[0]} cannot be run: {error.strerror}") from error
    except ValueError as error:  # a NUL: xenstore's values may have one, arguments may not
        raise HotplugError(f"{argv[0]} cannot be run: {error}") from error


def failure(what: str, finished: Finished) -> ToolError:
    """``what`` went wrong, and what the program said about it."""
    return ToolError(f"{what}: {reason(finished)}")


def failed(argv: Sequence[str], finished: Finished) -> ToolError:
    """The stock scripts' words for a command that must not fail."""
    return failure(f"{' '.join(argv)} failed", finished)


def reason(finished: Finished) -> str:
    """How a program ended, and the last line of what it said."""
    status = finished.status
    ended = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
    last = os.fsdecode(finished.stderr).strip().rpartition("\n")[2].strip()
    return f"{last} ({ended})" if last else ended


def lock_name(prefix: str, what: str) -> str:
    """A lock for one of many things. Two of them may share one, there are 1024 a prefix."""
    return f"{prefix}-{zlib.crc32(os.fsencode(what)) & 0x3FF:03x}"


def undo_quietly(work: Callable[[], None]) -> None:
    """Undo something on the way out of a failure, whose text is the one to keep.

    What cannot be undone now stays in the journal, and the next run for the device tries again.
    If the store is gone, so is everything: that must be seen.
    """
    try:
        work()
    except ConnectionError:
        raise
    except (HotplugError, OSError):
        return
