"""Loop devices, read from /sys and made with losetup: independent of the code under test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.locks import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 1 << 20
ATTEMPTS = 50


def make_file(path: Path, size: int = SIZE, mode: int = 0o644) -> Path:
    """A sparse file to serve as a disk."""
    with open(path, "wb") as file:
        file.truncate(size)
    os.chmod(path, mode)
    return path


@dataclass(frozen=True, slots=True)
class Bound:
    """A loop device that is bound to a file."""

    name: str  # loop7
    backing: str  # as /sys spells it, " (deleted)" included
    offset: int
    read_only: bool
    autoclear: bool
    direct_io: bool

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"

    @property
    def number(self) -> str:
        """Spelled as physical-device wants it."""
        device = os.stat(self.path).st_rdev
        return f"{os.major(device):x}:{os.minor(device):x}"


def below(directory: Path | str) -> list[Bound]:
    """The loop devices whose files are, or were, in ``directory``."""
    return _bound(lambda backing: backing.startswith(f"{directory}/"))


def of(path: Path | str) -> list[Bound]:
    """The loop devices of one file."""
    return _bound(lambda backing: backing == str(path))


def _bound(is_meant: Callable[[str], bool]) -> list[Bound]:
    """Loop devices by their files, whoever bound them; there may be thousands of others."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            with contextlib.suppress(OSError):  # unbound, or unbound while we looked
                if is_meant(_word(name, "loop/backing_file")):
                    found.append(_read(name))
    return found


def _read(name: str) -> Bound:
    return Bound(
        name=name,
        backing=_word(name, "loop/backing_file"),
        offset=int(_word(name, "loop/offset")),
        read_only=_word(name, "ro") == "1",
        autoclear=_word(name, "loop/autoclear") == "1",
        direct_io=_word(name, "loop/dio") == "1",
    )


def _word(name: str, attribute: str) -> str:
    with open(f"/sys/block/{name}/{attribute}", errors="surrogateescape") as file:
        return file.read().removesuffix("\n")


def attach(file: Path, *options: str) -> str:
    """Bind a file to a free loop device; the device's path.

    losetup asks again if it finds the device taken, but not if it finds it removed.
    """
    command = ["losetup", "--find", "--show", *options, str(file)]
    for _ in range(ATTEMPTS):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    raise OSError(f"{file}: no loop device in {ATTEMPTS} attempts: {done.stderr.strip()}")


def detach(path: str) -> None:
    subprocess.run(["losetup", "--detach", path], check=True)


def detach_below(directory: Path) -> None:
    """Unbind whatever is bound to files in a directory; some may be about to go by themselves."""
    for loop in below(directory):
        if not loop.autoclear:
            subprocess.run(["losetup", "--detach", loop.path], check=False)
    wait_until_none(directory)


def only_one(path: Path | str) -> Bound:
    """The one loop device of a file; what is being unbound is waited for, see below."""
    wait_until(lambda: len(of(path)) == 1, f"{path} is on one loop device")
    (loop,) = of(path)
    return loop


def wait_until_none(path: Path | str) -> None:
    """Wait until no loop device is bound to a file, or to any file below a directory.

    A device is unbound when it was closed for the last time, and there are others than ourselves
    who open a device for a moment, to look at it.
    """

    def left() -> list[Bound]:
        return of(path) + below(path)

    wait_until(lambda: not left(), f"{path} is on no loop device", explain=lambda: str(left()))
