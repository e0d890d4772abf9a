"""Loop devices, read from /sys and made with losetup: independent of the code under test."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

MARGIN = 1 << 20


def make_file(path: Path, size: int = MARGIN, mode: int = 0o644) -> Path:
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


def bound() -> list[Bound]:
    """Every bound loop device of this host, whoever bound it."""
    found = []
    for directory in Path("/sys/block").glob("loop*/loop"):
        try:
            found.append(_read(directory))
        except (FileNotFoundError, OSError):
            continue  # unbound while we looked
    return found


def _read(directory: Path) -> Bound:
    def word(path: str) -> str:
        return (directory / path).read_text(errors="surrogateescape").rstrip("\n")

    return Bound(
        name=directory.parent.name,
        backing=word("backing_file"),
        offset=int(word("offset")),
        read_only=word("../ro") == "1",
        autoclear=word("autoclear") == "1",
        direct_io=word("dio") == "1",
    )


def below(directory: Path) -> list[Bound]:
    """The loop devices whose files are, or were, in ``directory``."""
    return [loop for loop in bound() if loop.backing.startswith(f"{directory}/")]


def of(path: Path) -> list[Bound]:
    """The loop devices of one file."""
    return [loop for loop in bound() if loop.backing == str(path)]


def attach(file: Path, *options: str) -> str:
    """Bind a file to a free loop device; the device's path."""
    command = ["losetup", "--find", "--show", *options, str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def detach(path: str) -> None:
    subprocess.run(["losetup", "--detach", path], check=True)
