"""Disks on an iSCSI target, with an iscsiadm that keeps its rules."""

from __future__ import annotations

import pytest
from fakes_host import World, abandoned

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import AbandonedError, DeadlineError, DeviceBusyError, HotplugError
from hotplug.handlers.targets import iscsi
from hotplug.handlers.targets.iscsi import Portal, Session, Target
from hotplug.ports import Attachment, Number

ISCSI = "block-iscsi"
IQN = "iqn.2003-01.org.example:disk"
PORTAL = "192.0.2.1:3260"
PARAMS = f"iqn={IQN},portal=192.0.2.1"
LINK = f"/dev/disk/by-path/ip-{PORTAL}-iscsi-{IQN}-lun-0"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(iscsi, "POLL", 0)
    monkeypatch.setattr(iscsi, "MULTIPATH_POLL", 0)
    world = World(tmp_path)
    world.tell("targets", {PORTAL: [f"{IQN}2", IQN, f"x{IQN}"]})
    world.paths.devices[LINK] = lambda: ("/dev/sda", Number(8, 0)) if logins(world) else None
    return world


def logins(world):
    return world.state("sessions", [])


@pytest.mark.parametrize(
    ("text", "address", "port", "back"),
    [
        ("192.0.2.1", "192.0.2.1", 3260, "192.0.2.1:3260"),
        ("192.0.2.1:860", "192.0.2.1", 860, "192.0.2.1:860"),
        ("san.example", "san.example", 3260, "san.example:3260"),
        ("[2001:db8::1]:860", "2001:db8::1", 860, "[2001:db8::1]:860"),
        ("[2001:db8::1]", "2001:db8::1", 3260, "[2001:db8::1]:3260"),
        ("2001:db8::1", "2001:db8::1", 3260, "[2001:db8::1]:3260"),
    ],
)
def test_portals(text, address, port, back):
    portal = Portal.parse(text)
    assert (portal.address, portal.port, str(portal)) == (address, port, back)
    assert Portal.parse(back) == portal


@pytest.mark.parametrize("text", ["", ":3260", "192.0.2.1:x", "[2001:db8::1]:x", "[]"])
def test_odd_portals(text):
    with pytest.raises(HotplugError, match="is not an address"):
        Portal.parse(text)


@pytest.mark.parametrize(
    ("line", "session"),
    [
        (f"tcp: [7] 192.0.2.1:3260,1 {IQN} (non-flash)", Session(7, Portal("192.0.2.1"), IQN)),
        (f"tcp: [12] 192.0.2.1:860,-1 {IQN}", Session(12, Portal("192.0.2.1", 860), IQN)),
        (f"iser: [7] [2001:db8::1]:3260,1 {IQN} (flash)", Session(7, Portal("2001:db8::1"), IQN)),
    ],
)
def test_sessions(line, session):
    assert Session.parse(line) == session


def test_params():
    assert Target.parse(f"portal=192.0.2.1:860,x=y,multipath=y,iqn={IQN}") == Target(
        IQN, Portal("192.0.2.1", 860), multipath=True
    )


def test_add(world):
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    assert world.keys(device) == {
        "physical-device": b"8:0",
        "physical-device-path": b"/dev/sda",
        "hotplug-status": b"connected",
    }
    assert logins(world) == [[1, IQN, PORTAL]]
    assert world.journal(device).facts == {
        "path": IQN,
        "iqn": IQN,
        "portal": PORTAL,
        "session": 1,
    }
    calls = world.calls
    world.add(device, ISCSI)
    assert world.calls == calls


def test_ipv6(world):
    portal = "[2001:db8::1]:3260"
    world.tell("targets", {portal: [IQN]})
    link = f"/dev/disk/by-path/ip-2001:db8::1:3260-iscsi-{IQN}-lun-0"
    world.paths.devices[link] = ("/dev/sda", Number(8, 0))
    world.add(world.disk(5, f"iqn={IQN},portal=2001:db8::1"), ISCSI)
    assert logins(world) == [[1, IQN, portal]]


@pytest.mark.parametrize("gone", [True, False])
def test_remove(world, gone):
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    world.tell("sessions", [*logins(world), [9, f"{IQN}2", PORTAL]])
    if gone:
        world.paths.devices.clear()  # the disk and its names went before
    world.remove(device, ISCSI)
    assert logins(world) == [[9, f"{IQN}2", PORTAL]]
    assert world.journal(device) is None


def test_remove_what_is_logged_out_already(world):
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    world.tell("sessions", [])
    world.remove(device, ISCSI)
    assert world.journal(device) is None


def test_remove_leaves_what_somebody_logged_in_to_since(world):
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    world.tell("sessions", [[2, IQN, PORTAL]])
    world.remove(device, ISCSI)
    assert logins(world) == [[2, IQN, PORTAL]]


