"""What every Links does: the kernel's and the fake."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import re

import pytest
from fakes_links import FakeLinks
from harness.netns import netns

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import DeadlineError
from hotplug.kernel.links import KernelLinks
from hotplug.network import PORT_MAC, Address, Change, Flush, Neighbour, Proxied, Route

MAC = "00:16:3e:00:00:01"


class RealWorld:
    """A network namespace, and this thread in it."""

    def __init__(self, net):
        self.net = net
        self.links = KernelLinks()
        self.names = []

    def add(self, name, kind=""):
        if kind == "bridge":
            self.net.ip("link", "add", "name", name, "type", "bridge")
        else:
            self.net.add_vif(name, f"p{len(self.names)}")
        self.names.append(name)
        return self.links.find(name)

    def remove(self, link):
        self.net.delete(link.name)

    def neighbours(self, link):
        return self.net.neighbours(link.name)

    def proxied(self, link):
        return self.net.proxied(link.name)

    def arp_is_proxied(self, link):
        return self.net.setting(f"ipv4/conf/{link.name}/proxy_arp") == "1"

    def close(self):
        self.links.close()
        for name in self.net.links():
            if name != "lo":
                self.net.delete(name)


class FakeWorld:
    """The same without a kernel."""

    def __init__(self):
        self.links = FakeLinks()
        self.add = self.links.add
        self.remove = self.links.remove

    def neighbours(self, link):
        known = self.links.neighbours
        return {address: mac for (index, address), mac in known.items() if index == link.index}

    def proxied(self, link):
        return {address for index, address in self.links.proxied if index == link.index}

    def arp_is_proxied(self, link):
        return link.index in self.links.arp_proxies

    def close(self):
        pass


@pytest.fixture(scope="module")
def net():
    with netns() as made:
        yield made


@pytest.fixture(params=["kernel", "fake"])
def world(request):
    if request.param == "fake":
        yield FakeWorld()
        return
    net = request.getfixturevalue("net")
    with net.entered(), contextlib.closing(RealWorld(net)) as made:
        yield made


def refused(number, link, operation, *arguments):
    with pytest.raises(OSError, match=re.escape(link.name)) as failure:
        operation(link, *arguments)
    assert (failure.value.errno, failure.value.filename) == (number, link.name)


def ipv4(world, link):
    return [address for address in world.links.addresses(link) if ":" not in address.text]


def brought_up(world, name="vif1.0", *addresses):
    """A link that is up, with these addresses."""
    link = world.add(name)
    for address in addresses:
        world.links.change(link, Address(address, 32))
    world.links.change(link, Change(up=True))
    return world.links.get(link.index)


def test_find_and_get(world):
    link = world.add("vif1.0")
    assert world.links.find("vif1.0") == world.links.get(link.index) == link
    assert (link.name, link.mtu, link.up, link.master) == ("vif1.0", 1500, False, 0)
    assert world.links.wait_for("vif1.0", EventDeadline(5.0)) == link


@pytest.mark.parametrize("name", ["", "vif1.1", "a" * 15, "a" * 16, "a" * 2000, "ü" * 8])
def test_not_found(world, name):
    assert world.links.find(name) is None
    assert world.links.get(4711) is None


def test_find_all(world):
    link, bridge = world.add("vif1.0"), world.add("xenbr0", "bridge")
    names = ["xenbr0", "nobody", "", "vif1.0", "a" * 16, "xenbr0"]
    assert world.links.find_all(names) == [bridge, None, None, link, None, bridge]
    assert world.links.find_all([""]) == [None]
    assert world.links.find_all([]) == []


def test_wait_is_over(world):
    with pytest.raises(DeadlineError):
        world.links.wait_for("vif1.1", EventDeadline(0.0))


def test_bridges(world):
    assert world.links.bridges() == []
    world.add("vif1.0")
    made = [world.add(name, "bridge") for name in ("xenbr0", "xenbr1")]
    assert world.links.bridges() == made
    assert made[0].kind == "bridge"


def test_what_a_bridge_learns_from(world):
    link, bridge = world.add("vif1.0"), world.add("xenbr0", "bridge")
    assert (link.group_learning, bridge.group_learning) == (False, True)
    for learns in (False, False, True):
        world.links.change(bridge, Change(group_learning=learns))
        assert world.links.get(bridge.index).group_learning is learns


def test_change_everything(world):
    link, bridge = world.add("vif1.0"), world.add("xenbr0", "bridge")
    wish = Change(name="guest", mac=PORT_MAC, mtu=9000, master=bridge.index, up=True)
    world.links.change(link, wish)
    now = world.links.get(link.index)
    assert (now.name, now.mac, now.mtu) == ("guest", PORT_MAC, 9000)
    assert (now.master, now.up) == (bridge.index, True)
    assert world.links.find("vif1.0") is None
    world.links.change(now, Change(up=False, master=0))
    now = world.links.get(link.index)
    assert (now.master, now.up) == (0, False)


def test_change_nothing(world):
    link, bridge = world.add("vif1.0"), world.add("xenbr0", "bridge")
    for _ in range(2):
        world.links.change(link, Change())
        world.links.change(link, Change(master=0, up=False))
    assert world.links.get(link.index) == link
    for _ in range(2):
        world.links.change(link, Change(master=bridge.index))
    assert world.links.get(link.index).master == bridge.index


def test_what_comes_before_a_refusal_is_done(world):
    link = world.add("vif1.0")
    world.add("taken")
    refused(errno.EEXIST, link, world.links.change, Change(name="taken", mtu=1400, up=True))
    now = world.links.get(link.index)
    assert (now.name, now.mtu, now.up) == ("vif1.0", 1400, False)


def test_a_change_that_is_for_a_name_alone(world):
    link, other = world.add("vif1.0"), world.add("vif2.0")
    for _ in range(2):  # it need not be down for that
        world.links.change(link, Change(up=True, mtu=1400, known_as="vif1.0"))
        assert world.links.get(link.index) == dataclasses.replace(link, up=True, mtu=1400)
    world.links.change(link, Change(up=False))
    world.links.change(link, Change(name="oops"))
    refused(errno.ENODEV, link, world.links.change, Change(up=True, known_as="vif1.0"))
    assert not world.links.get(link.index).up
    assert world.links.get(other.index) == other


@pytest.mark.parametrize("mtu", [67, 65536])
def test_mtu_refused(world, mtu):
    link = world.add("vif1.0")
    refused(errno.EINVAL, link, world.links.change, Change(mtu=mtu))


def test_master_refused(world):
    link, other = world.add("vif1.0"), world.add("vif2.0")
    refused(errno.EINVAL, link, world.links.change, Change(master=4711))
    refused(errno.EOPNOTSUPP, link, world.links.change, Change(master=other.index))


def test_link_is_gone(world):
    link = world.add("vif1.0")
    world.remove(link)
    links = world.links
    assert links.get(link.index) is None
    for operation, *arguments in (
        (links.change, Change(up=False)),
        (links.change, Address("10.0.0.1", 32)),
        (links.change, Route("10.0.0.2/32")),
        (links.change, Neighbour("10.0.0.2", MAC)),
        (links.change, Flush()),
        (links.change, Proxied("2001:db8::2")),
        (links.addresses,),
        (links.routes,),
    ):
        refused(errno.ENODEV, link, operation, *arguments)


def test_bridge_is_gone(world):
    link, bridge = world.add("vif1.0"), world.add("xenbr0", "bridge")
    world.links.change(link, Change(master=bridge.index))
    world.remove(bridge)
    assert world.links.get(link.index).master == 0


def test_addresses(world):
    link, other = world.add("vif1.0"), world.add("vif2.0")
    for _ in range(2):
        world.links.change(link, Address("10.0.0.1", 32))
    world.links.change(link, Address("192.0.2.1", 24))
    world.links.change(link, Address("192.0.2.2", 24))
    world.links.change(other, Address("198.51.100.1", 24))
    assert world.links.addresses(link) == [
        Address("10.0.0.1", 32, primary=True),
        Address("192.0.2.1", 24, primary=True),
        Address("192.0.2.2", 24, primary=False),
    ]
    for _ in range(2):
        world.links.change(link, Flush())
        assert world.links.addresses(link) == []
    assert len(world.links.addresses(other)) == 1


def test_addresses_are_flushed_along_with_a_change(world):
    link = world.add("vif1.0")
    world.links.change(link, Address("10.0.0.1", 32), Address("2001:db8::1", 64))
    world.links.change(link, Flush(), Change(mtu=1400, up=True))
    assert not [a for a in world.links.addresses(link) if not a.text.startswith("fe80:")]
    assert world.links.get(link.index).mtu == 1400


def test_addresses_are_flushed_even_if_a_change_is_refused(world):
    link = world.add("vif1.0")
    world.links.change(link, Address("10.0.0.1", 32))
    refused(errno.EINVAL, link, world.links.change, Flush(), Change(mtu=67))
    assert world.links.addresses(link) == []


def test_what_is_added_along_with_a_flush_stays(world):
    link = world.add("vif1.0")
    old = (Address("10.0.0.1", 32), Address("10.0.0.2", 32), Address("10.0.0.1", 24))
    world.links.change(link, *old)
    for _ in range(2):
        world.links.change(link, Flush(), Address("10.0.0.1", 32), Change(up=True))
        assert ipv4(world, link) == [Address("10.0.0.1", 32)]


def test_all_steps_are_tried(world):
    link = brought_up(world)
    world.add("taken")
    steps = [
        Flush(),
        Address("192.0.2.1", 32),
        Change(name="taken", mtu=1400),
        Route("10.0.0.1/32", 2, "203.0.113.1"),
        Neighbour("10.0.0.2", MAC),
        Route("10.0.0.2/32", 2, "192.0.2.1"),
        Route("10.0.0.3/32", 2, "203.0.113.1"),
    ]
    errors = world.links.apply(link, steps)
    numbers = [error and (error.errno, error.filename) for error in errors]
    wrong = (errno.EINVAL, "vif1.0")
    assert numbers[:2] == [None, None]
    assert numbers[2] in ((errno.EEXIST, "vif1.0"), (errno.EBUSY, "vif1.0"))
    assert numbers[3:] == [wrong, None, None, wrong]
    assert own_routes(world, link) == [Route("10.0.0.2/32", 2, "192.0.2.1")]
    assert world.neighbours(link) == {"10.0.0.2": MAC}
    assert world.links.get(link.index).mtu == 1400
    refused(numbers[2][0], link, world.links.change, *steps)


def test_steps_of_a_link_that_is_gone(world):
    link = world.add("vif1.0")
    world.remove(link)
    steps = [Flush(), Address("192.0.2.1", 32), Change(up=True), Route("10.0.0.2/32")]
    errors = world.links.apply(link, steps)
    assert [error.errno for error in errors] == [errno.ENODEV] * 4
    assert world.links.apply(link, []) == []


def test_addresses_of_a_link_that_goes_down(world):
    link = brought_up(world)
    world.links.change(link, Address("10.0.0.1", 32))
    world.links.change(link, Address("2001:db8::1", 64))
    assert {"10.0.0.1", "2001:db8::1"} <= {a.text for a in world.links.addresses(link)}
    world.links.change(link, Change(up=False))
    assert world.links.addresses(link) == [Address("10.0.0.1", 32, primary=True)]


def test_routes(world):
    link = brought_up(world, "vif1.0", "192.0.2.1")
    wanted = [
        Route("10.0.0.2/32", 2, "192.0.2.1"),
        Route("10.1.0.0/16"),
        Route("2001:db8::2/128", 2),
    ]
    for route in wanted * 2:
        world.links.change(link, route)
    assert own_routes(world, link) == wanted
    for _ in range(2):
        world.links.delete_route(link, wanted[0])
        assert own_routes(world, link) == wanted[1:]
    world.links.delete_route(link, wanted[2])
    world.links.delete_route(link, wanted[1])
    assert own_routes(world, link) == []


def own_routes(world, link):
    """Without those to the link's own networks, which the kernel makes."""
    return [
        route for route in world.links.routes(link) if not route.destination.startswith("fe80:")
    ]


