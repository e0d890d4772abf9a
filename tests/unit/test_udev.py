"""Uevents to events: what the rules of Xen 4.5 ran for them, and with what words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes_store import FakeStore

from hotplug.events import Action, Device
from hotplug.handlers import cleanup
from hotplug.sources import udev

RULES = Path(__file__).parents[2] / "udev-rules" / "xen-hotplug.rules"


def uevent(action, path="backend/vbd/5/51712", **more):
    kind = path.split("/")[1]
    return {
        "ACTION": action,
        "SUBSYSTEM": "xen-backend",
        "XENBUS_TYPE": kind,
        "XENBUS_PATH": path,
        "XENBUS_BASE_PATH": "backend",
        **more,
    }


def tap(name, action="add"):
    return {"ACTION": action, "SUBSYSTEM": "net", "INTERFACE": name, "IFINDEX": "7"}


def words(properties):
    """The scripts that would run, with their arguments."""
    return [(event.script, *event.arguments) for event in udev.events_for(properties)]


BLOCK = "/etc/xen/scripts/block"
BRIDGE = "/etc/xen/scripts/vif-bridge"
CLEANUP = ("/etc/xen/scripts/xen-hotplug-cleanup",)


@pytest.mark.parametrize(
    ("properties", "runs"),
    [
        (uevent("add"), [(BLOCK, "add")]),
        (uevent("remove"), [(BLOCK, "remove"), CLEANUP]),
        (uevent("online"), []),
        (uevent("bind"), []),
        (uevent("add", "backend/vif/5/0"), []),
        (
            uevent("online", "backend/vif/5/0", script="/etc/xen/scripts/vif-nat", vif="vif5.0"),
            [("/etc/xen/scripts/vif-nat", "online", "type_if=vif")],
        ),
        (uevent("offline", "backend/vif/5/0"), [(BRIDGE, "offline", "type_if=vif")]),
        (
            uevent("online", "backend/vif/5/0", script="/s/vif-route netdev=eth1"),
            [("/s/vif-route", "netdev=eth1", "online", "type_if=vif")],
        ),
        (
            uevent("online", "backend/vif/5/0", script="/my scripts/vif x=1 y=2"),
            [("/my scripts/vif", "x=1", "y=2", "online", "type_if=vif")],
        ),
        (uevent("remove", "backend/vif/5/0"), [CLEANUP]),
        (uevent("add", "backend/vscsi/5/0"), [("/etc/xen/scripts/vscsi", "add")]),
        (uevent("remove", "backend/vscsi/5/0"), [CLEANUP]),
        (uevent("remove", "backend/console/5/0"), [CLEANUP]),
        (uevent("online", "backend/vif2/5/0"), []),
        (tap("vif5.0-emu"), [(BRIDGE, "add", "type_if=tap")]),
        (tap("vif5.0-emu", "remove"), []),
        (tap("vif5.0"), []),
        (tap("eth0"), []),
        (uevent("add", "backend/vbd/5/x"), []),
        ({"ACTION": "add", "SUBSYSTEM": "xen-backend"}, []),
    ],
)
def test_what_is_run(properties, runs):
    assert words(properties) == runs


def test_the_variables_of_a_disk():
    (event,) = udev.events_for(uevent("add"))
    assert event.action is Action.ADD
    assert event.device == Device("vbd", 5, 51712)
    assert event.variables == {
        "XENBUS_TYPE": "vbd",
        "XENBUS_PATH": "backend/vbd/5/51712",
        "XENBUS_BASE_PATH": "backend",
        "ACTION": "add",
        "UDEV_CALL": "1",
    }


def test_the_variables_of_a_card():
    """``vif`` is the link's name as it is now."""
    properties = uevent("offline", "backend/vif/5/0", script="/s/vif-route netdev=eth1", vif="mine")
    (event,) = udev.events_for(properties)
    assert event.variables["vif"] == "mine"
    assert event.variables["script"] == "/s/vif-route netdev=eth1"
    assert event.variables["UDEV_CALL"] == "1"
    assert event.parameters == {"netdev": "eth1", "type_if": "vif"}


def test_arguments_in_a_script_are_no_code():
    properties = uevent("online", "backend/vif/5/0", script="/s/vif-route PATH=/tmp x=$(reboot)")
    (event,) = udev.events_for(properties)
    assert event.parameters == {"type_if": "vif"}


def test_the_variables_of_a_tap():
    (event,) = udev.events_for(tap("vif5.0-emu"))
    assert event.device == Device("vif", 5, 0)
    assert event.variables == {"INTERFACE": "vif5.0-emu", "ACTION": "add", "UDEV_CALL": "1"}


def test_the_rules_have_the_same_words():
    """What the drop-ins are told where no agent listens."""
    ran = re.findall(r'RUN\+="(?:\S*/scripts/)?(.*)"', RULES.read_text())
    assert ran == [
        "block $env{ACTION}",
        "vscsi add",
        "vif-setup $env{ACTION} type_if=vif",
        "vif-setup add type_if=tap",
        "xen-hotplug-cleanup",
    ]


DISK = Device("vbd", 5, 51712)


def left_after(nodes, device=DISK):
    store = FakeStore(nodes)
    store.transaction(lambda snapshot: cleanup.delete(snapshot, device))
    return store.nodes()


GUEST = {"/local/domain/5/vm": b"/vm/1-2", "/vm/1-2/name": b"guest"}
NODES = {
    "backend/vbd/5/51712/frontend": b"/local/domain/5/device/vbd/51712",
    "backend/vbd/5/51712/online": b"0",
    "backend/vbd/5/51712/hotplug-status": b"connected",
    "/local/domain/5/device/vbd/51712/state": b"6",
    "error/backend/vbd/5/51712/error": b"2 reading",
}


@pytest.mark.parametrize("record", ["vbd", "tap2"])
def test_cleaning_up(record):
    nodes = {**GUEST, **NODES, f"/vm/1-2/device/{record}/51712/backend": b"x"}
    assert left_after(nodes) == GUEST


def test_cleaning_up_leaves_others_alone():
    other = {
        "/local/domain/0/backend/vbd/5/51728/state": b"4",
        "/local/domain/5/device/vbd/51728/state": b"4",
        "/vm/1-2/device/vbd/51728/backend": b"x",
    }
    assert left_after({**GUEST, **NODES, **other}) == {**GUEST, **other}


def test_cleaning_up_what_is_gone():
    assert left_after(GUEST) == GUEST


def test_cleaning_up_a_guest_that_is_gone():
    gone = {name: value for name, value in NODES.items() if "/device/" not in name}
    assert left_after({**gone, "backend/vbd/5/51712/online": b"1"}) == {}


def test_a_new_backend_of_the_same_name_stays():
    new = {**GUEST, **NODES, "backend/vbd/5/51712/online": b"1"}
    assert left_after(new) == FakeStore(new).nodes()


def test_only_the_guests_own_frontend_is_deleted():
    other = {"/local/domain/6/device/vbd/51712/state": b"4"}
    forged = {"backend/vbd/5/51712/frontend": b"/local/domain/6/device/vbd/51712"}
    nodes = {**GUEST, **NODES, **other, **forged}
    assert left_after(nodes) == {
        **GUEST,
        **other,
        "/local/domain/5/device/vbd/51712/state": b"6",
    }
