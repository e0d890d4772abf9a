"""Checklist lines 66 to 91: may this disk be opened, while others have it?

The holder's ``add`` always comes first and is a real one, so that the keys the check looks at are
those that the same scripts write.
"""

from __future__ import annotations

import os
import threading
import time
import uuid

import pytest
from harness import loops
from harness.guests import Guest
from harness.lines import F_DRIVER, F_FRESH, F, K

BUSY = {
    ("w", "guest"): "in a guest domain,\nand so cannot be mounted now.",
    ("w", "local"): "in the privileged domain,\nand so cannot be mounted by a guest.",
    ("r", "guest"): "read-write in a guest domain,\nand so cannot be mounted read-only now.",
    ("r", "local"): (
        "read-write in the privileged domain,\nand so cannot be mounted read-only by a guest."
    ),
}


def busy_device(device, mode, where):
    """The text of contract 3.4 for a block device."""
    return f"Device {device} is mounted {BUSY[mode, where]}"


def busy_file(file, number, mode, where):
    """The text of contract 3.4 for a file."""
    return (
        f"File {file} is loopback-mounted through {number},\nwhich is mounted {BUSY[mode, where]}"
    )


def assert_ok(runner, disk):
    result = runner.add(disk)
    assert result.status == 0
    keys = disk.tree()
    assert keys["hotplug-status"] == b"connected"
    assert "hotplug-error" not in keys


def assert_busy(runner, disk, text):
    result = runner.add(disk)
    assert result.status == 1
    keys = disk.tree()
    assert keys["hotplug-status"] == b"busy"
    assert keys["hotplug-error"].decode() == text
    assert not {"physical-device", "physical-device-path", "node"} & set(keys)


@pytest.fixture
def hold(at, guest, block_device):
    """Make a block device that a guest has: (device, guest)."""

    def make(mode, holder=None):
        device = block_device()
        holder = holder or guest()
        assert_ok(at, holder.disk(device, mode))
        return device, holder

    return make


@K
def test_share_r_r(runner, guest, hold):
    """66: other VM r, me r: ok."""
    device, _ = hold("r")
    assert_ok(runner, guest().disk(device, "r"))


@K
def test_share_r_w(runner, guest, hold):
    """67: other VM w, me r: busy."""
    device, _ = hold("w")
    assert_busy(runner, guest().disk(device, "r"), busy_device(device, "r", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_w_any(runner, guest, hold, mode):
    """68: other VM r or w, me w: busy."""
    device, _ = hold(mode)
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w", "w!"])
def test_share_bang(runner, guest, hold, mode):
    """69: me w!: ok in every case."""
    device, _ = hold(mode)
    assert_ok(runner, guest().disk(device, "w!"))


@K
def test_share_bang_beside_mount(runner, guest, mounted):
    """69: me w!: ok in every case, mounted on this host included."""
    assert_ok(runner, guest().disk(mounted("rw"), "w!"))


@K
@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [("rw", "w"), ("ro", "r"), ("r!", "r"), ("!", "r"), ("x", "r"), ("rw!", "!"), ("!w", "!")],
)
def test_share_mode_spellings(runner, guest, hold, spelling, canonical):
    """70: rw is w; ro, r! and ! are r; rw! is w!."""
    read_only, _ = hold("r")
    writable, _ = hold("w")
    beside_reader = guest().disk(read_only, spelling)
    beside_writer = guest().disk(writable, spelling)
    match canonical:
        case "!":
            assert_ok(runner, beside_reader)
            assert_ok(runner, beside_writer)
        case "r":
            assert_ok(runner, beside_reader)
            assert_busy(runner, beside_writer, busy_device(writable, "r", "guest"))
        case "w":
            assert_busy(runner, beside_reader, busy_device(read_only, "w", "guest"))
            assert_busy(runner, beside_writer, busy_device(writable, "w", "guest"))


@K
@pytest.mark.parametrize(("spelling", "text"), [("rw", "busy"), ("ro", "ok"), ("!", "ok")])
def test_share_holder_mode_spellings(runner, guest, hold, spelling, text):
    """70: the same spellings of a holder's mode, seen by a reader."""
    device, _ = hold(spelling)
    reader = guest().disk(device, "r")
    if text == "ok":
        assert_ok(runner, reader)
    else:
        assert_busy(runner, reader, busy_device(device, "r", "guest"))


@K
def test_share_local_ro_mount(runner, guest, mounted):
    """71: mounted read-only on this host: r ok, w busy."""
    device = mounted("ro")
    assert_ok(runner, guest().disk(device, "r"))
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "local"))


