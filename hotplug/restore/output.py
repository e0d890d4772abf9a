"""What a save file is written to: a file that appears when it is complete, or a pipe."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from collections.abc import Iterator

PERMISSIONS = 0o7777
NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)  # file systems without O_TMPFILE
ZEROS = bytes(1 << 20)
MAX_NAME = 200  # bytes; file systems allow 255, and something is added
ACCESS_LIST = "system.posix_acl_access"
NO_LIST = (errno.ENODATA, errno.EOPNOTSUPP)


class Output:
    """Written from its beginning to its end. In a regular file, zeros become holes.

    ``shared``: others have written before, and will go on behind what is written here. Then zeros
    become holes where the file ends, and only there.
    """

    def __init__(self, fd: int, name: str, *, shared: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.offset = 0
        status = os.fstat(fd)
        self.sparse = stat.S_ISREG(status.st_mode)
        if shared and self.sparse:
            self.offset = os.lseek(fd, 0, os.SEEK_CUR)
            appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
            self.sparse = status.st_size <= self.offset and not appends

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            done = self._some(view)
            self.offset += done
            view = view[done:]

    def _some(self, view: memoryview) -> int:
        with self._named():
            if self.sparse:
                return os.pwrite(self.fd, view, self.offset)
            return os.write(self.fd, view)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.name
            raise

    def zeros(self, size: int) -> None:
        if self.sparse:
            self.offset += size
            return
        while size:
            part = min(size, len(ZEROS))
            self.write(memoryview(ZEROS)[:part])
            size -= part

    def settle(self) -> None:
        """Let the descriptor's own offset be behind what was written: somebody else goes on."""
        if self.sparse:
            with self._named():
                os.ftruncate(self.fd, self.offset)
                os.lseek(self.fd, self.offset, os.SEEK_SET)

    def finish(self) -> None:
        """Zeros at the end belong to the file too; and it is on the disk."""
        if self.sparse:
            with self._named():
                os.ftruncate(self.fd, self.offset)
                os.fsync(self.fd)


@contextlib.contextmanager
def replacing(path: str, source: int) -> Iterator[Output]:
    """A new file that takes the place of what is at ``path``; who may read ``source`` may read it.

    It appears when it is complete and on the disk. Before that it has no name, so nothing is left
    of it if we are killed; where a file system cannot do that, one beginning with a dot.
    """
    refuse_special(path)
    folder, name = os.path.split(os.path.realpath(path))
    hidden = f".{os.fsdecode(os.fsencode(name)[:MAX_NAME])}.{os.getpid()}.new"
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, directory)
        fd, named = create(directory, hidden)
        undo.callback(os.close, fd)
        if named:
            undo.callback(unlink, directory, hidden)
        output = Output(fd, path)
        yield output
        output.finish()
        take_over(fd, source)
        if not named:
            undo.callback(unlink, directory, hidden)
            os.link(f"/proc/self/fd/{fd}", hidden, dst_dir_fd=directory, follow_symlinks=True)
        os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)


def refuse_special(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise HotplugError(f"{path}: not a regular file, so it cannot have holes")


def create(directory: int, hidden: str) -> tuple[int, bool]:
    """A file that only its owner may read, and whether it has a name."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=directory), False
    except OSError as error:
        if error.errno not in NO_TMPFILE:
            raise
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    return os.open(hidden, flags, 0o600, dir_fd=directory), True


def unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def take_over(fd: int, source: int) -> None:
    """Owner, mode and access list, as far as we may; never more access than the other file gives.

    The mode of a pipe or a socket says nothing of what comes through it, so it stays our own.
    """
    like = os.fstat(source)
    if not (stat.S_ISREG(like.st_mode) or stat.S_ISBLK(like.st_mode)):
        return
    mode = stat.S_IMODE(like.st_mode)
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
    except PermissionError:
        mode &= 0o700
    else:
        # With a list the group's bits in the mode are those that anybody in the list may have.
        if not take_over_list(fd, source):
            mode &= ~0o070
    os.fchmod(fd, mode)


def take_over_list(fd: int, source: int) -> bool:
    """Whether the access list is that of the other file now; it may have had one of the folder."""
    try:
        listed = os.getxattr(source, ACCESS_LIST)
    except OSError as error:
        if error.errno not in NO_LIST:
            raise
        with contextlib.suppress(OSError):
            os.removexattr(fd, ACCESS_LIST)
        return True
    try:
        os.setxattr(fd, ACCESS_LIST, listed)
    except OSError:
        return False
    return True
