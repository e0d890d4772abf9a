"""What was attached for whom, in files that outlive the process.

One file a device below ``<rundir>/journal``, named like ``vbd.5.51712``. Each line is a JSON
object; the last whole one counts, so that a run killed in the middle of a write leaves the line
before it. Whoever works on a device holds a flock on its file, so an entry that is not locked
belongs to a finished run, or to one that died: that is how leaks are found. The file of a device
with nothing attached is removed while the lock is still held; hence the check, as for the stock
scripts' lock files, that the locked file is still the one of that name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING

from hotplug.errors import LockTimeoutError
from hotplug.events import Device
from hotplug.ports import Attachment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from hotplug.ports import Deadline

POLL = 0.02  # seconds between two tries for a claim; only a one-shot beside the agent collides


class FileEntry:
    """A device's line in the journal; owns the open, locked file."""

    __slots__ = ("_attachment", "_fd", "_path")

    def __init__(self, path: str, fd: int, size: int) -> None:
        self._path = path
        self._fd = fd
        self._attachment = last_attachment(os.read(fd, size)) if size else None

    @property
    def attachment(self) -> Attachment | None:
        return self._attachment

    def record(self, attachment: Attachment) -> None:
        content = {"target": attachment.target, "facts": dict(attachment.facts)}
        line = json.dumps(content).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            error.filename = self._path
            raise
        if written < len(line):  # not a failure to the kernel, and it would spoil the next line
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._attachment = attachment

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._attachment = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._attachment is None:
                os.unlink(self._path)
        except FileNotFoundError:
            pass  # somebody emptied the runtime directory
        finally:
            os.close(self._fd)


def last_attachment(content: bytes) -> Attachment | None:
    """The last whole line of a journal file."""
    for line in reversed(content.split(b"\n")[:-1]):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            return Attachment(entry["target"], entry["facts"])
    return None


class FileJournal:
    """The folder of all entries."""

    def __init__(self, rundir: str) -> None:
        self._folder = os.path.join(rundir, "journal")
        os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def claim(self, device: Device, deadline: Deadline) -> FileEntry:
        path = os.path.join(self._folder, device.key)
        while (entry := self._try(path)) is None:
            if deadline.remaining() <= 0:
                raise LockTimeoutError(
                    f"another run for {device} is still at work and did not finish in time"
                )
            deadline.check()
            time.sleep(min(POLL, deadline.remaining()))
        return entry

    def try_claim(self, device: Device) -> FileEntry | None:
        """Claim a device if nobody works on it right now."""
        return self._try(os.path.join(self._folder, device.key))

    @staticmethod
    def _try(path: str) -> FileEntry | None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(fd)
            named = os.stat(path)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return None
        if (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
            os.close(fd)
            return None
        return FileEntry(path, fd, ours.st_size)

    def knows(self, device: Device) -> bool:
        """Whether there is an entry; cheap, and without waiting for whoever holds it."""
        return os.path.exists(os.path.join(self._folder, device.key))

    def devices(self) -> list[Device]:
        return list(self._devices())

    def _devices(self) -> Iterator[Device]:
        for name in sorted(os.listdir(self._folder)):
            kind, _, rest = name.partition(".")
            domid, _, devid = rest.partition(".")
            if domid.isdigit() and devid.isdigit():
                yield Device(kind, int(domid), int(devid))

    def peek(self, device: Device) -> Attachment | None:
        """What an entry says, without claiming it: for listings."""
        try:
            with open(os.path.join(self._folder, device.key), "rb") as file:
                return last_attachment(file.read())
        except FileNotFoundError:
            return None
