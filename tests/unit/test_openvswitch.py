"""Cards on a switch, and VLANs on a bridge, without either: what is done in which order."""

from __future__ import annotations

import dataclasses
import errno

import pytest
from fakes_host import World
from hypothesis import given
from hypothesis import strategies as st

from hotplug.errors import HotplugError
from hotplug.events import Action, Device, Event
from hotplug.handlers import bridge, nat, openvswitch, route, table
from hotplug.handlers.openvswitch import Spec
from hotplug.network import Change, Link, Vlan

CARD = Device("vif", 5, 0)
VIF = "vif5.0"
MAC = "00:16:3e:00:00:01"
VLANS = st.integers(0, 4095)


class FakeLinks:
    """A vif and a bridge; every change is noted."""

    def __init__(self):
        self.all = {
            VIF: Link(7, VIF, "", "00:00:00:00:00:01", 1500, False, 0),
            "br0": Link(3, "br0", "bridge", "00:00:00:00:00:02", 1500, True, 0),
        }
        self.done = []
        self.problem = None

    def find(self, name):
        return self.all.get(name)

    def get(self, index):
        return next((link for link in self.all.values() if link.index == index), None)

    def wait_for(self, name, _deadline):
        return self.all[name]

    def find_all(self, names):
        return [self.find(name) for name in names]

    def change(self, _link, *steps):
        self.done += [step for step in steps if isinstance(step, Change)]

    def set_vlans(self, port, other, vlans):
        if self.problem is not None:
            raise self.problem
        self.done.append((port.name, other.name, vlans))


class FakeSwitch:
    """Ports by name; it can be told to fail."""

    def __init__(self):
        self.ports = {}
        self.problem = None

    def add_port(self, port, _deadline):
        self.ports[port.name] = port  # it may be there even so
        if self.problem is not None:
            raise self.problem

    def delete_port(self, name, mac=""):
        if self.problem is not None:
            raise self.problem
        port = self.ports.get(name)
        if port is not None and mac in ("", port.external_ids["attached-mac"]):
            del self.ports[name]


class Cards:
    """One card of guest 5, and what is done for it."""

    def __init__(self, folder):
        self.links, self.switch = FakeLinks(), FakeSwitch()
        self.world = World(folder, links=self.links, switch=self.switch)
        self.notes = []
        self.write(f"{CARD}/mac", MAC)
        self.write(f"{CARD}/bridge", "ovs0")
        self.write("/local/domain/5/vm", "/vm/1")
        self.write("/vm/1/name", "guest")
        self.write("/vm/1/uuid", "1")

    def write(self, path, value):
        self.world.store.write(path, value.encode())

    def read(self, key):
        return self.world.store.read(f"{CARD}/{key}")

    @property
    def host(self):
        return dataclasses.replace(self.world.host(), note=self.notes.append)

    def run(self, module, action):
        variables = {"XENBUS_PATH": CARD.path, "vif": VIF}
        event = Event(Action(action), CARD, module.SCRIPT, (action,), variables)
        table.handler(event)(self.host, event)

    def reclaim(self):
        event = Event(Action.RECLAIM, CARD)
        table.handler(event)(self.host, event)


@pytest.fixture
def cards(tmp_path):
    return Cards(tmp_path)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ovs0", Spec("ovs0", None, ())),
        ("ovs0.0", Spec("ovs0", 0, ())),
        ("my bridge.4095:1", Spec("my bridge", 4095, (1,))),
        ("0:10:20", Spec("0", None, (10, 20))),
    ],
)
def test_a_bridge_and_its_vlans(text, spec):
    assert Spec.parse("key", text) == spec


@given(st.from_regex(r"[^.:]+", fullmatch=True), st.none() | VLANS, st.lists(VLANS, max_size=4))
def test_every_spec_means_what_it_says(name, tag, trunks):
    text = name + ("" if tag is None else f".{tag}") + "".join(f":{vlan}" for vlan in trunks)
    assert Spec.parse("key", text) == Spec(name, tag, tuple(trunks))


@pytest.mark.parametrize(
    "text", ["", "a..b", "a.b", ".1", "a.1.2", "a:", "a.:1", "a.\N{SUPERSCRIPT TWO}"]
)
def test_what_is_no_spec(text):
    with pytest.raises(HotplugError, match=r"^No valid bridge was specified: key is '.*'; it"):
        Spec.parse("key", text)


