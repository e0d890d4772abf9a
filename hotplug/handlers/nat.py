"""vif-nat: a card in a network of its own with this host, which is its router.

The guest has one address: that of ``ip``, or 10.X.Y.Z made from its domain id and the card's
handle. The router's is the same with 127 more at its end. What translates addresses on the way
out is the administrator's rule. If he says so (``dhcp``), ISC's DHCP server is told of the guest.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError, MissingKeyError
from hotplug.handlers import arrival, dhcpd, filters, hooks, names, routed, vif, vlan
from hotplug.handlers.targets.tool import Grace
from hotplug.network import Change

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Event
    from hotplug.handlers.vif import Vif
    from hotplug.network import Allowance, Link
    from hotplug.ports import Entry, Host

SCRIPT = "vif-nat"
BITS = 16  # of the network that an address is made in; only hooks see them
TO_ROUTER = 127  # from the guest's last byte to the router's
MAC = re.compile(r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of the two ends of a link, and the guest's name for DHCP."""

    guest: str
    router: str
    hostname: str

    @classmethod
    def of(cls, card: Vif) -> Addresses:
        """HotplugError if ``ip`` leaves no address for the router."""
        number = card.handle + 1
        guest = f"10.{card.frontend_id // 256}.{card.frontend_id % 256}.{number}"
        if card.ip:
            guest = given(card)
        head, _, last = guest.rpartition(".")
        if int(last) + TO_ROUTER > 255:
            raise HotplugError(
                f"{card.device}: the guest's address {guest} leaves none for its router, whose last"
                f" number is {TO_ROUTER} higher; give it one that ends with at most"
                f" {255 - TO_ROUTER} by 'ip' in the guest's configuration"
            )
        return cls(guest, f"{head}.{int(last) + TO_ROUTER}", hostname(card))


def hostname(card: Vif) -> str:
    name = f"dom{card.frontend_id}"
    return name if card.handle == 0 else f"{name}-{card.handle + 1}"


def given(card: Vif) -> str:
    """The one address of the key ``ip``; the number of bits behind it counts for nothing."""
    try:
        (word,) = card.ip
        return str(ipaddress.IPv4Interface(word).ip)
    except ValueError as error:
        raise HotplugError(
            f"{card.device}/ip is '{' '.join(card.ip)}'; vif-nat takes one IPv4 address, for"
            " example 10.0.0.2"
        ) from error


def online(host: Host, event: Event) -> None:
    """Set up a card's link, and tell the guest. A tap beside it only gets its name."""
    with arrival.of(host, event) as new:
        card = new.card
        vlan.refuse(f"{card.device}/vlan", card.vlan)
        addresses = Addresses.of(card)
        entry = new.claim()
        link = vif.find(host, card, entry, vif.look(host, card)[0])
        if card.is_tap:
            rename(host, card, link, entry, new.undo)
        else:
            set_up(host, card, link, addresses, entry, new.undo)
        new.run_hooks(variables(card, addresses))
        new.tell()


def offline(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """Take down a card's link."""
    if not card.is_tap:
        routed.take_down(host, card, entry, problems)
        clean(host, entry, card.role, problems)
        forget_stock_guest(host, card, entry, problems)
        filters.remove_stocks(host, card, entry, problems)
    if not problems:  # or else it is tried again when the backend is deleted
        vif.forget(entry, card.role)
    with vif.best_effort(problems):
        hooks.run(host, card, variables(card, Addresses.of(card)))


def set_up(
    host: Host, card: Vif, link: Link, addresses: Addresses, entry: Entry, undo: ExitStack
) -> None:
    """Everything but the news of success."""
    facts: dict[str, str | int] = {}
    allowed = allowance(host, card, addresses)
    server = dhcpd.find() if dhcpd.is_wanted(card.parameters.get("dhcp", "")) else None
    if server is not None:
        guest = dhcpd.Guest(addresses.hostname, mac_of(card), addresses.guest, addresses.router)
        facts["host"] = guest.name
    facts |= {**filters.facts(allowed), vif.UNFINISHED: 1}
    vif.remember(entry, card, link, SCRIPT, **facts)
    undo.callback(take_back, host, card, entry)
    network = ipaddress.IPv4Network(addresses.guest)
    routing = routed.Routing(addresses.router, (network,), 0, allowed)
    routed.set_up(host, card, link, routing)
    if server is not None:
        dhcpd.add(host, server, guest, card.name)


def allowance(host: Host, card: Vif, addresses: Addresses) -> Allowance | None:
    """What the guest is held to: the one address, whatever number of bits was behind it."""
    ip = (addresses.guest,) if card.ip else ()
    return filters.allowance(host, dataclasses.replace(card, ip=ip), routed=True)


def mac_of(card: Vif) -> str:
    if not card.mac:
        raise MissingKeyError(f"{card.device}/mac is missing; the DHCP server needs it")
    if not MAC.fullmatch(card.mac):
        raise HotplugError(f"{card.device}/mac is '{card.mac}', which is no MAC address")
    return card.mac


def rename(host: Host, card: Vif, link: Link, entry: Entry, undo: ExitStack) -> None:
    vif.remember(entry, card, link, SCRIPT, **{vif.UNFINISHED: 1})
    undo.callback(take_back, host, card, entry)
    if card.name != link.name:
        down = [Change(up=False)] if link.up else []
        host.links.change(link, *down, Change(name=card.name, up=link.up or None))


def forget_stock_guest(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """What the stock script may have told the DHCP server before we were installed."""
    wish = card.parameters.get("dhcp", "")
    if not vif.remembered(entry, card.role, "host") and dhcpd.is_wanted(wish):
        with vif.best_effort(problems):
            link = "" if names.is_taken(host, card, entry) else card.name
            dhcpd.remove(host, dhcpd.find(), hostname(card), link, host.deadline)


def clean(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """What stays once the link is down: addresses, its filter, the guest in dhcpd's files."""
    routed.forget_addresses(host, entry, role, problems)
    filters.remove(host, entry, role, problems)
    name = vif.remembered(entry, role, "host")
    if name:
        with vif.best_effort(problems):
            link = names.own(host, entry, role)
            dhcpd.remove(host, dhcpd.find(), name, link, Grace(host.deadline))


def variables(card: Vif, addresses: Addresses) -> dict[str, str]:
    """What hooks see of it, with the stock script's names."""
    return {
        "ip": " ".join(card.ip) or f"{addresses.guest}/{BITS}",
        "router_ip": addresses.router,
        "vif_ip": addresses.guest,
        "domid": str(card.frontend_id),
        "vifid": str(card.handle + 1),
        "hostname": addresses.hostname,
    }


def take_back(host: Host, card: Vif, entry: Entry) -> None:
    """The way back of ``set_up``; the first error is to be told, so this one is silent.

    What could not be taken back stays in the journal.
    """
    problems: list[str] = []
    with vif.best_effort(problems):
        vif.restore(host, entry, card.role)
    clean(host, entry, card.role, problems)
    if not problems:
        vif.forget(entry, card.role)
