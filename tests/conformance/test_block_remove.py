"""Checklist lines 58 to 65: ``block remove``."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from harness import loops
from harness.lines import F, K


def added(runner, guest, target, mode="w"):
    """A disk that has been added and that the toolstack has closed."""
    disk = guest().disk(target, mode)
    assert runner.add(disk).status == 0
    disk.close()
    return disk


def assert_removed(runner, disk):
    """Exit 0 and nothing written."""
    before = disk.tree()
    assert runner.remove(disk).status == 0
    assert disk.tree() == before


@K
def test_remove_phy_nop(runner, guest, block_device, tmp_path):
    """58: exit 0, no write."""
    assert_removed(runner, added(runner, guest, block_device()))
    assert len(loops.below(tmp_path)) == 1  # the device itself is not ours to detach


@K
def test_remove_file_detaches(runner, guest, image):
    """59: the device named by node is detached, exit 0, no write."""
    file = image()
    disk = added(runner, guest, file)
    loops.only_one(file)
    assert_removed(runner, disk)
    loops.wait_until_none(file)


@F
def test_remove_backing_deleted(runner, guest, image, tmp_path):
    """60: backing file deleted meanwhile: still detached (D06)."""
    file = image()
    disk = added(runner, guest, file)
    file.unlink()
    assert len(loops.below(tmp_path)) == 1
    assert_removed(runner, disk)
    loops.wait_until_none(tmp_path)


@F
@pytest.mark.parametrize("other", ["directory", "device", "file"])
def test_remove_backing_replaced(runner, guest, image, block_device, tmp_path, other):
    """61: backing path now a directory or device: still detached (D06)."""
    file = image()
    disk = added(runner, guest, file)
    file.rename(tmp_path / "aside")
    match other:
        case "directory":
            file.mkdir()
        case "device":
            os.mknod(file, stat.S_IFBLK | 0o600, os.stat(block_device()).st_rdev)
        case "file":
            image(file.name)
    loops.only_one(tmp_path / "aside")
    assert_removed(runner, disk)
    loops.wait_until_none(tmp_path / "aside")


@F
def test_remove_twice_safe(runner, guest, image):
    """62: loop node reused for another file: not detached (D09)."""
    for _ in range(20):
        disk = added(runner, guest, image())
        node = disk.read("node").decode()
        assert_removed(runner, disk)
        other = image()
        # Anybody may be faster with a device that has just become free; then once more.
        if subprocess.run(["losetup", node, str(other)], check=False).returncode == 0:
            break
    try:
        assert_removed(runner, disk)
        assert [loop.path for loop in loops.of(other)] == [node]
    finally:
        loops.detach(node)


@F
def test_remove_after_failed_add(runner, guest, image):
    """63: no node: exit 0, nothing written."""
    disk = guest().disk(image(mode=0o444))
    assert runner.add(disk).status == 1
    disk.close()
    assert_removed(runner, disk)


@F
def test_remove_backend_gone(runner, guest, image):
    """64: BE absent: exit 0, BE not recreated (D18)."""
    file = image()
    never_added = guest().disk(file)
    never_added.delete()
    assert runner.remove(never_added).status == 0
    assert not never_added.exists

    disk = added(runner, guest, file)
    disk.delete()
    assert runner.remove(disk).status == 0
    assert not disk.exists
    loops.wait_until_none(file)


@K
def test_remove_deferred_detach_ok(runner, guest, image):
    """65: kernel auto-clear of a busy loop counts as success."""
    file = image()
    disk = added(runner, guest, file)
    with open(disk.read("node").decode(), "rb"):
        assert_removed(runner, disk)
        loop = loops.only_one(file)
        assert loop.autoclear
    loops.wait_until_none(file)
