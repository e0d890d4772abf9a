"""Network interfaces without a kernel, held to the same tests as the kernel's.

A test can let any change be the last of the process (``life``), or have one refused
(``refused``). What the kernel would forget with a link, or when it goes down, is forgotten here.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
from dataclasses import dataclass, field

from fakes_host import Life

from hotplug.network import Address, Change, Flush, Link, Neighbour, Proxied, Route

MTUS = range(68, 65536)
NAME_SIZE = 15
IPV6_METRIC = 1024  # IP6_RT_PRIO_USER, where nobody says another


@dataclass
class FakeLinks:
    """The links of a namespace. ``refused`` maps an operation to an error number."""

    life: Life = field(default_factory=Life)
    refused: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)  # by index
    of_links: dict = field(default_factory=dict)  # addresses, by index
    table: list = field(default_factory=list)  # (index, Route)
    neighbours: dict = field(default_factory=dict)  # by (index, address)
    proxied: set = field(default_factory=set)  # (index, address)
    arp_proxies: set = field(default_factory=set)  # indexes
    calls: list = field(default_factory=list)
    requests: int = 0  # to change something
    last: int = 1

    # What a test does to them

    def add(self, name, kind="", mac="02:00:00:00:00:01", mtu=1500, *, up=False):
        self.last += 1
        learns = kind == "bridge"
        self.links[self.last] = Link(self.last, name, kind, mac, mtu, up, 0, group_learning=learns)
        self.of_links[self.last] = []
        return self.links[self.last]

    def remove(self, link):
        self._forget(link.index, addresses=True)
        del self.links[link.index], self.of_links[link.index]
        self.arp_proxies.discard(link.index)
        self.proxied = {pair for pair in self.proxied if pair[0] != link.index}
        for index, other in self.links.items():
            if other.master == link.index:
                self.links[index] = dataclasses.replace(other, master=0, master_kind="")

    # What handlers do

    def find(self, name):
        self.life.alive()
        if not 0 < len(os.fsencode(name)) <= NAME_SIZE:
            return None
        return next((link for link in self.links.values() if link.name == name), None)

    def wait_for(self, name, deadline):
        deadline.check()
        found = self.find(name)
        if found is None:
            raise OSError(errno.ENODEV, "the backend driver did not make it", name)
        return found

    def get(self, index):
        self.life.alive()
        return self.links.get(index)

    def bridges(self):
        self.life.alive()
        return [link for link in self.links.values() if link.kind == "bridge"]

    def find_all(self, names):
        return [self.find(name) for name in names]

    def change(self, link, *steps):
        for error in self.apply(link, steps):
            if error is not None:
                raise error

    def apply(self, link, steps):
        self.requests += 1
        errors, doomed = [], []
        for step in steps:
            if isinstance(step, Flush):
                doomed = list(self.of_links.get(link.index, ()))
            errors.append(None if isinstance(step, Flush) else refusal(self._take, link, step))
        for place, step in enumerate(steps):
            if isinstance(step, Flush):  # what was found at its turn goes in the end
                errors[place] = refusal(self._delete, link, doomed, steps)
        return errors

    def _take(self, link, step):
        match step:
            case Change():
                self._change(link, step)
            case Address():
                self._add_address(link, step.text, step.prefix)
            case Neighbour():
                self._add_neighbour(link, step.address, step.mac)
            case Proxied():
                self._proxy_neighbour(link, step.address)
            case Route():
                self._replace_route(link, step)

    def _change(self, link, change):
        with self._operation("change", link):
            name = self.links[link.index].name
            self._refuse_unless(link, change.known_as in (None, name), errno.ENODEV)
            if change.mac is not None:
                self._set(link, mac=change.mac)
            if change.mtu is not None:
                self._refuse_unless(link, change.mtu in MTUS, errno.EINVAL)
                self._set(link, mtu=change.mtu)
            if change.name is not None:
                self._rename(link, change.name)
            if change.master is not None:
                self._enslave(link, change.master)
            if change.up is not None:
                if not change.up:
                    self._forget(link.index)
                self._set(link, up=change.up)
            if change.group_learning is not None:
                self._refuse_unless(link, link.kind == "bridge", errno.EOPNOTSUPP)
                self._set(link, group_learning=change.group_learning)
            if change.proxy_arp is not None:
                self._refuse_unless(link, not (number := self.refused.get("proxy_arp")), number)
                (self.arp_proxies.add if change.proxy_arp else self.arp_proxies.discard)(link.index)

    def _rename(self, link, name):
        taken = any(other.name == name for other in self.links.values() if other != link)
        self._refuse_unless(link, not taken, errno.EEXIST)
        self._refuse_unless(link, not self.links[link.index].up, errno.EBUSY)
        self._set(link, name=name)

    def _enslave(self, link, index):
        if index:
            self._refuse_unless(link, index in self.links, errno.EINVAL)
            self._refuse_unless(link, self.links[index].kind == "bridge", errno.EOPNOTSUPP)
        self._set(link, master=index, master_kind=self.links[index].kind if index else "")

    def addresses(self, link):
        self.life.alive()
        self._refuse_unless(link, link.index in self.links, errno.ENODEV)
        return list(self.of_links[link.index])

    def _delete(self, link, doomed, steps):
        with self._operation("flush_addresses", link):
            kept = {(step.text, step.prefix) for step in steps if isinstance(step, Address)}
            self.of_links[link.index] = [
                known
                for known in self.of_links[link.index]
                if known not in doomed or (known.text, known.prefix) in kept
            ]
            self._forget_sources()

    def _add_address(self, link, address, prefix):
        with self._operation("add_address", link):
            known = self.of_links[link.index]
            if any((a.text, a.prefix) == (address, prefix) for a in known):
                return
            network = ipaddress.ip_interface(f"{address}/{prefix}").network
            secondary = ":" not in address and any(
                a.prefix == prefix and ipaddress.ip_address(a.text) in network
                for a in known
                if ":" not in a.text
            )
            known.append(Address(address, prefix, not secondary))

    def routes(self, link):
        self.life.alive()
        self._refuse_unless(link, link.index in self.links, errno.ENODEV)
        return [route for index, route in self.table if index == link.index]

    def _replace_route(self, link, route):
        with self._operation("replace_route", link):
            self._refuse_unless(link, self.links[link.index].up, errno.ENETDOWN)
            local = {a.text for known in self.of_links.values() for a in known}
            self._refuse_unless(link, not route.source or route.source in local, errno.EINVAL)
            if ":" in route.destination and not route.metric:
                route = dataclasses.replace(route, metric=IPV6_METRIC)
            key = (route.destination, route.metric)
            self.table = [
                pair for pair in self.table if (pair[1].destination, pair[1].metric) != key
            ]
            self.table.append((link.index, route))

    def delete_route(self, link, route):
        with self._operation("delete_route", link):
            for index, known in self.table:
                if (
                    (index, known.destination) == (link.index, route.destination)
                    and route.metric in (0, known.metric)
                    and route.source in ("", known.source)
                ):
                    self.table.remove((index, known))
                    return

    def _add_neighbour(self, link, address, mac):
        with self._operation("add_neighbour", link):
            self.neighbours[link.index, address] = mac

    def _proxy_neighbour(self, link, address):
        with self._operation("proxy_neighbour", link):
            self.proxied.add((link.index, address))

    def unproxy_neighbour(self, link, address):
        with self._operation("unproxy_neighbour", link):
            self.proxied.discard((link.index, address))

    # How they do it

    def _operation(self, name, link):
        return Operation(self, name, link)

    def _refuse_unless(self, link, condition, number):
        if not condition:
            raise OSError(number, os.strerror(number), link.name)

    def _set(self, link, **values):
        self.links[link.index] = dataclasses.replace(self.links[link.index], **values)

    def _forget(self, index, *, addresses=False):
        """What goes when a link goes down; IPv4 addresses stay."""
        self.table = [pair for pair in self.table if pair[0] != index]
        self.neighbours = {key: mac for key, mac in self.neighbours.items() if key[0] != index}
        kept = [] if addresses else [a for a in self.of_links[index] if ":" not in a.text]
        self.of_links[index] = kept
        self._forget_sources()

    def _forget_sources(self):
        """An IPv4 route goes with the last link that has its source address."""
        local = {a.text for known in self.of_links.values() for a in known}
        self.table = [pair for pair in self.table if not pair[1].source or pair[1].source in local]


def refusal(operation, *arguments):
    """What an operation raised, None if nothing."""
    try:
        operation(*arguments)
    except OSError as error:
        return error
    return None


@dataclass
class Operation:
    """A change of a link: refused if the link is gone or a test says so, and a step of a life."""

    owner: FakeLinks
    name: str
    link: Link

    def __enter__(self):
        links = self.owner
        links.life.alive()
        links.calls.append(self.name)
        number = links.refused.get(self.name)
        if number is None and self.link.index not in links.links:
            number = errno.ENODEV
        if number is not None:
            raise OSError(number, os.strerror(number), self.link.name)

    def __exit__(self, kind, *_):
        if kind is None:
            self.owner.life.step()
            self.owner.life.alive()
