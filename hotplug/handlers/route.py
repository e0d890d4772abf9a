"""vif-route: this host routes to a card, and the card is no bridge's port.

The vif gets the address of the gateway's link (``netdev``, else ``gatewaydev``, else eth0) as /32,
and each word of ``ip`` becomes a route to it. A guest with an emulated card has two links for the
same addresses; the tap is preferred for as long as it is there. So the guest reaches the outside
if this host forwards packets, which is the administrator's decision, and so is whether the
gateway's link answers ARP for the guest (proxy_arp), or neighbour solicitations (proxy_ndp; the
entry that this needs for each IPv6 address is made here).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers import arrival, filters, hooks, routed, vif, vlan
from hotplug.handlers.targets.tool import Grace
from hotplug.network import Proxied

if TYPE_CHECKING:
    from hotplug.events import Event
    from hotplug.handlers.routed import Routing
    from hotplug.handlers.vif import Vif
    from hotplug.network import Link
    from hotplug.ports import Attachment, Entry, Host

SCRIPT = "vif-route"
METRICS = {"vif": 2, "tap": 1}
# In the journal: the outer link's index, and the addresses that it is to answer for.
GATEWAY, PROXIED = "gateway", "proxied"
LOCK = "vif-route-proxies"


def online(host: Host, event: Event) -> None:
    """Route to a card, and tell the guest."""
    with arrival.of(host, event) as new:
        card = new.card
        vlan.refuse(f"{card.device}/vlan", card.vlan)
        networks = tuple(routed.network_of(card, word) for word in card.ip)
        allowed = filters.allowance(host, card, routed=True)
        entry = new.claim()
        seen, outer = vif.look(host, card, card.gateway)
        gateway, address = gateway_of(host, card, outer)
        routing = routed.Routing(address, networks, METRICS[card.role], allowed)
        link = vif.find(host, card, entry, seen)
        unproxy(host, entry, card.role, [])  # of a former run with other addresses
        proxied = proxied_by(card, routing)
        vif.remember(
            entry,
            card,
            link,
            SCRIPT,
            main_ip=address,
            **{GATEWAY: gateway.index},
            **{PROXIED: " ".join(proxied)},
            **filters.facts(allowed),
            **{vif.UNFINISHED: 1},
        )
        new.undo.callback(take_back, host, card, entry)
        routed.set_up(host, card, link, routing)
        proxy(host, gateway, proxied)
        new.run_hooks(variables(card, "add", address))
        new.tell()


def offline(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """Take down a card's link."""
    address = former_address(host, card, entry)
    routed.take_down(host, card, entry, problems)
    clean(host, entry, card.role, problems)
    filters.remove_stocks(host, card, entry, problems)
    if not problems:  # or else it is tried again when the backend is deleted
        vif.forget(entry, card.role)
    with vif.best_effort(problems):
        hooks.run(host, card, variables(card, "del", address))


def clean(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """What stays once the link is down: addresses, its filter, entries on the outer link."""
    routed.forget_addresses(host, entry, role, problems)
    filters.remove(host, entry, role, problems)
    unproxy(host, entry, role, problems)


def unproxy(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """Remove the neighbour entries that the journal has, unless another card has the address too.

    A guest that is restored on this host comes before the old one goes. Of two that go at once, the
    last one removes them: so the journal forgets them under the lock.
    """
    addresses = vif.remembered(entry, role, PROXIED).split()
    if not addresses or entry.attachment is None:
        return
    failed: list[str] = []
    with vif.best_effort(failed), host.locks.hold(LOCK, Grace(host.deadline)):
        gateway = host.links.get(int(vif.remembered(entry, role, GATEWAY)))
        kept = proxied_for_others(host, entry.attachment, role) if gateway is not None else set()
        for address in addresses:
            if gateway is not None and address not in kept:
                with vif.best_effort(failed):
                    host.links.unproxy_neighbour(gateway, address)
        if not failed:
            facts = {**entry.attachment.facts, f"{role}_{PROXIED}": ""}
            entry.record(dataclasses.replace(entry.attachment, facts=facts))
    problems += failed


def proxied_for_others(host: Host, own: Attachment, role: str) -> set[str]:
    """The addresses that the same outer link answers for, for other cards."""
    found: set[str] = set()
    for device in host.journal.devices():
        other = host.journal.peek(device) if device.kind == "vif" else None
        facts = other.facts if other is not None else {}
        same, mine = (
            facts.get(f"{role}_{fact}") == own.facts.get(f"{role}_{fact}")
            for fact in (GATEWAY, "index")
        )
        if same and not mine:
            found.update(str(facts.get(f"{role}_{PROXIED}", "")).split())
    return found


def gateway_of(host: Host, card: Vif, gateway: Link | None) -> tuple[Link, str]:
    """The link to the outside and its address; HotplugError if it has none."""
    if gateway is None:
        raise HotplugError(
            f"there is no network interface {card.gateway} for guests' packets to leave by; name"
            " the right one with 'gatewaydev' in the guest's configuration"
        )
    for address in host.links.addresses(gateway):
        if address.primary and ":" not in address.text:
            return gateway, address.text
    raise HotplugError(
        f"{card.gateway} has no IPv4 address; bring it up, or name another interface with"
        " 'gatewaydev' in the guest's configuration"
    )


def former_address(host: Host, card: Vif, entry: Entry) -> str:
    """What the link has of the gateway, for hooks; "" if nobody knows any more."""
    noted = vif.remembered(entry, card.role, "main_ip")
    if noted:
        return noted
    with vif.best_effort([]):  # the stock script set it up
        return gateway_of(host, card, host.links.find(card.gateway))[1]
    return ""


def proxied_by(card: Vif, routing: Routing) -> list[str]:
    """The IPv6 addresses that the gateway's link is to answer for.

    Of a guest's two links only the vif counts: it is there for longer.
    """
    return [] if card.is_tap else [address for address in routing.hosts() if ":" in address]


def proxy(host: Host, gateway: Link, addresses: list[str]) -> None:
    if not addresses:
        return
    with host.locks.hold(LOCK, host.deadline):  # see unproxy
        routed.take(host, gateway.name, gateway, list(map(Proxied, addresses)))


def variables(card: Vif, command: str, address: str) -> dict[str, str]:
    """What hooks see of it, with the stock script's names."""
    return {"main_ip": address, "ipcmd": command, "metric": str(METRICS[card.role])}


def take_back(host: Host, card: Vif, entry: Entry) -> None:
    """The way back of ``online``; the first error is to be told, so this one is silent.

    What could not be taken back stays in the journal.
    """
    problems: list[str] = []
    with vif.best_effort(problems):
        vif.restore(host, entry, card.role)
    clean(host, entry, card.role, problems)
    if not problems:
        vif.forget(entry, card.role)
