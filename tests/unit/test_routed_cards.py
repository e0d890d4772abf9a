"""vif-route and vif-nat without a kernel: killed after each step, and refused at each."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from fakes_host import Killed, World
from fakes_links import FakeLinks
from fakes_network import FakeFirewall

from hotplug.errors import BackendGoneError, HotplugError
from hotplug.events import Action, Device, Event
from hotplug.handlers import table
from hotplug.network import Address, Change, Route

DEVICE = Device("vif", 5, 0)
MAC = "00:16:3e:00:00:05"
SCRIPTS = ("vif-nat", "vif-route")
MAIN = "192.0.2.1"


class Cards:
    """A host with a link to the outside, and a guest with one card."""

    def __init__(self, tmp_path, script):
        self.links = FakeLinks()
        self.firewall = FakeFirewall()
        self.world = World(tmp_path, links=self.links, firewall=self.firewall)
        self.links.life = self.world.life
        self.script = script
        self.outside = self.links.add("eth0")
        self.links.change(self.outside, Address(MAIN, 24), Change(up=True))
        self.vif = self.links.add("vif5.0")
        self.links.calls.clear()
        self.keys = {"frontend-id": "5", "handle": "0", "mac": MAC, "state": "2"}

    def has(self, **keys):
        for name, value in {**self.keys, **keys}.items():
            self.world.store.write(f"{DEVICE.path}/{name}", value.encode())
        return self

    def run(self, action, role="vif", note=lambda _: None):
        name = "vif5.0-emu" if role == "tap" else "vif5.0"
        variable = "INTERFACE" if role == "tap" else "vif"
        words = (action, f"type_if={role}")
        event = Event(action, DEVICE, self.script, words, {variable: name})
        host = dataclasses.replace(self.world.host(), note=note)
        table.handler(event)(host, event)

    def online(self):
        self.run(Action.ONLINE)

    def offline(self):
        self.run(Action.OFFLINE)

    def reclaim(self):
        event = Event(Action.RECLAIM, DEVICE)
        table.handler(event)(self.world.host(), event)

    def killed_after(self, steps):
        """Whether it came to that."""
        self.world.life.steps = steps
        try:
            self.online()
        except Killed:
            return True
        finally:
            self.world.life.steps = None
        return False

    @property
    def status(self):
        return self.world.store.read(f"{DEVICE.path}/hotplug-status")

    @property
    def state(self):
        """Everything about the links that a test may compare."""
        links = self.links
        return (
            sorted(links.links.values(), key=lambda link: link.index),
            links.of_links,
            sorted(links.table, key=str),
            links.neighbours,
            links.proxied,
            links.arp_proxies,
        )

    @property
    def is_clean(self):
        """Whether nothing is left that would outlive the link, or serve it."""
        links = self.links
        vif = links.get(self.vif.index)
        left = [vif.up, links.addresses(vif), links.routes(vif), links.neighbours, links.proxied]
        return not any(left) and not self.firewall.guards and self.world.journal(DEVICE) is None


ADDRESSES = {
    "vif-route": "10.0.0.2 10.1.0.0/16 2001:db8::2 2001:db8:1::/64",
    "vif-nat": "10.0.0.2",
}


@pytest.fixture(params=SCRIPTS)
def make(request, tmp_path):
    """Hosts of the same kind, one after the other."""
    count = itertools.count()

    def new():
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return Cards(folder, request.param).has(ip=ADDRESSES[request.param])

    return new


def test_route_does_as_said(tmp_path):
    cards = Cards(tmp_path, "vif-route").has(ip=ADDRESSES["vif-route"])
    cards.online()
    assert cards.links.routes(cards.vif) == [
        Route("10.0.0.2/32", 2, MAIN),
        Route("10.1.0.0/16", 2, MAIN),
        Route("2001:db8::2/128", 2),
        Route("2001:db8:1::/64", 2),
    ]
    index = cards.vif.index
    assert cards.links.neighbours == {(index, "10.0.0.2"): MAC, (index, "2001:db8::2"): MAC}
    assert cards.links.proxied == {(cards.outside.index, "2001:db8::2")}
    assert cards.status == b"connected"


def test_an_event_is_few_requests(make):
    """One before the filter of packets, one after it, and one for the outer link's neighbours."""
    cards = make()
    cards.links.requests = 0
    cards.online()
    assert cards.links.requests == (3 if cards.script == "vif-route" else 2)
    assert cards.links.calls.count("change") == 1
    assert cards.links.calls.index("add_neighbour") < cards.links.calls.index("change")