def test_a_route_moves_to_another_link(world):
    one = brought_up(world, "vif1.0", "192.0.2.1")
    two = brought_up(world, "vif2.0", "192.0.2.1")
    route = Route("10.0.0.2/32", 2, "192.0.2.1")
    world.links.change(one, route)
    world.links.change(one, Route("10.0.0.2/32", 1))
    world.links.change(two, route)
    assert own_routes(world, one) == [Route("10.0.0.2/32", 1)]
    assert own_routes(world, two) == [route]
    world.links.delete_route(one, route)
    assert own_routes(world, two) == [route]


def test_route_refused(world):
    link = world.add("vif1.0")
    refused(errno.ENETDOWN, link, world.links.change, Route("10.0.0.2/32"))
    world.links.change(link, Change(up=True))
    wrong = Route("10.0.0.2/32", 2, "203.0.113.1")
    refused(errno.EINVAL, link, world.links.change, wrong)
    assert own_routes(world, link) == []


def test_down_forgets_routes_and_neighbours(world):
    link = brought_up(world, "vif1.0", "192.0.2.1")
    world.links.change(link, Route("10.0.0.2/32", 2, "192.0.2.1"))
    world.links.change(link, Route("2001:db8::2/128", 2))
    world.links.change(link, Neighbour("10.0.0.2", MAC))
    world.links.change(link, Change(up=False))
    assert own_routes(world, link) == []
    assert world.neighbours(link) == {}
    assert ipv4(world, link) == [Address("192.0.2.1", 32, primary=True)]


