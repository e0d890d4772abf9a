"""What a network card leaves behind, on a host that goes on: nobody else's is taken with it."""

from __future__ import annotations

import dataclasses
import errno
import threading
from types import SimpleNamespace

import pytest
from fakes_host import World
from fakes_links import FakeLinks
from fakes_network import FakeFirewall

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import AbandonedError, BackendGoneError, HotplugError
from hotplug.events import Action, Device, Event
from hotplug.handlers import dhcpd, table
from hotplug.kernel.lockfile import LockFiles
from hotplug.network import Address, Change

FORMER, NEXT = Device("vif", 5, 0), Device("vif", 6, 0)
MAC = "00:16:3e:00:00:05"
KEYS = {"bridge": "xenbr0", "mac": MAC, "state": "2"}


class FakeSwitch:
    """Ports by name."""

    def __init__(self):
        self.ports = {}

    def add_port(self, port, _deadline):
        self.ports[port.name] = port

    def delete_port(self, name, mac=""):
        port = self.ports.get(name)
        if port is not None and mac in ("", port.external_ids["attached-mac"]):
            del self.ports[name]


class Overtaken(FakeFirewall):
    """Something happens just before it forgets a link, if it can."""

    def __init__(self):
        super().__init__()
        self.meanwhile = None
        self.thread = None

    def unguard(self, link, **how):
        if self.meanwhile is not None:
            self.thread, self.meanwhile = threading.Thread(target=self.meanwhile), None
            self.thread.start()
            self.thread.join(0.2)
        super().unguard(link, **how)


class Cards:
    """A host with a bridge, and cards of some guests."""

    def __init__(self, tmp_path):
        self.links, self.firewall, self.switch = FakeLinks(), Overtaken(), FakeSwitch()
        parts = {"links": self.links, "firewall": self.firewall, "switch": self.switch}
        parts["locks"] = LockFiles(str(tmp_path))
        self.world = World(tmp_path, **parts)
        self.bridge = self.links.add("xenbr0", "bridge")
        self.links.change(self.links.add("eth0"), Address("192.0.2.1", 24))

    def add(self, device, **keys):
        """A card as libxl writes it, and its link."""
        for name, value in {**KEYS, **keys}.items():
            self.world.store.write(f"{device.path}/{name}", value.encode())
        guest = f"/local/domain/{device.domid}"
        self.world.store.write(f"{guest}/vm", b"/vm/1")
        self.world.store.write("/vm/1/name", b"guest")
        self.world.store.write("/vm/1/uuid", b"1")
        return self.links.add(f"vif{device.domid}.{device.devid}")

    def destroy(self, device, link):
        """As a forced removal that takes too long: no script runs."""
        self.world.store.remove(device.path)
        self.links.remove(link)

    def run(self, action, device, script, *words, deadline=None):
        name = f"vif{device.domid}.{device.devid}"
        role = "tap" if action in (Action.ADD, Action.REMOVE) else "vif"
        variables = {"vif": name, "INTERFACE": f"{name}-emu"}
        arguments = (action, f"type_if={role}", *words)
        event = Event(action, device, f"/etc/xen/scripts/{script}", arguments, variables)
        table.handler(event)(self.world.host(deadline), event)

    def reclaim(self, device):
        self.run(Action.RECLAIM, device, "block")