def test_killed_after_each_step_and_run_again(make):
    whole = make()
    whole.online()
    for steps in itertools.count(1):
        cards = make()
        if not cards.killed_after(steps):
            break
        assert cards.status is None
        cards.online()
        assert cards.state == whole.state
        assert cards.status == b"connected"
    assert steps > 4


def test_killed_after_each_step_and_taken_back(make):
    for steps in itertools.count(1):
        cards = make()
        came_to_that = cards.killed_after(steps)
        cards.offline()
        assert cards.is_clean
        if not came_to_that:
            break


def test_killed_after_each_step_and_reclaimed(make):
    """The backend went and nobody asked: what outlives the link is taken back."""
    for steps in itertools.count(1):
        cards = make()
        came_to_that = cards.killed_after(steps)
        cards.world.store.remove(DEVICE.path)
        cards.links.remove(cards.vif)
        cards.reclaim()
        assert cards.links.proxied == set()
        assert cards.firewall.guards == {}
        assert cards.world.journal(DEVICE) is None
        if not came_to_that:
            break


def test_killed_after_each_step_while_the_backend_stays(make):
    """The next start of the agent takes back what was half done, and nothing else."""
    for steps in itertools.count(1):
        cards = make()
        came_to_that = cards.killed_after(steps)
        cards.reclaim()
        assert cards.is_clean or not came_to_that
        if not came_to_that:
            break
    assert cards.status == b"connected"
    cards.world.store.remove(f"{DEVICE.path}/hotplug-status")  # as some kernels do
    before = cards.state
    cards.reclaim()
    assert cards.state == before
    assert cards.links.get(cards.vif.index).up


OPERATIONS = ("change", "add_address", "add_neighbour", "replace_route", "proxy_arp")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_refused_at_each_step(make, operation):
    cards = make()
    cards.links.refused[operation] = 12  # ENOMEM
    with pytest.raises(HotplugError, match=r"vif5\.0 cannot be set up: Cannot allocate memory"):
        cards.online()
    cards.links.refused.clear()
    assert cards.status is None
    if operation != "change":  # then the way back is refused as well
        assert cards.is_clean


def test_removal_goes_on_where_a_step_is_refused(make):
    cards = make()
    cards.online()
    notes = []
    cards.links.refused["flush_addresses"] = 12
    cards.run(Action.OFFLINE, note=notes.append)
    assert notes == ["vif5.0: Cannot allocate memory"]
    assert not cards.links.get(cards.vif.index).up
    assert cards.links.proxied == set()


def test_removal_of_what_the_stock_script_set_up(make):
    """It left no word in the journal."""
    cards = make()
    steps = (Address(MAIN, 32), Change(up=True), Route("10.0.0.2/32", 2, MAIN))
    cards.links.change(cards.vif, *steps)
    cards.offline()
    assert cards.is_clean


def test_backend_gone(make):
    cards = make()
    cards.world.store.remove(DEVICE.path)
    with pytest.raises(BackendGoneError):
        cards.online()
    assert cards.is_clean
    cards.offline()


def test_link_gone_before_offline(make):
    cards = make()
    cards.online()
    cards.links.remove(cards.vif)
    cards.offline()
    assert cards.links.proxied == set()
    assert cards.world.journal(DEVICE) is None


def test_other_addresses_the_next_time(tmp_path):
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2 2001:db8::2")
    cards.online()
    cards.has(ip="10.0.0.3 2001:db8::3")
    cards.online()
    assert cards.links.routes(cards.vif) == [
        Route("10.0.0.3/32", 2, MAIN),
        Route("2001:db8::3/128", 2),
    ]
    assert cards.links.proxied == {(cards.outside.index, "2001:db8::3")}