def test_flush_forgets_routes_from_there(world):
    link = brought_up(world, "vif1.0", "192.0.2.1")
    world.links.change(link, Route("10.0.0.2/32", 2, "192.0.2.1"))
    world.links.change(link, Flush())
    assert own_routes(world, link) == []


def test_neighbours(world):
    link = world.add("vif1.0")  # down: they may come before the guest can speak
    for mac in ("00:16:3e:00:00:02", MAC):
        world.links.change(link, Neighbour("10.0.0.2", mac))
        world.links.change(link, Neighbour("2001:db8::2", mac))
    assert world.neighbours(link) == {"10.0.0.2": MAC, "2001:db8::2": MAC}
    world.links.change(link, Change(up=True))
    assert world.neighbours(link) == {"10.0.0.2": MAC, "2001:db8::2": MAC}


def test_proxied_neighbours(world):
    link = brought_up(world, "eth0")
    for _ in range(2):
        world.links.change(link, Proxied("2001:db8::2"))
    assert world.proxied(link) == {"2001:db8::2"}
    for _ in range(2):
        world.links.unproxy_neighbour(link, "2001:db8::2")
        assert world.proxied(link) == set()


def test_proxy_arp(world):
    link = world.add("vif1.0")
    assert not world.arp_is_proxied(link)
    for _ in range(2):
        world.links.change(link, Change(up=True, proxy_arp=True))
        assert world.arp_is_proxied(link)
    world.links.change(link, Change(up=False))
    assert world.arp_is_proxied(link)
    world.links.change(link, Change(proxy_arp=False))
    assert not world.arp_is_proxied(link)
