"""Links that this host routes to: what vif-route and vif-nat have in common.

The link gets an address of this host, and routes to the guest lead over it. The guest asks for
everybody's MAC on it and gets this host's (proxy ARP), so that it needs to know no router. All of
that is the link's own: it goes when the link goes down, but for the address, and with the link.

Setting it up is two requests to the kernel, however much there is: the filter of packets comes
between them. All steps of a request are tried, and those that may fail are only noted.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hotplug.errors import HotplugError
from hotplug.handlers import filters, vif
from hotplug.network import Address, Change, Flush, Neighbour, Proxied, Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hotplug.handlers.vif import Vif
    from hotplug.network import Allowance, Link, Step
    from hotplug.ports import Entry, Host

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# The kernel's answers where it has no IPv6, or none on this link: linux/net/ipv6/route.c says
# EACCES, ndisc.c EINVAL.
IPV6_IS_OFF = (errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Routing:
    """How a link is to be set up."""

    address: str  # of this host on the link, IPv4
    networks: tuple[Network, ...]  # what is behind the link
    metric: int
    allowed: Allowance | None  # what the guest is held to

    def routes(self) -> Iterator[Route]:
        for network in self.networks:
            source = self.address if network.version == 4 else ""
            yield Route(str(network), self.metric, source)

    def hosts(self) -> Iterator[str]:
        """The networks that are one address."""
        for network in self.networks:
            if network.num_addresses == 1:
                yield str(network.network_address)


def network_of(card: Vif, word: str) -> Network:
    """A word of the key ``ip``; HotplugError if it is none."""
    if "%" in word:
        raise HotplugError(
            f"{card.device}/ip: '{word}' names an interface of this host; write the address alone"
        )
    try:
        return ipaddress.ip_network(word)
    except ValueError as error:
        raise HotplugError(
            f"{card.device}/ip: {error}; write an address, for example 10.0.0.2, or a network,"
            " for example 10.0.0.0/24"
        ) from error


def set_up(host: Host, card: Vif, link: Link, routing: Routing) -> Link:
    """Make a link what it shall be, whatever it was; the link as it is then."""
    host.deadline.stage(f"setting up routes to {card.name}")
    if link.up:  # it may be renamed only while it is down; and its filters come first
        host.links.change(link, Change(up=False))
    try:
        return _set_up(host, card, link, routing)
    except OSError as error:
        where = f" to {', '.join(map(str, routing.networks))}" if routing.networks else ""
        raise HotplugError(
            f"routes{where} over {card.name} cannot be set up: {error.strerror}"
        ) from error


def _set_up(host: Host, card: Vif, link: Link, routing: Routing) -> Link:
    take(host, card.name, link, list(before(card, link, routing)))
    filters.guard(host, card, routing.allowed, list(routing.hosts()))
    take(host, card.name, link, list(after(card, routing)))
    return dataclasses.replace(link, name=card.name, up=True)


def before(card: Vif, link: Link, routing: Routing) -> Iterator[Step]:
    """What comes before the filter of a link; nothing of it lets the guest speak."""
    yield Flush()
    yield Address(routing.address, 32)
    if routing.allowed is not None:
        # What the guest says of itself by ARP counts for nothing then.
        for address in routing.hosts():
            yield Neighbour(address, routing.allowed.mac)
    if card.name != link.name:  # first, so that no other link has the name that is guarded
        yield Change(name=card.name)


def after(card: Vif, routing: Routing) -> Iterator[Step]:
    known_as = filters.known_as(card, routing.allowed)
    yield Change(up=True, proxy_arp=True, known_as=known_as)
    yield from routing.routes()


def take(host: Host, name: str, link: Link, steps: Sequence[Step]) -> None:
    """Steps with one request; OSError for the first one that was refused.

    But IPv6 that is off is worth a note, and breaks no IPv4.
    """
    for step, error in zip(steps, host.links.apply(link, steps), strict=True):
        if error is None:
            continue
        address = about(step)
        if ":" not in address or error.errno not in IPV6_IS_OFF:
            raise error
        host.note(f"{name} has no IPv6, so nothing leads to {address}: {error.strerror}")


def about(step: Step) -> str:
    """The guest's address, or network, that a step is about; "" if it is about the link."""
    match step:
        case Neighbour() | Proxied():
            return step.address
        case Route():
            return step.destination
    return ""


def take_down(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """Down, which removes routes and neighbours; what stays is for ``clean``, if we made it."""
    with vif.best_effort(problems):
        link = vif.present(host, card, entry)
        vif.release(host, link)
        if link is not None and not vif.remembered(entry, card.role):
            host.links.change(link, Flush())  # the stock script set it up


def forget_addresses(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """Those of the link that the journal has: they stay when it goes down."""
    with vif.best_effort(problems):
        link = vif.noted(host, entry, role)
        if link is not None:
            host.links.change(link, Flush())
