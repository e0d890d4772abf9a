"""vif-bridge: a card becomes a port of a bridge.

Setting it up is two requests to the kernel, one that asks and one that changes. If a filter of
packets is to come before the link goes up, there are two that change, one more for VLANs, and one
more for the first card of a bridge that is held to its addresses. It is undone if anything fails.
Taking it back is best effort: it releases the port from whichever bridge has it, needs no bridge to
be there, and never fails the toolstack's removal.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers import arrival, filters, hooks, spoofing, vif, vlan
from hotplug.network import PORT_MAC, Change

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Event
    from hotplug.handlers.vif import Vif
    from hotplug.network import Link
    from hotplug.ports import Entry, Host

SCRIPT = vif.BRIDGE_SCRIPT
# In the journal: the name of the bridge that was found, and the key that said the VLANs, or "".
BRIDGE, VLANS = "bridge", "vlan"
MAX_MTU = (1 << 31) - 1  # of any link: the kernel keeps a 32-bit number


def online(host: Host, event: Event) -> None:
    """Make a card's link a port of its bridge, and tell the guest."""
    with arrival.of(host, event) as new:
        card, entry = new.card, new.claim()
        seen, named = vif.look(host, card, card.bridge)
        bridge = bridge_of(host, card, named)
        link = vif.find(host, card, entry, seen)
        mtu = set_up(host, card, link, bridge, entry, new.undo)
        new.run_hooks({"bridge": bridge.name})
        new.tell(mtu)


def offline(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """Take a card's link from its bridge."""
    bridge = former_bridge(host, card, entry)
    with vif.best_effort(problems):
        vif.release(host, vif.present(host, card, entry))
    clean(host, entry, card.role, problems)
    filters.remove_stocks(host, card, entry, problems)
    if not problems:  # or else it is tried again when the backend is deleted
        vif.forget(entry, card.role)
    with vif.best_effort(problems):
        hooks.run(host, card, {"bridge": bridge})


def clean(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """What outlives the link itself: its filters."""
    filters.remove(host, entry, role, problems)


def bridge_of(host: Host, card: Vif, found: Link | None) -> Link:
    """The bridge that a card belongs to; HotplugError if there is none, or a choice of several.

    ``found`` is the link of the name that the card says.
    """
    if not card.bridge:
        return only_bridge(host, card)
    if found is None and card.bridge.startswith("xenbr"):
        # Configurations from before Xen 3.2, when the bridge of eth0 was called xenbr0.
        found = host.links.find(f"eth{card.bridge.removeprefix('xenbr')}")
        if found is not None and found.kind != "bridge":
            found = None
    if found is None:
        raise HotplugError(
            f"Could not find bridge device {card.bridge}; create it, or change 'bridge' in the"
            " guest's configuration"
        )
    return found


def former_bridge(host: Host, card: Vif, entry: Entry) -> str:
    """The name of the bridge that a card belonged to, for hooks; it may be gone, or unknown."""
    noted = vif.remembered(entry, card.role, BRIDGE)
    if noted:
        return noted
    with vif.best_effort([]):  # the stock script set it up
        return bridge_of(host, card, host.links.find(card.bridge)).name
    return card.bridge


def only_bridge(host: Host, card: Vif) -> Link:
    bridges = host.links.bridges()
    if len(bridges) == 1:
        return bridges[0]
    names = ", ".join(sorted(bridge.name for bridge in bridges))
    problem = f"there are several bridges: {names}" if names else "this host has no bridge"
    raise HotplugError(
        f"Could not find bridge, and none was specified: {card.device}/bridge is empty,"
        f" and {problem}"
    )


def set_up(
    host: Host, card: Vif, link: Link, bridge: Link, entry: Entry, undo: ExitStack
) -> int | None:
    """Everything but the news of success. Returns the MTU that was set, None if none was."""
    vlans = vlan.parse(f"{card.device}/vlan", card.vlan) if card.vlan else ()
    allowed = filters.allowance(host, card)
    link = start_over(host, card, link, bridge, entry)
    facts: dict[str, str | int] = {BRIDGE: bridge.name, VLANS: card.vlan, vif.UNFINISHED: 1}
    vif.remember(entry, card, link, SCRIPT, **facts, **filters.facts(allowed))
    undo.callback(take_back, host, card, entry)
    mtu = wanted_mtu(card, bridge)
    wish = Change(
        name=card.name if card.name != link.name else None,
        mac=PORT_MAC if link.mac != PORT_MAC else None,
        mtu=mtu if mtu != link.mtu else None,
        master=bridge.index if link.master != bridge.index else None,
        up=None if vlans or allowed else True,
    )
    host.deadline.stage(f"making {card.name} a port of {bridge.name}")
    try:
        now = vif.change(host, link, wish, optional=("mac", "mtu"))
        if vlans:
            host.links.set_vlans(link, bridge, vlans)
        if allowed and bridge.group_learning:  # which no filter sees
            host.links.change(bridge, Change(group_learning=False))
        filters.guard(host, card, allowed, spoofing.alone(card.ip))
        if vlans or allowed:
            host.links.change(link, Change(up=True, known_as=filters.known_as(card, allowed)))
    except OSError as error:
        raise HotplugError(
            f"{card.name} cannot be made a port of {bridge.name}: {error.strerror}"
        ) from error
    filters.accept(host, card, link, bridge, entry, SCRIPT)
    if mtu is None or (now is not link and now.mtu != mtu):
        return None
    return mtu


def start_over(host: Host, card: Vif, link: Link, bridge: Link, entry: Entry) -> Link:
    """Down: only so a link may be renamed, and its filters come first. The link as it is then.

    A port keeps its VLANs. If those were ours, and there shall be none, it leaves the bridge, and
    gets the bridge's own when it comes back.
    """
    ours = vif.remembered(entry, card.role, VLANS) and link.master == bridge.index
    if ours and not card.vlan:
        host.links.change(link, Change(up=False, master=0))
        return dataclasses.replace(link, up=False, master=0)
    if link.up:
        host.links.change(link, Change(up=False))
    return link


def wanted_mtu(card: Vif, bridge: Link) -> int | None:
    """The backend's own, or the bridge's; what is no number counts for nothing."""
    if not card.mtu:
        return bridge.mtu
    digits = card.mtu if card.mtu.isascii() and card.mtu.isdigit() else "0"
    return int(digits) if 0 < int(digits) <= MAX_MTU else None


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
