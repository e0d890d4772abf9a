"""Disks behind a tapdisk, with a tap-ctl that keeps its rules."""

from __future__ import annotations

import pytest
from fakes_host import World

from hotplug.errors import BackendGoneError, DeadlineError, DeviceBusyError, HotplugError
from hotplug.handlers.targets.tap import Image
from hotplug.handlers.targets.tapdisk import Row
from hotplug.ports import Number

TAP = "block-tap"
NOTHING = {"minors": [], "tapdisks": {}}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "an image.vhd"
    path.touch()
    return f"vhd:{path}"


def taps(world):
    """Numbers and tapdisks that are there."""
    state = world.state("tap", NOTHING)
    return {"minors": state["minors"], "tapdisks": state["tapdisks"]}


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("pid=12 minor=3 state=0 args=vhd:/a b", Row(12, 3, "vhd:/a b")),
        ("pid=12 minor=3 state=0 args=vhd:/a=b args=c", Row(12, 3, "vhd:/a=b args=c")),
        ("pid=12 minor=3 state=0x10", Row(12, 3)),
        ("pid=12", Row(12, None)),
        ("minor=3", Row(None, 3)),
        ("something else", Row(None, None)),
    ],
)
def test_rows(line, row):
    assert Row.parse(line) == row


def test_only_the_first_colon_separates():
    assert Image.parse("vhd:/a:b c") == Image("vhd", "/a:b c")


@pytest.mark.parametrize("params", ["vhd", "vhd:", ":/a"])
def test_bad_params(world, params):
    device = world.disk(5, params)
    with pytest.raises(HotplugError, match=r"^Cannot parse required parameters$"):
        world.add(device, TAP)


def test_without_tap_ctl(world, image):
    world.absent.add("tap-ctl")
    with pytest.raises(HotplugError, match=r"^Unable to find tap-ctl tool$"):
        world.add(world.disk(5, image, kind="vbd3"), TAP)


class TestVbd3:
    def test_keys(self, world, image):
        device = world.disk(5, image, kind="vbd3")
        world.add(device, TAP)
        assert world.keys(device) == {
            "pid": b"5000001",
            "minor": b"0",
            "physical-device-path": b"/run/blktap-control/nbd5000001.0",
            "hotplug-status": b"connected",
        }
        assert taps(world) == {"minors": [0], "tapdisks": {"5000001": {"0": image}}}
        assert world.journal(device).facts["path"] == image.partition(":")[2]

    def test_remove(self, world, image):
        device = world.disk(5, image, kind="vbd3")
        world.add(device, TAP)
        world.set(device, state="6")
        world.remove(device, TAP)
        assert taps(world) == NOTHING
        assert world.journal(device) is None
        world.remove(device, TAP)

    def test_the_second_add_does_nothing(self, world, image):
        device = world.disk(5, image, kind="vbd3")
        world.add(device, TAP)
        calls = world.calls
        world.set(device, state="4")
        world.add(device, TAP)
        assert world.calls == calls

    def test_reclaim(self, world, image):
        device = world.disk(5, image, kind="vbd3")
        world.add(device, TAP)
        world.store.remove(device.path)
        world.reclaim(device)
        assert taps(world) == NOTHING

    @pytest.mark.parametrize("path", ["backend/vbd3/9/51712", "backend/vbd3/9", "backend/vbd3"])
    def test_who_may_need_it_and_may_not_be_read(self, world, image, path):
        """Nobody's tapdisk is taken away on a guess; it is taken down when it can be known."""
        device = world.disk(5, image, kind="vbd3")
        world.add(device, TAP)
        world.disk(9, "vhd:/other", kind="vbd3")
        world.store.forbid(path)
        text = rf"^{path} in xenstore may not be read .* still needs {image};"
        with pytest.raises(HotplugError, match=text):
            world.remove(device, TAP)
        assert taps(world) != NOTHING
        assert world.journal(device) is not None
        world.store.allow(path)
        world.remove(device, TAP)
        assert taps(world) == NOTHING

    @pytest.mark.parametrize("path", ["backend/vbd3/5/51712/mode", "backend/vbd/9"])
    def test_its_own_backend_and_other_kinds_raise_no_doubt(self, world, image, path):
        device = world.disk(5, image, kind="vbd3")
        world.disk(9, image)
        world.add(device, TAP)
        world.store.forbid(path)
        world.remove(device, TAP)
        assert taps(world) == NOTHING


