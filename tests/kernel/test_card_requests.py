"""How often the kernel is asked about links, and told to change one, in a card's event.

``ASK`` is a datagram to rtnetlink that changes nothing, ``CHANGE`` any other: one of these sets up
a port, two do where the packets' filter comes between. Whoever needs more for an event has to say
so here.
"""

from __future__ import annotations

import contextlib

import pytest
from fakes_host import World
from fakes_network import FakeFirewall
from harness.cards import assert_port, assert_released
from harness.netns import netns

from hotplug.events import Action, Device, Event
from hotplug.handlers import table
from hotplug.kernel.links import KernelLinks
from hotplug.kernel.rtnetlink import split
from hotplug.kernel.rtnetlink_request import Request

CARD, LINK = Device("vif", 5, 0), "vif5.0"
KEYS = {"bridge": "xenbr0", "mac": "00:16:3e:00:00:05", "state": "2", "frontend-id": "5"}
ASK, CHANGE = "ask", "change"


class Counting:
    """A socket that writes down what is sent."""

    def __init__(self, inner):
        self.inner, self.sent = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def send(self, data):
        requests = [Request(kind, b"") for kind, _, _, _ in split(data)]
        self.sent.append(ASK if all(request.asks for request in requests) else CHANGE)
        return self.inner.send(data)


class Card:
    """A guest's card, its link, and how it gets on a bridge or is routed to."""

    def __init__(self, tmp_path, net, links):
        self.net = net
        self.firewall = FakeFirewall()
        self.firewall.filters_bridges = False
        self.world = World(tmp_path, links=links, firewall=self.firewall)
        links.find("lo")
        self.counting = links._kernel._socket = Counting(links._kernel._socket)

    def has(self, **keys):
        for key, value in {**KEYS, **keys}.items():
            self.world.store.write(f"{CARD}/{key}", value.encode())

    def run(self, script, action):
        """What was sent for an event."""
        self.counting.sent.clear()
        words = (action, "type_if=vif")
        event = Event(action, CARD, f"/etc/xen/scripts/{script}", words, {"vif": LINK})
        table.handler(event)(self.world.host(), event)
        return list(self.counting.sent)


@pytest.fixture
def card(tmp_path):
    with netns() as net:
        net.add_bridge("xenbr0")
        net.add_vif(LINK)
        with net.entered(), contextlib.closing(KernelLinks()) as links:
            yield Card(tmp_path, net, links)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_port_of_a_bridge(card, renamed):
    name = "web" if renamed else LINK
    card.has(**({"vifname": name} if renamed else {}))
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, CHANGE]
    assert_port(card.net, name)
    assert card.run("vif-bridge", Action.OFFLINE) == [ASK, CHANGE]
    assert_released(card.net, name)


def test_a_port_that_is_held_to_its_addresses(card):
    """The bridge is changed for the first of its cards; a filter goes only if the link is down."""
    card.has(ip="10.0.0.2")
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, CHANGE, CHANGE, CHANGE]
    assert card.run("vif-bridge", Action.OFFLINE) == [ASK, CHANGE, ASK]
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, CHANGE, CHANGE]
    assert_port(card.net, LINK)


def test_a_bridge_that_is_looked_for(card):
    card.has(bridge="")
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, ASK, CHANGE]
    assert_port(card.net, LINK)


def test_a_port_that_is_set_up_again(card):
    """It is taken down first."""
    card.has()
    card.run("vif-bridge", Action.ONLINE)
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, CHANGE, CHANGE]
    assert_port(card.net, LINK)


def test_a_link_that_has_addresses(card):
    card.has()
    card.net.ip("address", "add", "10.0.0.1/24", "dev", LINK)
    card.net.ip("address", "add", "10.0.0.3/24", "dev", LINK)
    assert card.run("vif-bridge", Action.ONLINE) == [ASK, CHANGE, CHANGE]
    assert [address for address in card.net.addresses(LINK) if ":" not in address] == []


@pytest.mark.parametrize(
    ("ip", "proxies"),
    [("", []), ("10.0.0.2 10.1.0.0/16", []), ("10.0.0.2 2001:db8::2 2001:db8::3", [CHANGE])],
)
def test_a_routed_card(card, ip, proxies):
    """The gateway's addresses are asked for by its index, and it is another link to change."""
    card.net.add_outside("eth0", "192.0.2.1/24")
    card.has(ip=ip)
    assert card.run("vif-route", Action.ONLINE) == [ASK, ASK, CHANGE, CHANGE, *proxies]
    routes = {word.removesuffix("/32") for word in ip.split()}
    assert routes <= card.net.routes_over(LINK).keys()
    assert card.net.setting(f"ipv4/conf/{LINK}/proxy_arp") == "1"
    card.run("vif-route", Action.OFFLINE)
    assert card.net.addresses(LINK) == []


@pytest.mark.parametrize("ip", ["", "10.0.0.2"])
def test_a_card_behind_nat(card, ip):
    card.has(ip=ip)
    assert card.run("vif-nat", Action.ONLINE) == [ASK, CHANGE, CHANGE]
    assert len(card.net.routes_over(LINK)) == 1
    card.run("vif-nat", Action.OFFLINE)
    assert card.net.addresses(LINK) == []