def test_a_logout_that_fails_is_told_and_tried_again(world):
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    world.tell("faults", {f"iscsiadm -m node --targetname {IQN} -p {PORTAL} --logout": 28})
    with pytest.raises(HotplugError, match=r"--logout failed: iscsiadm: told to fail \(exit"):
        world.remove(device, ISCSI)
    world.tell("faults", {})
    world.remove(device, ISCSI)
    assert logins(world) == []


@pytest.mark.parametrize("other", [f"{IQN}2", f"x{IQN}"])
def test_a_longer_name_is_another_target(world, other):
    world.tell("sessions", [[1, other, PORTAL]])
    world.tell("last", 1)
    device = world.disk(5, PARAMS)
    world.add(device, ISCSI)
    world.remove(device, ISCSI)
    assert logins(world) == [[1, other, PORTAL]]
    world.tell("targets", {PORTAL: [other]})
    with pytest.raises(HotplugError, match=rf"^No matching target iqn found: .* has no {IQN}$"):
        world.add(world.disk(6, PARAMS), ISCSI)


def test_the_portal_does_not_answer(world):
    world.tell("targets", {})
    with pytest.raises(
        HotplugError, match=r"^No matching target iqn found at 192.0.2.1:3260: .*21"
    ):
        world.add(world.disk(5, PARAMS), ISCSI)


@pytest.mark.parametrize("portal", [PORTAL, "192.0.2.9:3260"])
def test_somebody_is_logged_in(world, portal):
    world.tell("sessions", [[3, IQN, portal]])
    device = world.disk(5, PARAMS)
    with pytest.raises(
        HotplugError, match=rf"^Device already opened: {IQN}, session 3 at {portal}"
    ):
        world.add(device, ISCSI)
    world.remove(device, ISCSI)
    assert logins(world) == [[3, IQN, portal]]


def test_somebody_is_faster(world):
    """iscsiadm says so, and the session is his."""
    line = f"iscsiadm -m node --targetname {IQN} -p {PORTAL} --login"
    world.tell("faults", {line: "late 15"})
    device = world.disk(5, PARAMS)
    with pytest.raises(HotplugError, match=r"^Device already opened: .* somebody else was faster"):
        world.add(device, ISCSI)
    assert logins(world) == [[1, IQN, PORTAL]]
    assert world.journal(device) is None


@pytest.mark.parametrize("fault", [8, "late 8", "hang"])
def test_a_login_that_fails(world, fault):
    world.tell("faults", {f"iscsiadm -m node --targetname {IQN} -p {PORTAL} --login": fault})
    device = world.disk(5, PARAMS)
    with pytest.raises(
        HotplugError, match=f"iscsiadm -m node --targetname {IQN} -p {PORTAL} --login"
    ):
        world.add(device, ISCSI)
    assert logins(world) == []
    assert world.journal(device) is None


@pytest.mark.parametrize("step", ["-m discovery", "-m session"])
@pytest.mark.parametrize("fault", [18, "hang"])
def test_other_failures(world, step, fault):
    world.tell("faults", {f"iscsiadm {step}": fault})
    device = world.disk(5, PARAMS)
    with pytest.raises(HotplugError):
        world.add(device, ISCSI)
    assert logins(world) == []
    assert world.journal(device) is None


def test_sessions_that_make_no_sense(world):
    world.tell("sessions", [["x", IQN, PORTAL]])
    with pytest.raises(HotplugError, match="make no sense"):
        world.add(world.disk(5, PARAMS), ISCSI)


def test_no_disk_appears(world):
    """The wait ends with the event, and the login with it."""
    world.paths.devices.clear()
    deadline = EventDeadline(0.02)
    device = world.disk(5, PARAMS)
    with pytest.raises(DeadlineError, match=f"while waiting for {LINK}"):
        world.add(device, ISCSI, deadline)
    assert logins(world) == []
    assert world.journal(device) is None


def test_nobody_waits_for_it(world):
    world.paths.devices[LINK] = lambda: deadline.abandon() and None
    deadline = EventDeadline(35.0)
    with pytest.raises(AbandonedError):
        world.add(world.disk(5, PARAMS), ISCSI, deadline)
    assert logins(world) == []
    with pytest.raises(AbandonedError):
        world.add(world.disk(5, PARAMS), ISCSI, abandoned())


def test_no_block_device(world):
    world.paths.devices[LINK] = ("/dev/sg0", None)
    with pytest.raises(HotplugError, match=r"^Unable to find attached device path"):
        world.add(world.disk(5, PARAMS), ISCSI)
    assert logins(world) == []


