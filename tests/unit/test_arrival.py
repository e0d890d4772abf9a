"""What all scripts for a card that arrives do: its transaction, its claim, the way back."""

from __future__ import annotations

import errno

import pytest
from fakes_host import World
from fakes_links import FakeLinks
from fakes_network import FakeFirewall

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import BackendGoneError, DeadlineError, HotplugError, LockTimeoutError
from hotplug.events import Action, Device, Event
from hotplug.handlers import bridge, hooks, nat, openvswitch, route
from hotplug.network import Address, Change
from hotplug.ports import Finished

CARD = Device("vif", 5, 0)
FRONTEND = "/local/domain/5/device/vif/0"
KEYS = {"mac": "00:16:3e:00:00:05", "bridge": "br0"}


class Place:
    """A host with a bridge, and the card of a guest; perhaps with a hook."""

    def __init__(self, folder):
        self.links = FakeLinks()
        for name, kind in (("br0", "bridge"), ("vif5.0", ""), ("vif5.0-emu", "")):
            self.links.add(name, kind)
        self.world = World(folder, links=self.links, firewall=FakeFirewall())
        self.links.life = self.world.life
        self.store = self.world.store
        self.has()

    def has(self, **keys):
        for key, value in {**KEYS, **keys}.items():
            self.store.write(f"{CARD.path}/{key}", value.encode())

    def run(self, module, role="vif", deadline=None):
        variable, name = ("INTERFACE", "vif5.0-emu") if role == "tap" else ("vif", "vif5.0")
        action = Action.ADD if role == "tap" else Action.ONLINE
        event = Event(action, CARD, "", (action, f"type_if={role}"), {variable: name})
        module.online(self.world.host(deadline), event)

    def read(self, key):
        return self.store.read(f"{CARD.path}/{key}")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def hook(monkeypatch):
    """Lets a function of the test be what a hook does."""

    def install(work):
        monkeypatch.setattr(hooks, "found", lambda _: ["/etc/xen/scripts/vif-post.d/a.hook"])
        monkeypatch.setattr(hooks, "execute", lambda *_: work() or Finished(0, b"", b""))

    return install


def test_the_store_holds_nothing_while_hooks_run(place, hook):
    held = []
    hook(lambda: held.append(set(place.store.held)))
    place.run(bridge)
    assert held == [set()]
    assert place.read("hotplug-status") == b"connected"


def test_what_hangs_holds_nothing_once_its_time_is_up(place, monkeypatch):
    deadline = EventDeadline(35.0)
    held = []
    change = place.links.change

    def hang(link, *steps):
        monkeypatch.setattr(place.links, "change", change)
        held.append(len(place.store.held))
        deadline.expire()
        deadline.let_go()
        held.append(len(place.store.held))
        change(link, *steps)

    monkeypatch.setattr(place.links, "change", hang)
    with pytest.raises(DeadlineError, match="gave up"):
        place.run(bridge, deadline=deadline)
    assert held == [1, 0]
    assert place.read("hotplug-status") is None
    assert place.world.journal(CARD) is None


@pytest.mark.parametrize("number", [None, errno.EIO], ids=["done", "refused"])
def test_nothing_is_held_afterwards(place, number):
    if number is not None:
        place.links.refused["change"] = number
    try:
        place.run(bridge)
    except HotplugError:
        assert number is not None
    assert place.store.held == set()


def test_a_refused_transaction_is_a_failure_with_nothing_left(place):
    """It is asked for with the keys, and the answer comes when the link is set up."""
    place.store.fail_next(OSError(errno.ENOSPC, "quota"))
    with pytest.raises(OSError, match="quota"):
        place.run(bridge)
    assert place.links.find("vif5.0").master == 0
    assert place.world.journal(CARD) is None


def test_a_frontend_that_came_while_the_link_was_set_up(place, monkeypatch):
    """oxenstored's transactions see the store as it was when the card's keys were read."""
    change = place.links.change

    def late(link, *steps):
        place.store.write(f"{FRONTEND}/state", b"1")
        change(link, *steps)

    monkeypatch.setattr(place.links, "change", late)
    place.run(bridge)
    assert place.store.read(f"{FRONTEND}/mtu") == b"1500"
    assert place.read("hotplug-status") == b"connected"


def test_a_frontend_that_may_not_be_written(place):
    """The card works all the same, and the guest is told nothing."""
    place.store.forbid(FRONTEND)
    place.run(bridge)
    assert place.read("hotplug-status") == b"connected"
    place.store.allow(FRONTEND)
    assert place.store.read(f"{FRONTEND}/mtu") is None


@pytest.mark.parametrize("module", [bridge, nat], ids=["bridge", "nat"])
def test_a_tap_whose_backend_is_removed_meanwhile(place, hook, module):
    place.has(vifname="web")
    hook(lambda: place.store.remove(CARD.path))
    with pytest.raises(BackendGoneError):
        place.run(module, "tap")
    assert place.links.find("vif5.0-emu") is not None
    assert place.world.journal(CARD) is None


@pytest.mark.parametrize("vifname", [{}, {"vifname": "web"}], ids=["", "renamed"])
@pytest.mark.parametrize("module", [bridge, nat, route], ids=["bridge", "nat", "route"])
def test_a_link_that_others_rename_while_its_filter_is_set(place, monkeypatch, module, vifname):
    """The filter knows it by its name, so it stays down."""
    place.has(ip="10.0.0.2", **vifname)
    place.links.change(place.links.add("eth0"), Address("192.0.2.1", 24))
    link = place.links.find("vif5.0")
    firewall = place.world.parts["firewall"]
    ups = []

    def guard(*_):
        place.links.change(link, Change(name="oops"))
        monkeypatch.setattr(place.links, "_set", watch)

    def watch(link, **values):
        ups.append(values.get("up"))
        type(place.links)._set(place.links, link, **values)

    monkeypatch.setattr(firewall, "guard", guard)
    with pytest.raises(HotplugError, match="No such device"):
        place.run(module)
    assert True not in ups
    assert place.links.routes(link) == []
    assert place.read("hotplug-status") is None
    assert place.world.journal(CARD) is None


@pytest.mark.parametrize(
    ("module", "keys", "words"),
    [
        (nat, {"vlan": "5"}, "vlan"),
        (nat, {"ip": "10.0.0.300"}, "one IPv4 address"),
        (route, {"vlan": "5"}, "vlan"),
        (route, {"ip": "10.0.0.300"}, "ip"),
        (openvswitch, {"bridge": "..."}, "No valid bridge"),
    ],
)
def test_wrong_keys_are_told_though_another_run_has_the_card(place, module, keys, words):
    place.has(**keys)
    host = place.world.host()
    with (
        host.journal.claim(CARD, host.deadline),
        pytest.raises(HotplugError, match=words) as caught,
    ):
        place.run(module, deadline=EventDeadline(0.2))
    assert not isinstance(caught.value, LockTimeoutError)
