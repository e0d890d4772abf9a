"""A card's way back into a real bridge, whose ports begin anew when they leave it.

A port's cost stands for its VLANs here, which many a kernel's bridges do not know: it too is kept
as long as the port is one, and forgotten with it.
"""

from __future__ import annotations

import contextlib
import json

import pytest
from fakes_host import World
from harness.cards import assert_port
from harness.netns import netns

from hotplug.events import Action, Device, Event
from hotplug.handlers import table
from hotplug.kernel.links import KernelLinks

CARD, LINK = Device("vif", 5, 0), "vif5.0"
COST = 77


class Vlanless(KernelLinks):
    """Takes VLANs, and has none."""

    def set_vlans(self, port, bridge, vlans):
        pass


class Card:
    """A guest's card on a bridge."""

    def __init__(self, tmp_path, net, links):
        self.world, self.net = World(tmp_path, links=links), net
        for key, value in {"bridge": "xenbr0", "mac": "00:16:3e:00:00:05", "state": "2"}.items():
            self.world.store.write(f"{CARD}/{key}", value.encode())

    def online(self, vlan):
        """With this for the key; True if the port is the one that it was."""
        if vlan is None:
            self.world.store.remove(f"{CARD}/vlan")
        else:
            self.world.store.write(f"{CARD}/vlan", vlan)
        words = (Action.ONLINE, "type_if=vif")
        event = Event(Action.ONLINE, CARD, "/etc/xen/scripts/vif-bridge", words, {"vif": LINK})
        table.handler(event)(self.world.host(), event)
        assert_port(self.net, LINK)
        return self.cost() == COST

    def cost(self):
        (port,) = json.loads(self.net.run("bridge", "-j", "link", "show", "dev", LINK).stdout)
        return port["cost"]

    def mark(self):
        self.net.run("bridge", "link", "set", "dev", LINK, "cost", str(COST))


@pytest.fixture
def card(tmp_path):
    with netns() as net:
        net.add_bridge("xenbr0")
        net.add_vif(LINK)
        with net.entered(), contextlib.closing(Vlanless()) as links:
            yield Card(tmp_path, net, links)


@pytest.mark.parametrize("vlan", [None, b""])
def test_a_port_that_shall_be_in_no_vlan_any_more_begins_anew(card, vlan):
    card.online(b"10")
    card.mark()
    assert not card.online(vlan)
    card.mark()
    assert card.online(vlan)


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, b"10"), (b"10", b"20")])
def test_a_port_else_stays_as_it_is(card, before, after):
    """Exactly these VLANs are set there."""
    card.online(before)
    card.mark()
    assert card.online(after)