def test_tap_beside_a_routed_vif(tmp_path):
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2 2001:db8::2")
    tap = cards.links.add("vif5.0-emu")
    cards.online()
    cards.run(Action.ADD, "tap")
    assert {r.metric for r in cards.links.routes(tap)} == {1}
    assert {r.metric for r in cards.links.routes(cards.vif)} == {2}
    cards.run(Action.REMOVE, "tap")
    assert cards.links.routes(tap) == []
    assert cards.links.proxied == {(cards.outside.index, "2001:db8::2")}  # the vif's
    cards.offline()
    assert cards.is_clean


@pytest.mark.parametrize("number", [13, 22, 97])  # EACCES, EINVAL, EAFNOSUPPORT
def test_a_host_without_ipv6(tmp_path, number):
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2 2001:db8::2")
    refuse_ipv6(cards.links, number)
    cards.online()
    assert cards.status == b"connected"
    assert cards.links.routes(cards.vif) == [Route("10.0.0.2/32", 2, MAIN)]


def refuse_ipv6(links, number):
    """Have what is about an IPv6 address fail."""
    for name in ("_replace_route", "_add_neighbour", "_proxy_neighbour"):
        setattr(links, name, refusing(getattr(links, name), number))


def refusing(operation, number):
    def run(link, what, *more):
        if ":" in getattr(what, "destination", what):
            raise OSError(number, "no IPv6 here", link.name)
        operation(link, what, *more)

    return run


def test_without_mac_nobody_is_held_to_anything(tmp_path):
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2", mac="")
    with pytest.raises(HotplugError, match="/mac: is not set"):
        cards.online()
    assert cards.is_clean


def test_unless_that_is_off(tmp_path):
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2", mac="")
    cards.world.config = dataclasses.replace(cards.world.config, antispoof="never")
    cards.online()
    assert cards.links.neighbours == {}
    assert cards.firewall.guards == {}
    assert cards.status == b"connected"


def test_an_address_on_an_interface_of_this_host(tmp_path):
    """Of no guest's; where it is held to its addresses, they are refused for that."""
    cards = Cards(tmp_path, "vif-route").has(ip="10.0.0.2 fe80::1%eth0")
    cards.world.config = dataclasses.replace(cards.world.config, antispoof="never")
    with pytest.raises(HotplugError, match="/ip: 'fe80::1%eth0' names an interface"):
        cards.online()
    assert cards.is_clean


def test_held_to_its_addresses(make):
    cards = make()
    cards.online()
    known = set(ADDRESSES[cards.script].split())
    (allowed,) = cards.firewall.guards.values()
    assert (allowed.mac, set(allowed.addresses), allowed.routed) == (MAC, known, True)
    cards.offline()
    assert cards.firewall.guards == {}


def test_the_filter_comes_before_the_link_goes_up_and_goes_after_it(make):
    cards = make()
    seen = []
    real = cards.links.apply

    def watch(link, steps):
        ups = [step.up for step in steps if isinstance(step, Change)]
        seen.extend((up, "vif5.0" in cards.firewall.guards) for up in ups)
        return real(link, steps)

    cards.links.apply = watch
    cards.online()
    cards.online()
    cards.offline()
    assert seen == [(True, True), (False, True), (True, True), (False, True)]


def test_nat_with_bits_is_one_address(tmp_path):
    cards = Cards(tmp_path, "vif-nat").has(ip="10.0.0.2/16")
    cards.online()
    assert cards.firewall.guards["vif5.0"].addresses == ("10.0.0.2",)


def test_nat_without_ip_fixes_no_neighbour(tmp_path):
    """Nothing says that the guest may not have several MACs there."""
    cards = Cards(tmp_path, "vif-nat").has()
    cards.online()
    assert cards.links.neighbours == {}
    assert cards.firewall.guards == {}
    assert cards.links.routes(cards.vif) == [Route("10.0.5.1/32", 0, "10.0.5.128")]
