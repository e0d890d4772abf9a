"""Failures that we expect and can explain.

``str(error)`` is a sentence for the administrator. It goes to stderr, to the log and, where
there is a backend, to ``hotplug-error`` unchanged.
"""

from __future__ import annotations

import errno
import os


class HotplugError(Exception):
    """Base of every failure we expect and can explain."""

    exit_code = 1
    status: str | None = "error"  # the word for hotplug-status; None leaves the store alone


def error_text(error: Exception) -> str:
    """The sentence of a failure; for what the system refused without its number."""
    if not isinstance(error, OSError):
        return str(error)
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


class DeviceBusyError(HotplugError):
    """The disk is in use in a way that forbids this use."""

    status = "busy"


class UsageError(HotplugError):
    """The call names no backend of ours or no action, and then the stock scripts write nothing."""

    status = None


class BackendGoneError(HotplugError):
    """The backend was deleted while we worked; writing to it would bring it back."""

    status = None


class MissingKeyError(HotplugError):
    """A key that the toolstack must write is absent or empty."""


class OutdatedError(HotplugError):
    """What had been read of a backend ahead is not so any more: undo, read it and do it again."""


class LockTimeoutError(HotplugError):
    """Somebody else held a lock for longer than this event may wait."""


class DeadlineError(HotplugError):
    """The event ran out of time."""


class AbandonedError(HotplugError):
    """Nobody waits for this event any more; undo and say nothing."""

    status = None


class ToolError(HotplugError):
    """A program that we ran failed."""


class RestoreError(HotplugError):
    """A guest cannot be restored; ``number`` is the errno that the toolstack is told."""

    def __init__(self, text: str, number: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.number = number


class SaveError(HotplugError):
    """A guest cannot be saved; ``number`` is the errno that the toolstack is told."""

    def __init__(self, text: str, number: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.number = number


class ConfigError(HotplugError):
    """The configuration file cannot be used."""

    status = None