@pytest.fixture
def cards(tmp_path):
    return Cards(tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The files of a DHCP server; the content of its settings."""
    for name in ("conf", "settings", "service"):
        (tmp_path / name).write_text('INTERFACES=""\n' if name == "settings" else "")
    found = dhcpd.Server(*(str(tmp_path / name) for name in ("conf", "settings", "service")))
    monkeypatch.setattr(dhcpd, "find", lambda: found)
    return SimpleNamespace(read=(tmp_path / "settings").read_text)


@pytest.mark.parametrize("how", ["reclaimed", "offline"])
def test_a_name_that_the_next_guest_has(cards, how):
    """Both have the same configuration, as after a restart of the guest."""
    keys = {"ip": "10.0.0.2", "vifname": "web"}
    link = cards.add(FORMER, **keys)
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.destroy(FORMER, link)
    cards.add(NEXT, **keys)
    cards.run(Action.ONLINE, NEXT, "vif-bridge")
    if how == "reclaimed":
        cards.reclaim(FORMER)
    else:
        cards.run(Action.OFFLINE, FORMER, "vif-bridge")
    assert cards.firewall.guarded() == ["web"]
    assert cards.firewall.accepted == {"web": ("10.0.0.2",)}
    assert cards.world.journal(FORMER) is None
    cards.run(Action.OFFLINE, NEXT, "vif-bridge")
    assert cards.firewall.guarded() == []
    assert cards.firewall.accepted == {}


@pytest.mark.parametrize("script", ["vif-bridge", "vif-route"])
@pytest.mark.parametrize("how", ["reclaimed", "offline"])
def test_a_name_that_the_next_guest_gets_just_now(cards, how, script):
    keys = {"ip": "10.0.0.2", "vifname": "web"}
    link = cards.add(FORMER, **keys)
    cards.run(Action.ONLINE, FORMER, script)
    cards.destroy(FORMER, link)
    cards.add(NEXT, **keys)
    cards.firewall.meanwhile = lambda: cards.run(Action.ONLINE, NEXT, script)
    if how == "reclaimed":
        cards.reclaim(FORMER)
    else:
        cards.run(Action.OFFLINE, FORMER, script)
    cards.firewall.thread.join()
    assert cards.firewall.guarded() == ["web"]
    assert cards.world.store.read(f"{NEXT}/hotplug-status") == b"connected"


SCRIPTS = ("vif-bridge", "vif-route", "vif-nat", "vif-openvswitch")


def unaccepted(cards):
    """The links whose rules in FORWARD were to go."""
    return [call[1] for call in cards.firewall.calls if call[0] == "unaccept"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["vif5.0", "web"])
def test_rules_that_the_stock_script_set(cards, script, name):
    """The journal does not know the card. Of a renamed one the link has gone already."""
    link = cards.add(FORMER, ip="10.0.0.2", vifname="" if name == "vif5.0" else name)
    if name == "web":
        cards.links.remove(link)
    cards.firewall.accepted[name] = ()
    cards.run(Action.OFFLINE, FORMER, script)
    assert unaccepted(cards) == [name]
    assert cards.firewall.accepted == {}


@pytest.mark.parametrize("script", SCRIPTS)
def test_rules_of_a_card_that_the_journal_knows_are_no_stocks(cards, script):
    cards.firewall.filters_bridges = False
    cards.add(FORMER, ip="10.0.0.2")
    cards.run(Action.ONLINE, FORMER, script)
    cards.run(Action.OFFLINE, FORMER, script)
    assert unaccepted(cards) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_rules_of_stocks_form_that_are_the_next_guests(cards, script):
    cards.links.remove(cards.add(FORMER, ip="10.0.0.2", vifname="web"))
    cards.links.add("web")
    cards.run(Action.OFFLINE, FORMER, script)
    assert unaccepted(cards) == []


def test_iptables_that_refuses_breaks_no_removal(cards):
    link = cards.add(FORMER)
    cards.links.change(link, Change(up=True, master=cards.bridge.index))
    cards.firewall.fail("unaccept", OSError(errno.EIO, "iptables refuses", "vif5.0"))
    cards.run(Action.OFFLINE, FORMER, "vif-bridge")
    assert (cards.links.get(link.index).up, cards.links.get(link.index).master) == (False, 0)
    assert unaccepted(cards) == ["vif5.0"]


def test_a_name_that_nobody_has_any_more(cards):
    link = cards.add(FORMER, ip="10.0.0.2", vifname="web")
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.destroy(FORMER, link)
    cards.reclaim(FORMER)
    assert cards.firewall.guarded() == []
    assert cards.firewall.accepted == {}


@pytest.mark.parametrize("times", [1, 2])  # the second time the journal knows nothing of it
def test_a_switch_port_of_the_next_guest(cards, times):
    keys = {"bridge": "ovs0", "vifname": "web"}
    link = cards.add(FORMER, **keys)
    cards.run(Action.ONLINE, FORMER, "vif-openvswitch")
    cards.links.remove(link)
    cards.add(NEXT, **keys)
    cards.run(Action.ONLINE, NEXT, "vif-openvswitch")
    for _ in range(times):
        cards.run(Action.OFFLINE, FORMER, "vif-openvswitch")
    assert set(cards.switch.ports) == {"web"}
    cards.run(Action.OFFLINE, NEXT, "vif-openvswitch")
    assert cards.switch.ports == {}


@pytest.mark.parametrize("times", [1, 2])
def test_a_link_that_the_dhcp_server_serves_for_the_next_guest(cards, server, times):
    link = cards.add(FORMER, ip="10.0.0.2", vifname="web")
    cards.run(Action.ONLINE, FORMER, "vif-nat", "dhcp=yes")
    cards.links.remove(link)
    cards.add(NEXT, ip="10.0.0.2", vifname="web")
    cards.run(Action.ONLINE, NEXT, "vif-nat", "dhcp=yes")
    for _ in range(times):
        cards.run(Action.OFFLINE, FORMER, "vif-nat", "dhcp=yes")
    assert server.read() == 'INTERFACES="web "\n'
    cards.run(Action.OFFLINE, NEXT, "vif-nat", "dhcp=yes")
    assert server.read() == 'INTERFACES=""\n'


def test_a_tap_with_another_script_than_its_vif(cards):
    """Where events come from udev, a tap has vif-bridge."""
    link = cards.add(FORMER, ip="10.0.0.2 2001:db8::2")
    tap = cards.links.add("vif5.0-emu")
    cards.run(Action.ONLINE, FORMER, "vif-route")
    cards.run(Action.ADD, FORMER, "vif-bridge")
    cards.links.remove(tap)
    cards.destroy(FORMER, link)
    assert cards.links.proxied
    cards.reclaim(FORMER)
    assert cards.links.proxied == set()
    assert cards.world.journal(FORMER) is None


@pytest.mark.parametrize("action", [Action.ONLINE, Action.OFFLINE])
@pytest.mark.parametrize("other", ["vif-bridge", "vif-route"])
def test_a_guest_that_the_dhcp_server_knows_and_another_script(cards, server, action, other):
    """Whoever is asked, what the journal has was made by vif-nat."""
    cards.add(FORMER, ip="10.0.0.2")
    cards.run(Action.ONLINE, FORMER, "vif-nat", "dhcp=yes")
    assert server.read() == 'INTERFACES="vif5.0 "\n'
    cards.run(action, FORMER, other)
    assert server.read() == 'INTERFACES=""\n'
    cards.run(Action.OFFLINE, FORMER, other)
    assert cards.world.journal(FORMER) is None


@pytest.mark.parametrize("action", [Action.ONLINE, Action.OFFLINE])
@pytest.mark.parametrize("other", ["vif-bridge", "vif-nat", "vif-openvswitch"])
def test_what_the_outer_link_answers_for_and_another_script(cards, action, other):
    link = cards.add(FORMER, ip="2001:db8::2")
    cards.run(Action.ONLINE, FORMER, "vif-route")
    cards.world.store.write(f"{FORMER}/ip", b"10.0.0.2")
    cards.run(action, FORMER, other)
    assert cards.links.proxied == set()
    cards.run(Action.OFFLINE, FORMER, other)
    assert cards.links.addresses(link) == []
    assert cards.world.journal(FORMER) is None


def test_what_another_script_made_cannot_be_undone(cards):
    """It is not forgotten, and the card not set up before."""
    cards.add(FORMER, ip="10.0.0.2 2001:db8::2")
    cards.run(Action.ONLINE, FORMER, "vif-route")
    cards.links.refused["unproxy_neighbour"] = errno.ENOMEM
    with pytest.raises(HotplugError, match="eth0: Cannot allocate memory"):
        cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.run(Action.OFFLINE, FORMER, "vif-bridge")
    assert cards.world.notes == ["eth0: Cannot allocate memory"]
    cards.links.refused.clear()
    cards.run(Action.OFFLINE, FORMER, "vif-bridge")
    assert cards.links.proxied == set()
    assert cards.world.journal(FORMER) is None


@pytest.mark.parametrize("script", ["vif-bridge", "vif-route"])
def test_a_link_that_cannot_be_taken_down_stays_guarded(cards, script):
    link = cards.add(FORMER, ip="10.0.0.2")
    cards.run(Action.ONLINE, FORMER, script)
    cards.links.refused["change"] = 12  # ENOMEM
    cards.run(Action.OFFLINE, FORMER, script)
    assert cards.links.get(link.index).up
    assert cards.firewall.guarded() == ["vif5.0"]
    cards.links.refused.clear()
    cards.run(Action.OFFLINE, FORMER, script)
    assert cards.firewall.guarded() == []
    assert cards.world.journal(FORMER) is None


def meanwhile(monkeypatch, firewall, happens):
    """Something happens when all is set up and nothing told."""

    def accept(link, words, deadline):
        FakeFirewall.accept(firewall, link, words, deadline)
        happens()

    monkeypatch.setattr(firewall, "accept", accept)


def test_nobody_waits_any_more(cards, monkeypatch):
    """The way back has a time of its own."""
    cards.add(FORMER, ip="10.0.0.2")
    deadline = EventDeadline(35.0)
    meanwhile(monkeypatch, cards.firewall, deadline.abandon)
    with pytest.raises(AbandonedError):
        cards.run(Action.ONLINE, FORMER, "vif-bridge", deadline=deadline)
    assert cards.firewall.accepted == {}
    assert cards.firewall.guarded() == []
    assert cards.world.journal(FORMER) is None


def test_what_could_not_be_taken_back_is_not_forgotten(cards, monkeypatch):
    link = cards.add(FORMER, ip="10.0.0.2")
    meanwhile(monkeypatch, cards.firewall, lambda: cards.world.store.remove(FORMER.path))
    cards.firewall.fail("unguard", OSError(12, "Cannot allocate memory"))
    with pytest.raises(BackendGoneError):
        cards.run(Action.ONLINE, FORMER, "vif-bridge")
    assert cards.world.journal(FORMER) is not None
    cards.links.remove(link)
    cards.reclaim(FORMER)
    assert cards.firewall.guarded() == []
    assert cards.world.journal(FORMER) is None


def test_iptables_that_refuses_its_rules_is_noted(cards):
    """What was set nevertheless is taken back."""
    cards.add(FORMER, ip="10.0.0.2")
    cards.firewall.fail("accept", OSError(errno.EIO, "iptables refuses the rules", "vif5.0"))
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    assert cards.world.store.read(f"{FORMER}/hotplug-status") == b"connected"
    assert cards.world.notes == ["vif5.0: iptables refuses the rules"]
    cards.firewall.accepted["vif5.0"] = ()
    cards.run(Action.OFFLINE, FORMER, "vif-bridge")
    assert cards.firewall.accepted == {}


@pytest.mark.parametrize("script", ["vif-bridge", "vif-route"])
def test_a_guard_that_others_deleted_is_set_again(cards, script):
    cards.add(FORMER, ip="10.0.0.2")
    cards.run(Action.ONLINE, FORMER, script)
    (before,) = cards.firewall.guards.items()
    cards.firewall.guards.clear()
    cards.run(Action.GUARD, FORMER, "vif-bridge")
    assert list(cards.firewall.guards.items()) == [before]
    assert "others deleted the packet filter of vif5.0" in cards.world.notes[-1]
    notes = len(cards.world.notes)
    cards.run(Action.GUARD, FORMER, "vif-bridge")
    assert len(cards.world.notes) == notes  # it was there


def test_a_guard_that_cannot_be_set_again(cards):
    cards.add(FORMER, ip="10.0.0.2")
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.firewall.guards.clear()
    cards.firewall.fail("guard", OSError(errno.ENOMEM, "Cannot allocate memory"))
    with pytest.raises(HotplugError, match=r"vif5\.0 forges.*: Cannot allocate memory"):
        cards.run(Action.GUARD, FORMER, "vif-bridge")


def test_no_guard_for_a_card_that_had_none(cards):
    cards.add(FORMER)
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.run(Action.GUARD, FORMER, "vif-bridge")
    cards.run(Action.GUARD, NEXT, "vif-bridge")  # nobody knows it
    assert cards.firewall.guarded() == []
    assert cards.world.journal(NEXT) is None


@pytest.mark.parametrize(
    ("script", "ip", "expected"),
    [
        ("vif-bridge", "10.0.0.2 web1 10.1.0.0/16 2001:db8::2", ["10.0.0.2", "2001:db8::2"]),
        ("vif-route", "10.0.0.2 10.1.0.0/16 2001:db8::2", ["10.0.0.2", "2001:db8::2"]),
        ("vif-nat", "10.0.0.2/16", ["10.0.0.2"]),
        ("vif-nat", "", ["10.0.5.1"]),
    ],
)
def test_connections_of_a_guest_that_may_forge(cards, script, ip, expected):
    """Another one had its addresses before."""
    cards.world.config = dataclasses.replace(cards.world.config, antispoof="never")
    cards.add(FORMER, ip=ip)
    cards.run(Action.ONLINE, FORMER, script)
    assert cards.firewall.guarded() == []
    assert cards.firewall.forgotten == expected


def test_no_guard_under_a_name_that_the_next_guest_has(cards):
    """The next one is held to its own addresses."""
    link = cards.add(FORMER, ip="10.0.0.2", vifname="web")
    cards.run(Action.ONLINE, FORMER, "vif-bridge")
    cards.destroy(FORMER, link)
    cards.add(NEXT, ip="10.0.0.3", vifname="web")
    cards.run(Action.ONLINE, NEXT, "vif-bridge")
    cards.run(Action.GUARD, FORMER, "vif-bridge")
    assert cards.firewall.guards["web"].addresses == ("10.0.0.3",)