@K
def test_share_local_rw_mount(runner, guest, mounted):
    """72: mounted read-write on this host: r busy, w busy."""
    device = mounted("rw")
    assert_busy(runner, guest().disk(device, "r"), busy_device(device, "r", "local"))
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "local"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_local_reported_first(runner, guest, formatted, mount, block_device, mode):
    """73: local and guest conflict: the text names the privileged domain."""
    device = block_device(formatted())
    assert_ok(runner, guest().disk(device, "w"))
    mount(device, "rw")
    assert_busy(runner, guest().disk(device, mode), busy_device(device, mode, "local"))


@K
def test_share_same_vm_value(runner, guest, hold):
    """74: equal vm values of two domids: ok."""
    device, holder = hold("w")
    assert_ok(runner, guest(vm=holder.vm).disk(device))


@K
def test_share_me_stubdom_of_holder(runner, guest, hold):
    """75: ok."""
    device, holder = hold("w")
    assert_ok(runner, guest(target=holder.domid).disk(device))


@K
def test_share_holder_stubdom_of_me(runner, guest, hold):
    """76: ok."""
    me = guest()
    device, _ = hold("w", guest(target=me.domid))
    assert_ok(runner, me.disk(device))


@K
def test_share_two_stubdoms_one_target(runner, guest, hold):
    """77: ok."""
    target = guest()
    device, _ = hold("w", guest(target=target.domid))
    assert_ok(runner, guest(target=target.domid).disk(device))


@K
def test_share_two_stubdoms_two_targets(runner, guest, hold):
    """78: busy."""
    device, _ = hold("w", guest(target=guest().domid))
    disk = guest(target=guest().domid).disk(device)
    assert_busy(runner, disk, busy_device(device, "w", "guest"))


@K
def test_share_holder_vm_missing(runner, guest, hold):
    """79: holder being torn down: ok."""
    device, holder = hold("w")
    runner.place.store.remove(f"{holder.home}/vm")
    assert_ok(runner, guest().disk(device))


@K
def test_share_my_vm_missing(runner, guest, hold):
    """80: my vm is missing, the holder has one: busy."""
    device, _ = hold("w")
    assert_busy(runner, guest(vm=None).disk(device), busy_device(device, "w", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_busy_result(runner, guest, hold, tmp_path, mode):
    """81: status busy, text exactly as in 3.4 with the newline, exit 1, no physical-device."""
    device, _ = hold("w")
    (tmp_path / "link").symlink_to(device)
    disk = guest().disk(tmp_path / "link", mode)
    assert_busy(runner, disk, busy_device(device, mode, "guest"))


@K
def test_share_own_second_vdev(runner, guest, hold):
    """82: same guest, two vdevs: ok."""
    device, holder = hold("w")
    assert_ok(runner, holder.disk(device))


@K
def test_share_whole_entry_match(runner, guest, block_device):
    """83: 17:63 does not match 7:63, nor does a longer minor number."""
    device = block_device()
    number = os.stat(device).st_rdev
    spelled = f"{os.major(number):x}:{os.minor(number):x}"
    for similar in (f"1{spelled}", f"{spelled}0", f"0{spelled}"):
        guest().disk("/dev/null", keys={"physical-device": similar})
    assert_ok(runner, guest().disk(device))


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