def test_a_card_is_told_and_remembered(cards):
    cards.write(f"{CARD}/ip", "10.0.0.2")
    cards.run(openvswitch, "online")
    assert cards.switch.ports[VIF].external_ids == {
        "xen-vm-name": "guest",
        "xen-vm-uuid": "1",
        "attached-mac": MAC,
    }
    assert cards.links.done[-1] == Change(up=True)
    assert cards.read("hotplug-status") == b"connected"
    assert cards.world.journal(CARD).target == "vif-openvswitch"
    assert cards.notes == ["'ip' limits nothing on Open vSwitch; its own flows can"]


def test_where_all_guests_are_to_be_held_to_their_addresses(cards):
    cards.world.config = dataclasses.replace(cards.world.config, antispoof="always")
    with pytest.raises(HotplugError, match="and the setting antispoof is 'always'; use a Linux"):
        cards.run(openvswitch, "online")
    assert cards.links.done == []
    assert cards.switch.ports == {}


def test_a_driver_domain_knows_no_guests(cards):
    cards.world.store.forbid("/local/domain/5/vm")
    cards.run(openvswitch, "online")
    assert cards.switch.ports[VIF].external_ids == {"attached-mac": MAC}


def test_a_failure_leaves_no_port_but_its_own_text(cards):
    cards.switch.problem = OSError(errno.ENODEV, "Open vSwitch has no bridge of this name", "ovs0")
    with pytest.raises(HotplugError, match=r"port of ovs0: ovs0: Open vSwitch has no"):
        cards.run(openvswitch, "online")
    assert cards.links.done[-1] == Change(up=False)
    assert cards.read("hotplug-status") is None
    cards.switch.problem = None
    cards.world.store.remove(CARD.path)
    cards.reclaim()  # the port could not be taken back just now
    assert cards.switch.ports == {}
    assert cards.world.journal(CARD) is None


def test_a_run_that_was_killed_is_undone(cards):
    cards.switch.problem = KeyboardInterrupt()  # nothing can be undone either
    with pytest.raises(KeyboardInterrupt):
        cards.run(openvswitch, "online")
    cards.switch.problem = None
    assert VIF in cards.switch.ports
    cards.reclaim()  # the backend is there all the time
    assert cards.switch.ports == {}
    assert cards.world.journal(CARD) is None


def test_a_card_in_use_is_not_taken_back(cards):
    cards.run(openvswitch, "online")
    cards.reclaim()
    assert VIF in cards.switch.ports


def test_the_kernels_side_of_the_switch_is_not_asked_to_let_go(cards):
    cards.run(openvswitch, "online")
    port = dataclasses.replace(cards.links.all[VIF], master=9, master_kind="openvswitch")
    cards.links.all[VIF] = port
    cards.run(openvswitch, "offline")
    assert cards.links.done[-1] == Change(up=False)


def test_what_the_switch_keeps_is_tried_again(cards):
    cards.run(openvswitch, "online")
    cards.switch.problem = OSError(errno.ECONNREFUSED, "refused", "db.sock")
    cards.run(openvswitch, "offline")
    assert cards.notes == ["db.sock: refused"]
    cards.world.store.remove(CARD.path)
    with pytest.raises(HotplugError, match=r"^db\.sock: refused$"):
        cards.reclaim()
    cards.switch.problem = None
    cards.reclaim()
    assert cards.switch.ports == {}
    assert cards.world.journal(CARD) is None


def test_vlans_are_there_before_the_port_works(cards):
    cards.write(f"{CARD}/bridge", "br0")
    cards.write(f"{CARD}/vlan", "10p/20-30")
    cards.run(bridge, "online")
    joined, vlans, up = cards.links.done
    assert (joined.master, joined.up) == (3, None)
    assert vlans == (VIF, "br0", (Vlan(10, 10, pvid=True, untagged=True), Vlan(20, 30)))
    assert up == Change(up=True)


def test_without_vlans_it_is_one_request(cards):
    cards.write(f"{CARD}/bridge", "br0")
    cards.run(bridge, "online")
    (joined,) = cards.links.done
    assert (joined.master, joined.up) == (3, True)


@pytest.mark.parametrize("module", [nat, route])
def test_routed_cards_have_no_vlans(cards, module):
    cards.write(f"{CARD}/vlan", "10p")
    with pytest.raises(HotplugError, match="vlan is '10p', but a routed card is in no VLAN; use"):
        cards.run(module, "online")
    assert cards.links.done == []


def test_a_bridge_that_heeds_no_vlans(cards):
    cards.write(f"{CARD}/bridge", "br0")
    cards.write(f"{CARD}/vlan", "10p")
    cards.links.problem = OSError(errno.EOPNOTSUPP, "this bridge ignores VLANs", "br0")
    with pytest.raises(HotplugError, match="port of br0: this bridge ignores"):
        cards.run(bridge, "online")
    assert not any(change.up for change in cards.links.done)
    assert cards.world.journal(CARD) is None
