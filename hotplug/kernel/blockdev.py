"""Names of files and block devices, and the numbers behind them.

Whatever a path leads to is opened once with O_PATH, which neither opens devices nor waits for
FIFOs, and every later question is asked of that descriptor. Reopening goes through
/proc/self/fd/N, a link that leads to the very inode. Paths are what os.fsdecode makes of bytes,
so any name works byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from typing import TYPE_CHECKING

from hotplug.ports import FileId, Number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

DELETED = " (deleted)"  # what the kernel appends to the name of an unlinked file
LEADS_ELSEWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
NUMBER = re.compile(rb"(0|[1-9a-f][0-9a-f]*):(0|[1-9a-f][0-9a-f]*)")


def parse_number(text: bytes) -> Number | None:
    """Read ``physical-device``; None unless it is spelled as ``str(Number)`` spells it."""
    match = NUMBER.fullmatch(text)
    return Number(int(match[1], 16), int(match[2], 16)) if match is not None else None


def number_of(device: int) -> Number:
    """From ``st_rdev`` or ``st_dev``."""
    return Number(os.major(device), os.minor(device))


class LocatedPath:
    """What a path led to, held by a descriptor: the file cannot change under us, its name can."""

    __slots__ = ("_fd", "_status", "path", "real_path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._status = os.fstat(fd)
        self.real_path = self._real_path()

    def _real_path(self) -> str:
        name = os.readlink(f"/proc/self/fd/{self._fd}")
        # A file may be called "x (deleted)". Only one without a name is marked.
        if name.endswith(DELETED) and not self._is_at(name):
            return name.removesuffix(DELETED)
        return name

    @property
    def is_link(self) -> bool:
        try:
            return stat.S_ISLNK(os.lstat(self.path).st_mode)
        except OSError as error:
            if error.errno in LEADS_ELSEWHERE:
                return False
            raise

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self._status.st_mode)

    @property
    def is_block_device(self) -> bool:
        return stat.S_ISBLK(self._status.st_mode)

    @property
    def number(self) -> Number:
        if not self.is_block_device:
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), self.path)
        return number_of(self._status.st_rdev)

    @property
    def file_id(self) -> FileId:
        return FileId(self._status.st_dev, self._status.st_ino)

    @property
    def has_write_bit(self) -> bool:
        return bool(self._status.st_mode & 0o222)

    def open(self, *, writable: bool) -> BinaryIO:
        """Open the very file that was found; regular files only, others may wait for a peer."""
        if not self.is_file:
            raise OSError(errno.EINVAL, "is not a regular file", self.path)

        def reopen(_name: str, flags: int) -> int:
            return os.open(f"/proc/self/fd/{self._fd}", flags)

        try:
            return io.FileIO(self.real_path, "r+" if writable else "r", opener=reopen)
        except OSError as error:
            error.filename = self.path
            raise

    def still_there(self) -> bool:
        return self._is_at(self.path)

    def _is_at(self, path: str) -> bool:
        try:
            now = os.stat(path)
        except OSError as error:
            if error.errno in LEADS_ELSEWHERE:
                return False
            raise
        then = self._status
        if stat.S_ISBLK(then.st_mode):  # udev may make a node anew: it is the same device
            return stat.S_ISBLK(now.st_mode) and now.st_rdev == then.st_rdev
        return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)


class LocalPaths:
    """The names that this process sees."""

    __slots__ = ()

    @contextlib.contextmanager
    def locate(self, path: str) -> Iterator[LocatedPath]:
        """Find a path without opening what it leads to."""
        if "\0" in path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            yield LocatedPath(path, fd)
        finally:
            os.close(fd)