class TestVbd:
    @pytest.fixture(autouse=True)
    def driver(self, world):
        world.tell("generation", "kernel")
        path = "/dev/xen/blktap-2/tapdev0"
        world.paths.devices[path] = (path, Number(253, 16))

    def test_keys(self, world, image):
        device = world.disk(5, image)
        world.add(device, TAP)
        assert world.keys(device) == {
            "pid": b"5000001",
            "minor": b"0",
            "physical-device": b"fd:10",
            "physical-device-path": b"/dev/xen/blktap-2/tapdev0",
            "hotplug-status": b"connected",
        }
        assert world.calls[0] == "modprobe blktap"

    def test_without_the_driver(self, world, image):
        world.tell("generation", "unloaded")
        with pytest.raises(HotplugError, match=r"^Blocktap kernel module not available"):
            world.add(world.disk(5, image), TAP)

    def test_without_a_device(self, world, image):
        world.tell("generation", "plain")
        world.paths.devices.clear()
        device = world.disk(5, image)
        with pytest.raises(
            HotplugError, match=r'^blktap "/dev/xen/.*/tapdev0" is not a block dev$'
        ):
            world.add(device, TAP)
        assert taps(world) == NOTHING
        assert world.journal(device) is None

    def test_the_backend_goes_away_meanwhile(self, world, image):
        device = world.disk(5, image)
        path, found = world.paths.devices.popitem()

        def locate():
            world.store.remove(device.path)
            return found

        world.paths.devices[path] = locate
        with pytest.raises(BackendGoneError):
            world.add(device, TAP)
        assert taps(world) == NOTHING
        assert world.journal(device) is None
        assert world.keys(device) == {}

    def test_left_by_the_stock_script(self, world, image):
        """4.17 wrote no pid and no minor."""
        device = world.disk(5, image, **{"physical-device": "fd:10"})
        tapdisks = {"77": {"0": "vhd:/other"}, "78": {"1": image}}
        world.tell("tap", {"minors": [0, 1], "tapdisks": tapdisks})
        world.remove(device, TAP)
        assert taps(world) == {"minors": [0], "tapdisks": {"77": {"0": "vhd:/other"}}}


class TestFailures:
    @pytest.mark.parametrize(
        ("step", "text"),
        [
            ("list", "tap-ctl list failed"),
            ("allocate", "Could not allocate minor"),
            ("spawn", "Could not spawn tapdisk for 0"),
            ("attach", "Could not attach 5000001 and 0"),
            ("open", 'Could not open "vhd:'),
        ],
    )
    def test_each_step(self, world, image, step, text):
        device = world.disk(5, image, kind="vbd3")
        world.tell("faults", {f"tap-ctl {step}": 5})
        with pytest.raises(
            HotplugError, match=rf"^{text}.*: tap-ctl: told to fail \(exit status 5\)$"
        ):
            world.add(device, TAP)
        world.tell("faults", {})
        if step == "list":  # without which nothing can be taken down either
            world.remove(device, TAP)
        assert taps(world) == NOTHING
        assert world.journal(device) is None
        assert world.keys(device) == {}
        world.add(device, TAP)

    @pytest.mark.parametrize("step", ["list", "allocate", "spawn", "attach", "open"])
    def test_each_step_may_hang(self, world, image, step):
        device = world.disk(5, image, kind="vbd3")
        world.tell("faults", {f"tap-ctl {step}": "hang"})
        with pytest.raises(DeadlineError, match=f"running tap-ctl {step}"):
            world.add(device, TAP)
        world.tell("faults", {})
        world.remove(device, TAP)
        assert taps(world) == NOTHING

    def test_a_missing_image(self, world):
        device = world.disk(5, "aio:/nowhere", kind="vbd3")
        with pytest.raises(HotplugError, match="No such file or directory"):
            world.add(device, TAP)
        assert taps(world) == NOTHING

    def test_what_cannot_be_undone_stays_in_the_journal(self, world, image):
        device = world.disk(5, image, kind="vbd3")
        world.tell("faults", {"tap-ctl open": 5, "tap-ctl detach": 5})
        with pytest.raises(HotplugError, match="Could not open"):
            world.add(device, TAP)
        assert taps(world)["minors"] == [0]
        world.tell("faults", {})
        world.remove(device, TAP)
        assert taps(world) == NOTHING
        assert world.journal(device) is None


def test_killed_after_any_step(world, image):
    """Whatever had been done, the next run finds and undoes it."""
    world.tell("tap", {"minors": [0], "tapdisks": {"77": {}}})  # not ours
    others = {"minors": [0], "tapdisks": {"77": {}}}
    steps = 0
    device = world.disk(5, image, kind="vbd3")
    while world.add_and_die(steps, device, TAP):
        world.remove(device, TAP)
        assert taps(world) == others, f"after {steps} programs"
        assert world.journal(device) is None
        steps += 1
    assert steps == 6  # list, allocate, spawn, attach, open; and none at all
    world.remove(device, TAP)
    assert taps(world) == others


def test_killed_after_any_step_and_added_again(world, image):
    steps = 0
    device = world.disk(5, image, kind="vbd3")
    while world.add_and_die(steps, device, TAP):
        steps += 1
    assert len(taps(world)["minors"]) == 1
    assert len(taps(world)["tapdisks"]) == 1


