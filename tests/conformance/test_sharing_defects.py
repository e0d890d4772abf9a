"""Checklist lines 84 to 91: where the stock sharing check fails, and what it may cost."""

from __future__ import annotations

import os
import threading
import time
import uuid

import pytest
from harness import loops
from harness.guests import Guest
from harness.lines import F_DRIVER, F_FRESH, F, K
from harness.outcomes import assert_busy, assert_ok, busy_device, busy_file


@F
@pytest.mark.parametrize("way", ["the same path", "a link to it", "a hard link to it"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_file_with_current_losetup(runner, guest, image, tmp_path, way, mode):
    """84: file held w by another VM through a loop: busy (D02)."""
    file = image()
    other = tmp_path / "other"
    match way:
        case "the same path":
            other = file
        case "a link to it":
            other.symlink_to(file)
        case "a hard link to it":
            os.link(file, other)
    assert_ok(runner, guest().disk(file, "w"))
    loop = loops.only_one(file)
    name = file if way == "a link to it" else other
    assert_busy(runner, guest().disk(other, mode), busy_file(name, loop.number, mode, "guest"))
    assert loops.only_one(file) == loop


@F
def test_share_file_readers(runner, guest, image):
    """84: the other rows of the table: file held r by other VMs."""
    file = image()
    assert_ok(runner, guest().disk(file, "r"))
    loop = loops.only_one(file)
    assert_busy(runner, guest().disk(file, "w"), busy_file(file, loop.number, "w", "guest"))
    assert_ok(runner, guest().disk(file, "r"))
    assert_ok(runner, guest().disk(file, "w!"))


@F
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_file_mounted(runner, guest, formatted, mount, block_device, mode):
    """84: the other columns of the table: a loop of the file is attached, then mounted."""
    file = formatted()
    device = block_device(file)
    attached_only = guest().disk(file, mode)
    assert_ok(runner, attached_only)
    assert runner.remove(attached_only).status == 0
    attached_only.delete()
    mount(device, "rw")
    loop = loops.only_one(file)
    assert_busy(runner, guest().disk(file, mode), busy_file(file, loop.number, mode, "local"))


@F
def test_share_file_loop_with_offset(runner, guest, image, block_device):
    """85: same with an offset loop (D03)."""
    file = image(size=1 << 20)
    device = block_device(file, "--offset", "4096", "--sizelimit", "65536")
    assert_ok(runner, guest().disk(device, "w"))
    loop = loops.only_one(file)
    assert loop.offset == 4096
    assert_busy(runner, guest().disk(file), busy_file(file, loop.number, "w", "guest"))


@F
@pytest.mark.parametrize("kind", ["device", "file"])
def test_share_reader_vs_bang_holder(runner, guest, block_device, image, kind):
    """86: other VM w!, me r: busy (D11)."""
    target = block_device() if kind == "device" else image()
    assert_ok(runner, guest().disk(target, "w!"))
    if kind == "device":
        text = busy_device(target, "r", "guest")
    else:
        loop = loops.only_one(target)
        text = busy_file(target, loop.number, "r", "guest")
    assert_busy(runner, guest().disk(target, "r"), text)


@F
@pytest.mark.parametrize(("holders", "mine"), [("-1", ""), ("", "-1"), ("-1", "-1")])
def test_share_suffix_symmetric(runner, guest, hold, holders, mine):
    """87: vm values differing only in a trailing -1 are the same VM both ways (D12)."""
    vm = f"/vm/{uuid.uuid4()}"
    device, _ = hold("w", guest(vm=vm + holders))
    assert_ok(runner, guest(vm=vm + mine).disk(device))


@F_DRIVER
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_driver_domain(driver_runner, guest, block_device, mode):
    """88: both vm unreadable, different domids: busy (D10); the same domid: ok."""
    device = block_device()
    holder, other = guest(), guest()
    assert_ok(driver_runner, holder.disk(device, "w", backend_domid=driver_runner.domid))
    assert_ok(driver_runner, holder.disk(device, "w", backend_domid=driver_runner.domid))
    disk = other.disk(device, mode, backend_domid=driver_runner.domid)
    assert_busy(driver_runner, disk, busy_device(device, mode, "guest"))


@F_DRIVER
def test_share_enumeration_error(driver_runner, guest, block_device):
    """89: listing error other than "absent": ERR (D13)."""
    device = block_device()
    hidden = guest().disk(device, "w", backend_domid=driver_runner.domid)
    hidden.write("physical-device", "7:fff")
    parent = hidden.path.rpartition("/")[0]
    driver_runner.place.store.set_permissions(parent, "n0")
    disk = guest().disk(device, "w", backend_domid=driver_runner.domid)
    result = driver_runner.add(disk)
    assert result.status == 1
    keys = disk.tree()
    assert keys["hotplug-status"] == b"error"
    assert keys["hotplug-error"]
    assert "physical-device" not in keys
    driver_runner.place.store.remove(parent)


@F_DRIVER
def test_share_hidden_backend_of_another_file(driver_runner, guest, image):
    """89: a backend that we may not read does not stop what nobody has, nor let through more."""
    store, domid = driver_runner.place.store, driver_runner.domid
    hidden = guest().disk(image(), backend_domid=domid).path.rpartition("/")[0]
    store.set_permissions(hidden, "n0")
    file = image()
    assert_ok(driver_runner, guest().disk(file, backend_domid=domid))
    for _ in range(2):
        disk = guest().disk(file, backend_domid=domid)
        text = busy_file(file, loops.only_one(file).number, "w", "guest")
        assert_busy(driver_runner, disk, text)
    store.remove(hidden)


@F_DRIVER
def test_share_hidden_holder(driver_runner, guest, image):
    """89: whose disk may not be read any more has it all the same."""
    store, domid = driver_runner.place.store, driver_runner.domid
    file = image()
    holder = guest().disk(file, backend_domid=domid)
    assert_ok(driver_runner, holder)
    parent = holder.path.rpartition("/")[0]
    store.set_permissions(parent, "n0")
    for mode in ("r", "w"):
        disk = guest().disk(file, mode, backend_domid=domid)
        assert driver_runner.add(disk).status == 1
        assert disk.read("hotplug-status") in (b"busy", b"error")
        assert "physical-device" not in disk.tree()
    assert_ok(driver_runner, guest().disk(file, "w!", backend_domid=domid))
    store.set_permissions(parent, f"n{domid}")
    assert driver_runner.add(guest().disk(file, backend_domid=domid)).status == 1


def assert_one_succeeds(runner, guest, target):
    """Two VMs want to write to the same disk at the same time."""
    for _ in range(20 if runner.kind == "agent" else 4):
        rivals = [guest().disk(target, "w") for _ in range(2)]
        runs = [runner.start(disk, "add") for disk in rivals]
        assert sorted(run.wait().status for run in runs) == [0, 1]
        assert sorted(disk.read("hotplug-status") for disk in rivals) == [b"busy", b"connected"]
        for disk in rivals:
            assert runner.remove(disk).status == 0
            disk.delete()


@K
def test_share_atomic(runner, guest, block_device):
    """90: two parallel adds in mode w by two VMs: exactly one succeeds."""
    assert_one_succeeds(runner, guest, block_device())


@F
def test_share_atomic_file(runner, guest, image):
    """90: the same for a file, which to stock is never in use (D02)."""
    assert_one_succeeds(runner, guest, image())


@F_FRESH
def test_share_scan_cost(fresh_runner, guest, block_device):
    """91: 500 existing backends: lock held below 0.5 s on one connection (D22)."""
    crowd(fresh_runner.place.store, 500)
    disk = guest().disk(block_device())
    before = fresh_runner.proxy.accepted
    with Stopwatch(fresh_runner.place.block_lock) as watch:
        assert_ok(fresh_runner, disk)
    assert watch.seconds < 0.5
    assert fresh_runner.proxy.accepted - before <= 1


def crowd(store, count):
    """Backends of other guests, four a guest, with devices that nobody else uses."""
    for index in range(count // 4):
        guest = Guest(store)
        for number in range(4):
            guest.disk("/dev/null", keys={"physical-device": f"fe:{4 * index + number + 256:x}"})


class Stopwatch:
    """Measures for how long a lock file exists."""

    def __init__(self, path):
        self.path = path
        self.seconds = 0.0

    def __enter__(self):
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _look(self):
        last = time.monotonic()
        while not self._ended.wait(0.001):
            now = time.monotonic()
            if self.path.exists():
                self.seconds += now - last
            last = now


@F
@pytest.mark.parametrize("first", ["file", "device"])
def test_share_a_file_and_a_loop_device_on_it(runner, guest, image, block_device, first):
    """84: who has a loop device has its file, and the other way round."""
    file = image()
    device = block_device(file)
    if first == "file":
        assert_ok(runner, guest().disk(file, "w"))
        prefix = f"Device {device} is on a file that is loopback-mounted through"
    else:
        assert_ok(runner, guest().disk(device, "w"))
        prefix = f"File {file} is loopback-mounted through"
    disk = guest().disk(device if first == "file" else file, "r")
    assert runner.add(disk).status == 1
    assert disk.read("hotplug-status") == b"busy"
    text = disk.read("hotplug-error").decode()
    assert text.startswith(prefix), text
    assert_ok(runner, guest().disk(device if first == "file" else file, "w!"))


@F
def test_share_a_loop_device_of_ours(runner, guest, image):
    """84: who was given the loop device of another guest has its file, also when that has gone."""
    file = image()
    first = guest().disk(file, "r")
    assert_ok(runner, first)
    loop = loops.only_one(file)
    assert_ok(runner, guest().disk(loop.path, "r"))
    with open(loop.path, "rb"):  # as blkback has it
        assert runner.remove(first).status == 0
        first.delete()
        assert_busy(runner, guest().disk(file, "w"), busy_file(file, loop.number, "w", "guest"))
    loops.wait_until_none(file)


@F
def test_share_parts_of_a_file(runner, guest, image, block_device):
    """84: two loop devices that have no byte in common are two disks."""
    file = image(size=8192)
    first = block_device(file, "--sizelimit", "4096")
    second = block_device(file, "--offset", "4096")
    whole = block_device(file)
    assert_ok(runner, guest().disk(first, "w"))
    assert_ok(runner, guest().disk(second, "w"))
    assert runner.add(guest().disk(whole, "w")).status == 1


@F
@pytest.mark.parametrize("kinds", [("vbd", "vbd3"), ("vbd3", "vbd")])
def test_share_between_kinds(runner, guest, image, kinds):
    """84: a backend of another kind is a user as well."""
    file = image()
    for kind, status in zip(kinds, (0, 1), strict=True):
        disk = guest().disk(file, kind=kind)
        assert runner.add(disk, variables={"XENBUS_TYPE": kind}).status == status
    assert disk.read("hotplug-status") == b"busy"
