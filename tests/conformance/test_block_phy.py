"""Checklist lines 25 to 44: ``block add`` of a block device."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from harness.lines import F, K
from harness.locks import held, wait_for_waiter
from harness.loops import make_file
from harness.outcomes import assert_refused
from harness.store import Store

NUMBERS = [((7, 10), b"7:a"), ((253, 16), b"fd:10"), ((259, 5), b"103:5")]


def node(path, number, kind=stat.S_IFBLK):
    """Make a device node; the device need not exist."""
    os.mknod(path, kind | 0o600, os.makedev(*number))
    return path


def number_of(device):
    return os.stat(device).st_rdev


def copy_of(device, path):
    """A second node for a block device, under a name of the test's choice."""
    os.mknod(path, stat.S_IFBLK | 0o600, number_of(device))
    return path


def spelled(device):
    number = number_of(device)
    return f"{os.major(number):x}:{os.minor(number):x}".encode()


def assert_connected(backend, device, path=None):
    keys = backend.tree()
    assert keys["hotplug-status"] == b"connected"
    assert keys["physical-device"] == spelled(device)
    assert keys["physical-device-path"] == os.fsencode(path or device)
    assert "node" not in keys
    assert "hotplug-error" not in keys


@K
def test_phy_key_order(runner, guest, block_device):
    """25: hotplug-status is never visible before physical-device and physical-device-path."""
    disks = [guest().disk(block_device()) for _ in range(5)]
    early = []
    ended = threading.Event()

    def look():
        with Store(runner.place.daemon.socket) as store:
            while not ended.is_set():
                for disk in disks:
                    if store.read(f"{disk.path}/hotplug-status") == b"connected":
                        keys = ("physical-device", "physical-device-path")
                        paths = [f"{disk.path}/{key}" for key in keys]
                        early.extend(path for path in paths if store.read(path) is None)

    observer = threading.Thread(target=look)
    observer.start()
    try:
        for disk in disks:
            assert runner.add(disk).status == 0
            assert disk.read("hotplug-status") == b"connected"
    finally:
        ended.set()
        observer.join()
    assert early == []


@K
@pytest.mark.parametrize(("number", "text"), NUMBERS)
def test_phy_device_number_format(runner, guest, tmp_path, number, text):
    """26: 7,10 -> 7:a; 253,16 -> fd:10; 259,5 -> 103:5."""
    disk = guest().disk(node(tmp_path / "disk", number), "w!")
    assert runner.add(disk).status == 0
    assert disk.read("physical-device") == text


@K
def test_phy_plain_path_verbatim(runner, guest, block_device):
    """27: no link: physical-device-path equals params."""
    device = block_device()
    path = device.replace("/dev/", "/dev/../dev//")
    disk = guest().disk(path)
    assert runner.add(disk).status == 0
    assert_connected(disk, device, path)


@K
def test_phy_symlink_resolved(runner, guest, tmp_path, block_device):
    """28: link: physical-device-path is the final target."""
    device = block_device()
    (tmp_path / "first").symlink_to(device)
    (tmp_path / "second").symlink_to("first")
    disk = guest().disk(tmp_path / "second")
    assert runner.add(disk).status == 0
    assert_connected(disk, device)


@K
def test_phy_success(runner, guest, block_device):
    """29: status connected, exit 0, no node key."""
    device = block_device()
    disk = guest().disk(device)
    assert runner.add(disk).status == 0
    assert_connected(disk, device)


@K
def test_phy_add_twice_nop(runner, guest, block_device):
    """30: valid physical-device already present: exit 0, nothing changes."""
    disk = guest().disk(block_device())
    assert runner.add(disk).status == 0
    before = disk.tree()
    assert runner.add(disk).status == 0
    assert disk.tree() == before


@F
def test_phy_add_resumes_partial(runner, guest, block_device):
    """31: physical-device present, status absent: completed to connected (D20)."""
    device = block_device()
    disk = guest().disk(device)
    disk.write("physical-device", spelled(device))
    assert runner.add(disk).status == 0
    assert_connected(disk, device)


@F
def test_phy_missing_target(runner, guest, tmp_path):
    """32: nonexistent path: status error, text names the path, never connected (D01)."""
    disk = guest().disk(tmp_path / "absent")
    assert_refused(disk, runner.add(disk), str(tmp_path / "absent"))