class TestSharing:
    def test_a_stubdomain_uses_the_same_tapdisk(self, world, image):
        guest = world.disk(5, image, kind="vbd3", vm="/vm/a")
        stubdomain = world.disk(6, image, kind="vbd3", vm="/vm/a")
        world.add(guest, TAP)
        world.add(stubdomain, TAP)
        assert world.keys(guest) == world.keys(stubdomain)
        assert taps(world) == {"minors": [0], "tapdisks": {"5000001": {"0": image}}}

    @pytest.mark.parametrize(
        ("held", "wanted", "allowed"),
        [
            ("r", "r", True),
            ("r", "w", False),
            ("w", "r", False),
            ("w!", "r", False),
            ("w", "w", False),
            ("w", "w!", True),
        ],
    )
    def test_two_guests(self, world, image, held, wanted, allowed):
        first = world.disk(5, image, kind="vbd3", mode=held)
        second = world.disk(6, image, kind="vbd3", mode=wanted)
        world.add(first, TAP)
        if allowed:
            world.add(second, TAP)
        else:
            with pytest.raises(
                DeviceBusyError, match=r"^tap vhd file .*an image.vhd in use .*in a"
            ):
                world.add(second, TAP)
            assert world.keys(second) == {}
        assert taps(world) == {"minors": [0], "tapdisks": {"5000001": {"0": image}}}

    def test_the_same_file_as_another_type(self, world, image):
        world.add(world.disk(5, image, kind="vbd3"), TAP)
        other = world.disk(6, image.replace("vhd:", "aio:"), kind="vbd3")
        with pytest.raises(DeviceBusyError):
            world.add(other, TAP)
        assert len(taps(world)["tapdisks"]) == 1

    def test_busy_text(self, world, image):
        world.add(world.disk(5, image, kind="vbd3"), TAP)
        with pytest.raises(DeviceBusyError) as caught:
            world.add(world.disk(6, image, kind="vbd3"), TAP)
        file = image.partition(":")[2]
        assert str(caught.value) == (
            f"tap vhd file {file} in use in a guest domain,\nand so cannot be mounted now."
        )

    def test_the_last_one_takes_it_down(self, world, image):
        guest = world.disk(5, image, kind="vbd3", vm="/vm/a")
        stubdomain = world.disk(6, image, kind="vbd3", vm="/vm/a")
        world.add(guest, TAP)
        world.add(stubdomain, TAP)
        world.set(guest, state="6")
        world.set(stubdomain, state="4")
        world.remove(guest, TAP)
        assert taps(world)["minors"] == [0]
        world.set(stubdomain, state="6")
        world.remove(stubdomain, TAP)
        assert taps(world) == NOTHING

    def test_both_at_once(self, world, image):
        """Neither waits for the other, and neither minds that it is gone."""
        guest = world.disk(5, image, kind="vbd3", vm="/vm/a")
        stubdomain = world.disk(6, image, kind="vbd3", vm="/vm/a")
        world.add(guest, TAP)
        world.add(stubdomain, TAP)
        world.set(guest, state="6")
        world.set(stubdomain, state="5")
        world.remove(guest, TAP)
        assert taps(world) == NOTHING
        world.remove(stubdomain, TAP)

    def test_a_refused_one_does_not_keep_it(self, world, image):
        first = world.disk(5, image, kind="vbd3")
        second = world.disk(6, image, kind="vbd3")
        world.add(first, TAP)
        with pytest.raises(DeviceBusyError):
            world.add(second, TAP)
        world.set(second, hotplug_status="busy")
        world.set(first, state="6")
        world.remove(first, TAP)
        assert taps(world) == NOTHING
        world.remove(second, TAP)
        assert world.journal(second) is None

    def test_removing_a_refused_one_keeps_it(self, world, image):
        first = world.disk(5, image, kind="vbd3")
        second = world.disk(6, image, kind="vbd3")
        world.add(first, TAP)
        world.set(first, state="4")
        with pytest.raises(DeviceBusyError):
            world.add(second, TAP)
        world.set(second, hotplug_status="busy", state="6")
        world.remove(second, TAP)
        assert taps(world)["minors"] == [0]

    def test_left_by_the_stock_script(self, world, image):
        """4.19 wrote which one."""
        device = world.disk(5, image, kind="vbd3", pid="78", minor="1")
        tapdisks = {"77": {"0": image}, "78": {"1": image}}
        world.tell("tap", {"minors": [0, 1], "tapdisks": tapdisks})
        world.remove(device, TAP)
        assert taps(world) == {"minors": [0], "tapdisks": {"77": {"0": image}}}

    def test_never_attached(self, world, image):
        world.tell("tap", {"minors": [0], "tapdisks": {"77": {"0": image}}})
        world.remove(world.disk(5, image, kind="vbd3"), TAP)
        assert taps(world)["minors"] == [0]
