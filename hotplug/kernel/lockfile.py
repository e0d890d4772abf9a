"""The lock files of the stock scripts (locking.sh), under the same protocol.

A lock is held by who has an exclusive flock on the file that has the lock's name *now*. So:
open, creating it; flock; compare the descriptor with the path; if they differ, somebody removed
the file between our open and our flock: start again. Only the holder removes the file, and while
it still holds the flock.

- flock belongs to the open file, not to the process. Stock scripts leave the descriptor to their
  children, so a daemon started under the lock can keep it for ever: our wait is bounded, and our
  own descriptor is not inherited.
- The process that /proc/locks names is the flock(1) that a script ran and that is long gone. The
  descriptors of the living tell better: /proc/PID/fdinfo/FD says whether it holds a lock.
- A stock script that released the lock has removed the file but keeps the flock until it ends.
  So who waits also watches the path.
- A signal could end a blocking flock, but only in the main thread. So we poll.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from hotplug.errors import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hotplug.ports import Deadline

DIRECTORY = "/var/run/xen-hotplug"
FIRST_PAUSE = 0.001  # seconds between two tries, growing to
LONGEST_PAUSE = 0.02
SLICE = 0.1  # seconds that we wait for a thread of ours before we look whether anybody cares


class LockFiles:
    """The locks in one directory. For several threads."""

    __slots__ = ("_directory", "_mutex", "_threads")

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory
        self._mutex = threading.Lock()
        self._threads: dict[str, threading.Lock] = {}

    @contextlib.contextmanager
    def hold(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Hold a lock; LockTimeoutError names it and its holder if the wait takes too long."""
        path = f"{self._directory}/{name}"
        started = time.monotonic()
        with self._among_threads(name, path, deadline, started):
            fd = self._claim(path, deadline, started)
            try:
                yield
            finally:
                release(path, fd)

    def sweep(self, names: Iterable[str]) -> None:
        """Remove the files that killed runs left behind; not those that somebody holds.

        Who has opened one meanwhile finds it gone once the lock is his, and opens another.
        """
        for name in names:
            path = f"{self._directory}/{name}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if try_flock(fd):
                release(path, fd)
            else:
                os.close(fd)

    @contextlib.contextmanager
    def _among_threads(
        self, name: str, path: str, deadline: Deadline, started: float
    ) -> Iterator[None]:
        """Our own threads queue here, instead of polling the file against each other."""
        with self._mutex:
            lock = self._threads.setdefault(name, threading.Lock())
        while not lock.acquire(timeout=min(SLICE, deadline.remaining())):
            refuse_late(path, deadline, started)
        try:
            yield
        finally:
            lock.release()

    def _claim(self, path: str, deadline: Deadline, started: float) -> int:
        """Take the lock among processes; the descriptor that holds it."""
        while True:
            fd = self._open(path)
            try:
                if self._wait_for(fd, path, deadline, started):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _wait_for(self, fd: int, path: str, deadline: Deadline, started: float) -> bool:
        """Wait for the flock; False if the file is no more the lock, so that we start again."""
        pause = FIRST_PAUSE
        while not try_flock(fd):
            refuse_late(path, deadline, started)
            time.sleep(min(pause, deadline.remaining()))
            pause = min(pause * 1.5, LONGEST_PAUSE)
            if not is_at(fd, path):
                return False
        return is_at(fd, path)

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            return os.open(path, flags, 0o644)


def try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: str) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def release(path: str, fd: int) -> None:
    """Remove the file, if it is still ours, while we hold it; then let go."""
    try:
        if is_at(fd, path):
            os.unlink(path)
    finally:
        os.close(fd)


def refuse_late(path: str, deadline: Deadline, started: float) -> None:
    """LockTimeoutError when time is up, AbandonedError when nobody waits for us any more."""
    if deadline.remaining() <= 0:
        waited = time.monotonic() - started
        holder = ", ".join(holders(path)) or "a process that cannot be told"
        raise LockTimeoutError(
            f"the lock {path} was not free within {waited:.0f} s; it is held by {holder}"
        )
    deadline.check()


def holders(path: str) -> list[str]:
    """The processes that hold a lock, e.g. ``block (pid 4711)``.

    By the names of their descriptors: asking what these lead to could hang on a dead mount.
    """
    path = os.path.realpath(path)
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
            if any(holds_lock(pid, fd, path) for fd in fds):
                found.append(f"{process_name(int(pid))} (pid {pid})")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES):
                raise
    return found


def holds_lock(pid: str, fd: str, path: str) -> bool:
    """Whether a descriptor of a process holds a lock on a file. OSError ENOENT if it is gone."""
    if os.readlink(f"/proc/{pid}/fd/{fd}") != path:
        return False
    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
        return any(line.startswith("lock:") for line in file)


def process_name(pid: int) -> str:
    if pid == os.getpid():
        return "this process"
    import psutil  # noqa: PLC0415 - 20 ms, and only who failed to get a lock needs it

    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "a process"
