"""What the backends of a driver domain want, and what becomes of those that are taken back."""

from __future__ import annotations

import pytest
from fakes_store import FakeStore

from hotplug.events import Action, Device
from hotplug.kernel import devd
from hotplug.sources import watches
from hotplug.sources.watches import Keys

DISK = Device("vbd", 5, 51712)
CARD = Device("vif", 5, 0)


@pytest.mark.parametrize(
    ("path", "device"),
    [
        ("backend/vbd/5/51712/state", DISK),
        ("/local/domain/3/backend/vbd/5/51712/online", DISK),
        ("backend/vif/5/0/state", CARD),
        ("backend/vbd/5/51712/params", None),
        ("backend/vbd/5/51712", None),
        ("backend/qdisk/5/51712/state", None),
        ("backend/vbd/x/y/state", None),
        ("backend", None),
    ],
)
def test_watched_paths(path, device):
    assert watches.watched_device(path) == device


def test_devices_that_need_a_qemu():
    path = "backend/qdisk/5/51712/state"
    assert watches.watched_device(path, watches.QEMU_KINDS) == Device("qdisk", 5, 51712)


@pytest.mark.parametrize(
    ("state", "online", "action"),
    [
        (b"2", b"1", Action.ADD),
        (b"6", b"0", Action.REMOVE),
        (b"6", b"1", None),  # it reconnects
        (b"1", b"1", None),
        (b"4", b"1", None),
        (b"5", b"0", None),
        (None, None, None),
    ],
)
def test_states_of_disks(state, online, action):
    event = watches.event_for(DISK, Keys(state, online, b"/etc/xen/scripts/block"))
    assert (event.action if event else None) is action


@pytest.mark.parametrize(
    ("state", "online", "status", "is_known", "action"),
    [
        (b"2", b"1", b"", False, Action.ONLINE),
        (b"2", b"1", None, False, Action.ONLINE),
        (b"2", b"1", b"", True, Action.ONLINE),  # by an agent that died in the middle
        (b"2", b"1", b"error", False, Action.ONLINE),
        (b"2", b"1", b"connected", False, None),  # served; the guest is not there yet
        (b"4", b"1", b"connected", False, None),
        (b"4", b"1", None, True, None),  # the kernel deleted it
        (b"4", b"1", None, False, Action.ONLINE),  # the kernel did not wait for us
        (b"4", b"1", b"error", False, None),
        (b"6", b"1", b"connected", True, None),
        (b"6", b"0", b"connected", True, Action.OFFLINE),
        (b"6", b"0", None, False, Action.OFFLINE),
        (b"1", b"1", b"", False, None),
    ],
)
def test_states_of_cards(state, online, status, is_known, action):
    keys = Keys(state=state, online=online, hotplug_status=status)
    event = watches.event_for(CARD, keys, is_known=is_known)
    assert (event.action if event else None) is action


def test_the_words_for_a_disk():
    event = watches.event_for(DISK, Keys(b"2", b"1", b"/srv/mine"))
    assert (event.script, event.arguments) == ("/srv/mine", ("add",))
    assert event.variables == {
        "XENBUS_PATH": "backend/vbd/5/51712",
        "XENBUS_TYPE": "vbd",
        "XENBUS_BASE_PATH": "backend",
        "script": "/srv/mine",
    }


def test_the_words_for_a_card():
    keys = Keys(b"2", b"1", b"/srv/mine", b"vif", b"eth1")
    event = watches.event_for(CARD, keys)
    assert (event.script, event.arguments) == ("/srv/mine", ("online", "type_if=vif"))
    assert event.variables == {
        "XENBUS_PATH": "backend/vif/5/0",
        "XENBUS_TYPE": "vif",
        "XENBUS_BASE_PATH": "backend",
        "script": "/srv/mine",
        "vif": "vif5.0",
        "netdev": "eth1",
    }


def test_a_card_with_an_emulated_one_beside_it():
    event = watches.event_for(CARD, Keys(state=b"6", online=b"0", type=b"vif_ioemu"))
    assert (event.script, event.arguments) == (
        "/etc/xen/scripts/vif-bridge",
        ("offline", "type_if=vif"),
    )
    assert event.variables["INTERFACE"] == "vif5.0-emu"
    assert event.variables["netdev"] == ""


def closed(*paths, **more):
    keys = {f"{path}/{key}": value for path in paths for key, value in (("state", b"6"),)}
    return FakeStore({**keys, **{f"{path}/online": b"0" for path in paths}, **more})


def test_a_backend_goes_with_what_is_empty_above_it():
    store = closed("backend/vif/5/0", "backend/vif/5/1", "backend/vbd/5/51712")
    watches.delete_backend(store, CARD)
    assert store.directory("backend/vif/5") == ["1"]
    watches.delete_backend(store, Device("vif", 5, 1))
    assert store.directory("backend") == ["vbd"]


def test_a_backend_that_came_to_life_again_stays():
    store = closed("backend/vif/5/0")
    store.write("backend/vif/5/0/state", b"2")
    watches.delete_backend(store, CARD)
    assert store.read("backend/vif/5/0/state") == b"2"


@pytest.mark.parametrize(
    ("command", "is_devd"),
    [
        ("xl devd", True),
        ("/usr/lib/xen-4.17/bin/xl devd -F", True),
        ("xl -vvv devd --pidfile /run/xldevd.pid", True),
        ("xl create devd", False),
        ("vi devd", False),
        ("xl", False),
        ("", False),
    ],
)
def test_the_command_line_of_devd(command, is_devd):
    assert devd.is_devd(command.split()) is is_devd
