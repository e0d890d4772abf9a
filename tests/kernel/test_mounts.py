"""Real mounts, in a mount namespace of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]

# Does what it is told, a line each, and prints what KernelMounts says of a device.
PLAYER = """if True:
    import json, os, subprocess, sys
    from hotplug.kernel.blockdev import number_of
    from hotplug.kernel.mounts import KernelMounts
    mounts, reads = KernelMounts(), []
    real = mounts._read
    KernelMounts._read = lambda self: (reads.append(1), real())[1]
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "of":
            number = number_of(os.stat(words[1]).st_rdev)
            answer = ["ro" if mount.read_only else "rw" for mount in mounts.of(number)]
        elif words[0] == "reads":
            answer = len(reads)
        else:
            answer = subprocess.run(words, stdin=subprocess.DEVNULL).returncode
        print(json.dumps(answer), flush=True)
"""


class Player:
    """A process in a mount namespace of its own, in which ``device`` can be mounted."""

    def __init__(self, process, device):
        self.process = process
        self.device = device

    def ask(self, *words):
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, *words):
        assert self.ask(*words) == 0

    def of_device(self):
        return self.ask("of", self.device)


@pytest.fixture
def device(image):
    """A loop device with an ext4 on it."""
    path = image("fs.img", 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    command = ["losetup", "--find", "--show", path]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def player(device):
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", PLAYER]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TREE
        ) as process,
        contextlib.closing(process.stdin),
    ):
        yield Player(process, device)


@pytest.fixture
def point(tmp_path):
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_mount_remount_umount(player, point):
    assert player.of_device() == []
    player.run("mount", player.device, point)
    assert player.of_device() == ["rw"]
    player.run("mount", "-o", "remount,ro", point)
    assert player.of_device() == ["ro"]
    player.run("umount", point)
    assert player.of_device() == []


def test_nothing_is_read_again_without_a_change(player, point):
    player.of_device()
    before = player.ask("reads")
    for _ in range(5):
        player.of_device()
    assert player.ask("reads") == before
    player.run("mount", player.device, point)
    player.of_device()
    assert player.ask("reads") > before


def test_a_mount_of_something_else(player, point):
    player.run("mount", "-t", "tmpfs", "none", point)
    assert player.of_device() == []


def test_a_read_only_bind_mount_protects_nothing(player, point, tmp_path):
    (tmp_path / "bind").mkdir()
    player.run("mount", player.device, point)
    player.run("mount", "--bind", point, tmp_path / "bind")
    player.run("mount", "-o", "remount,bind,ro", tmp_path / "bind")
    player.run("umount", point)
    assert player.of_device() == ["rw"]


def test_an_odd_mount_point_and_device_name(player, tmp_path):
    point = tmp_path / "a b\\040\t\n\\"
    point.mkdir()
    node = tmp_path / "my disk"
    os.mknod(node, 0o60600, os.stat(player.device).st_rdev)
    player.run("mount", node, point)
    assert player.of_device() == ["rw"]


def test_a_remount_in_another_namespace(player, point, tmp_path):
    """Nobody tells us of it, but it is the same superblock: what is mounted is read afresh."""
    player.run("mount", "-o", "ro", player.device, point)
    assert player.of_device() == ["ro"]
    namespace = f"/proc/{player.process.pid}/ns/mnt"
    enter = ["nsenter", f"--mount={namespace}", "unshare", "--mount", "--propagation", "private"]
    subprocess.run([*enter, "mount", "-o", "remount,rw", point], check=True)
    assert player.of_device() == ["rw"]