@F
@pytest.mark.parametrize("what", ["dangling link", "directory", "character device", "fifo"])
def test_phy_unsupported_target(runner, guest, tmp_path, what):
    """33: dangling link, directory or character device: as phy_missing_target."""
    path = tmp_path / "odd"
    match what:
        case "dangling link":
            path.symlink_to(tmp_path / "absent")
        case "directory":
            path.mkdir()
        case "character device":
            node(path, (1, 3), stat.S_IFCHR)
        case "fifo":
            os.mkfifo(path)
    disk = guest().disk(path)
    assert_refused(disk, runner.add(disk), str(path))


@F
def test_phy_relative_name(runner, guest, block_device):
    """34: params sda1 means /dev/sda1."""
    device = block_device()
    disk = guest().disk(device.removeprefix("/dev/"))
    assert runner.add(disk).status == 0
    assert_connected(disk, device)


@F
def test_phy_blank_in_path(runner, guest, tmp_path, block_device):
    """35: a blank in the path works (D28)."""
    device = block_device()
    (tmp_path / "my disks").mkdir()
    disk = guest().disk(copy_of(device, tmp_path / "my disks" / "first one "))
    assert runner.add(disk).status == 0
    assert_connected(disk, device, tmp_path / "my disks" / "first one ")


@F
@pytest.mark.parametrize(
    "name", [b"\xfc\xff", "дом".encode(), rb"a\b\x41\n\\", b"a\nb\t", b"$(x)`'\""]
)
def test_phy_odd_bytes_in_path(runner, guest, tmp_path, block_device, name):
    """36: non-ASCII bytes and backslash work byte for byte (D30)."""
    device = block_device()
    path = copy_of(device, os.fsencode(tmp_path) + b"/" + name)
    disk = guest().disk(path)
    assert runner.add(disk).status == 0
    assert_connected(disk, device, path)


@F
def test_phy_glob_literal(runner, guest, tmp_path, block_device):
    """37: an asterisk in params is not expanded."""
    device, other = block_device(), block_device()
    copy_of(device, tmp_path / "disk*")
    copy_of(other, tmp_path / "disk1")
    disk = guest().disk(tmp_path / "disk*")
    assert runner.add(disk).status == 0
    assert_connected(disk, device, tmp_path / "disk*")
    absent = guest().disk(tmp_path / "*sk1")
    assert_refused(absent, runner.add(absent), str(tmp_path / "*sk1"))


@F
@pytest.mark.parametrize("state", [1, 3, 4, 5, 6, None])
def test_phy_state_checked(runner, guest, block_device, state):
    """38: BE state other than 2: status error, no physical-device (D17)."""
    disk = guest().disk(block_device(), state=state)
    assert_refused(disk, runner.add(disk))


def check_missing(runner, guest, block_device, key):
    disk = guest().disk(block_device())
    disk.drop(key)
    assert_refused(disk, runner.add(disk))


@K
def test_missing_params(runner, guest, block_device):
    """39: status error, exit 1."""
    check_missing(runner, guest, block_device, "params")


@K
def test_missing_mode(runner, guest, block_device):
    """40: status error, exit 1."""
    check_missing(runner, guest, block_device, "mode")


@K
def test_missing_frontend_id(runner, guest, block_device):
    """41: status error, exit 1."""
    check_missing(runner, guest, block_device, "frontend-id")


@F
@pytest.mark.parametrize("key", ["params", "mode", "frontend-id"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_key_named(runner, guest, block_device, key, value):
    """42: the error text contains the full path of the missing key (D04)."""
    disk = guest().disk(block_device())
    disk.drop(key)
    if value is not None:
        disk.write(key, value)
    assert_refused(disk, runner.add(disk), f"{disk.relative}/{key}")


@F
@pytest.mark.parametrize("kind", ["file", "device"])
def test_deleted_backend_not_resurrected(runner, guest, block_device, tmp_path, kind):
    """43: BE deleted during the run: exit 1 and BE still absent (D18)."""
    target = block_device() if kind == "device" else make_file(tmp_path / "file")
    disk = guest().disk(target)
    with held(runner.place.block_lock):
        run = runner.start(disk, "add")
        wait_for_waiter(runner.place.block_lock)
        disk.delete()
    assert run.wait().status == 1
    assert not disk.exists


@F
def test_success_clears_hotplug_error(runner, guest, block_device):
    """44: a stale hotplug-error is gone after success (D21)."""
    device = block_device()
    disk = guest().disk(device)
    disk.write("hotplug-error", "something that went wrong earlier")
    disk.write("hotplug-status", "error")
    assert runner.add(disk).status == 0
    assert_connected(disk, device)
