"""The lock files of the stock scripts (contract 2.6), claimed and watched from a test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 10.0
PAUSE = 0.002


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = SECONDS,
    explain: Callable[[], str] = str,
) -> None:
    """Poll until ``condition()`` holds; the test fails if it never does."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"after {seconds:.0f} s still not true: {what} {explain()}")
        time.sleep(PAUSE)


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold a lock as a stock script does; the file is gone afterwards."""
    path.parent.mkdir(exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        os.close(fd)
    try:
        yield fd
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether somebody has a lock right now."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def forget(path: Path) -> None:
    """Remove the file that a killed holder has left on disk, as contract 2.6 allows."""
    assert not is_held(path)
    path.unlink(missing_ok=True)


def users(path: Path) -> list[int]:
    """The processes other than this one that have the file of a lock open.

    By identity, for in a mount namespace of its own a process knows it by another name.
    """
    try:
        meant = os.stat(path)
    except FileNotFoundError:
        return []
    others = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()} - {os.getpid()}
    return [pid for pid in sorted(others) if _has_open(pid, path.name, meant)]


def _has_open(pid: int, name: str, meant: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):
                # The name first: to stat what hangs would hang.
                if os.readlink(link).endswith(f"/{name}") and os.path.samestat(
                    os.stat(link), meant
                ):
                    return True
    return False


def wait_for_waiter(path: Path) -> None:
    """Wait until somebody else wants the lock that this test holds."""
    wait_until(lambda: users(path), f"somebody waits for {path}")
