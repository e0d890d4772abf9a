"""What every kernel test runs under: as root, and with a look at what it left behind."""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING

import pytest
from harness import loops

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 5.0  # seconds for threads and for the kernel to let go of what was released


@pytest.fixture(autouse=True)
def leaks_nothing(tmp_path):
    """Fail if the test leaves loop devices, mounts or descriptors.

    Only what is below ``tmp_path`` counts, for others use loop devices at the same time.
    """
    if os.geteuid() != 0:
        pytest.fail("the kernel tests need root")
    before = descriptors()
    yield
    until = time.monotonic() + PATIENCE
    while (left := leaks(tmp_path, before)) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert not left


@pytest.fixture
def image(tmp_path):
    """Makes disk images: ``image("a.img", size)``."""

    def make(name="disk.img", size=1 << 20):
        return str(loops.make_file(tmp_path / name, size))

    return make


def leaks(directory: Path, before: set) -> list[str]:
    found = [f"{device} is bound to {path}" for device, path in loops_below(directory)]
    found += [f"{point} is mounted" for point in mounts_below(directory)]
    return found + [f"descriptor {fd} is {target}" for fd, target in descriptors() - before]


def loops_below(directory: Path) -> list[tuple[str, str]]:
    """Cheaper than what the harness tells: others may have bound thousands."""
    found = []
    for device in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{device}/loop/backing_file", errors="surrogateescape") as file:
                path = file.read()
        except OSError:
            continue  # no loop device, or not bound, or not any more
        if path.startswith(f"{directory}/"):
            found.append((device, path))
    return found


def mounts_below(directory: Path) -> list[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    return [point for point in points if point.startswith(f"{directory}/")]


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that lists
        found.add((fd, target))
    return found