def test_without_iscsiadm(world):
    world.absent.add("iscsiadm")
    with pytest.raises(HotplugError, match=r"^Unable to find iscsiadm tool$"):
        world.add(world.disk(5, PARAMS), ISCSI)


class TestMultipath:
    PARAMS = f"{PARAMS},multipath=y"

    def test_add(self, world):
        world.tell("maps", {"/dev/sda": "mpatha (360014051)"})
        world.paths.devices["/dev/mapper/mpatha"] = ("/dev/dm-3", Number(253, 3))
        device = world.disk(5, self.PARAMS)
        world.add(device, ISCSI)
        keys = world.keys(device)
        assert keys["physical-device"] == b"fd:3"
        assert keys["physical-device-path"] == b"/dev/mapper/mpatha"

    def test_the_map_comes_late(self, world):
        calls = []

        def link():
            calls.append(1)
            return ("/dev/sda", Number(8, 0))

        def look(argument, variables):
            calls.append(argument)
            if len(calls) > 3:
                print("360014051 dm-3 LIO-ORG,disk")
            return 0

        world.paths.devices[LINK] = link
        world.others["multipath"] = look
        world.paths.devices["/dev/mapper/360014051"] = ("/dev/dm-3", Number(253, 3))
        world.add(world.disk(5, self.PARAMS), ISCSI)
        assert calls == [1, "-ll", "-ll", "-ll"]

    def test_no_map(self, world, monkeypatch):
        monkeypatch.setattr(iscsi, "MULTIPATH_WAIT", 0)
        with pytest.raises(HotplugError, match=r"^Unable to find attached device multipath: "):
            world.add(world.disk(5, self.PARAMS), ISCSI)
        assert logins(world) == []

    def test_without_multipath(self, world):
        world.absent.add("multipath")
        with pytest.raises(HotplugError, match=r"^Unable to find multipath$"):
            world.add(world.disk(5, self.PARAMS), ISCSI)
        assert logins(world) == []


def test_another_guest_has_the_disk(world):
    """Through some other way than us: the number tells."""
    world.disk(6, "/dev/sda", **{"physical-device": "8:0", "hotplug-status": "connected"})
    with pytest.raises(DeviceBusyError, match=r"^Device /dev/sda is mounted in a guest domain"):
        world.add(world.disk(5, PARAMS), ISCSI)
    assert logins(world) == []


def test_killed_after_any_step(world):
    device = world.disk(5, PARAMS)
    steps = 0
    while world.add_and_die(steps, device, ISCSI):
        world.remove(device, ISCSI)
        assert logins(world) == [], f"after {steps} programs"
        assert world.journal(device) is None
        steps += 1
    assert steps == 5  # discovery, session, login, session; and none at all


def test_killed_after_any_step_and_added_again(world):
    device = world.disk(5, PARAMS)
    steps = 0
    while world.add_and_die(steps, device, ISCSI):
        steps += 1
    assert len(logins(world)) == 1


def test_killed_before_a_login_that_another_made(world):
    """What the dead run wanted, another backend has now."""
    device = world.disk(5, PARAMS)
    with world.host().journal.claim(device, EventDeadline(1.0)) as entry:
        entry.record(Attachment("iscsi", {"path": IQN, "iqn": IQN, "portal": PORTAL}))
    other = world.disk(6, PARAMS)
    world.add(other, ISCSI)
    world.remove(device, ISCSI)
    assert logins(world) == [[1, IQN, PORTAL]]
    world.set(other, state="6")
    world.remove(other, ISCSI)
    assert logins(world) == []


def test_killed_before_a_login_that_a_hidden_backend_may_have(world):
    device = world.disk(5, PARAMS)
    with world.host().journal.claim(device, EventDeadline(1.0)) as entry:
        entry.record(Attachment("iscsi", {"path": IQN, "iqn": IQN, "portal": PORTAL}))
    world.tell("sessions", [[1, IQN, PORTAL]])
    world.disk(9, "/dev/x")
    world.store.forbid("backend/vbd/9")
    with pytest.raises(HotplugError, match=rf"^backend/vbd/9 in .* still needs {IQN};"):
        world.remove(device, ISCSI)
    assert logins(world) == [[1, IQN, PORTAL]]
    world.store.allow("backend/vbd/9")
    world.remove(device, ISCSI)
    assert logins(world) == []


def test_left_by_the_stock_script(world):
    world.tell("sessions", [[3, IQN, PORTAL]])
    world.remove(world.disk(5, PARAMS, **{"physical-device": "8:0"}), ISCSI)
    assert logins(world) == []
    world.remove(world.disk(5, PARAMS, **{"physical-device": "8:0"}), ISCSI)
