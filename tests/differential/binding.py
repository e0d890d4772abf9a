"""Loop devices made for a scenario, under names that need not be text."""

from __future__ import annotations

import subprocess

from differential.noise import DisturbedError


def attach(file: bytes, *, read_only: bool = False, offset: int = 0) -> str:
    """Bind a file to a free loop device; the device's path."""
    options = ["--read-only"] * read_only + ["--offset", str(offset)]
    command = ["losetup", "--find", "--show", *options, file]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        raise DisturbedError(f"no loop device for {file!r}: {done.stderr!r}")
    return done.stdout.decode().strip()


def attach_to(device: str, file: bytes) -> None:
    """Bind a file to this very loop device, which was free just now."""
    done = subprocess.run(["losetup", device, file], check=False, capture_output=True)
    if done.returncode:
        raise DisturbedError(f"{device} was taken: {done.stderr!r}")
