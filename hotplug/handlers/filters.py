"""What a card's guest may send: from the card's keys to the firewall, and back.

Two things: the guard, which drops what has an address that is not the guest's (antispoofing), and
the stock scripts' rules in FORWARD, which accept what it sends on hosts that drop by default. A
guard is there before the link goes up, and goes after it went down. Both outlive the link, so the
journal knows them before they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers import names, spoofing, vif
from hotplug.handlers.targets.tool import Grace
from hotplug.network import Allowance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.handlers.vif import Vif
    from hotplug.network import Link
    from hotplug.ports import Entry, Host

# In the journal, of a link. What it was last to be held to is "" if that was nothing.
GUARDED, ACCEPTED, HELD_TO = "guarded", "accepted", "held_to"
ROUTED = "routed"  # the first word then


def allowance(host: Host, card: Vif, *, routed: bool = False) -> Allowance | None:
    """What a card's guest is held to, None if to nothing. HotplugError if its keys are wrong."""
    if host.config.antispoof == "never":
        return None
    words = spoofing.addresses(card.device.path, card.ip)
    return spoofing.allowance(host.config, card.device.path, card.mac, words, routed=routed)


def facts(allowed: Allowance | None) -> dict[str, str | int]:
    """What the journal is to know before ``guard``."""
    if allowed is None:
        return {HELD_TO: ""}
    words = [ROUTED] if allowed.routed else []
    return {GUARDED: 1, HELD_TO: " ".join([*words, allowed.mac, *allowed.addresses])}


def held_to(text: str) -> Allowance | None:
    """What the journal has of an allowance."""
    routed, words = text.startswith(f"{ROUTED} "), text.removeprefix(f"{ROUTED} ").split()
    return Allowance(words[0], tuple(words[1:]), routed=routed) if words else None


def guard(host: Host, card: Vif, allowed: Allowance | None, alone: Sequence[str]) -> None:
    """Set the filter of a link, before it goes up, and forget who had its addresses before.

    Without an allowance too: a link of this name may have had one, and nobody took it back. And
    ``alone``, what the guest has alone, was another's all the same. Of a network's connections,
    others may be other guests' or this host's own.
    """
    host.deadline.stage(f"setting the packet filter of {card.name}")
    try:
        with names.held(host, host.deadline, given=is_renamed(card)):
            if allowed is None:
                host.firewall.unguard(card.name, unlikely=True)
            else:
                host.firewall.guard(card.name, allowed)
        if alone:
            host.firewall.forget_connections(alone)
    except OSError as error:
        raise HotplugError(f"{card.name}: {error.strerror or error}") from error


def known_as(card: Vif, allowed: Allowance | None) -> str | None:
    """The name under which alone a link may go up: another one is not guarded.

    A rule of udev's, for one, may rename it while we are at work.
    """
    return card.name if allowed is not None else None


def is_renamed(card: Vif) -> bool:
    return card.name != card.original


def renew(host: Host, entry: Entry, role: str) -> None:
    """Set the filter of a link as the journal has it, unless it is still there."""
    allowed = held_to(vif.remembered(entry, role, HELD_TO))
    if allowed is None:
        return
    with names.held(host, host.deadline, given=names.was_given(entry, role)):
        name = names.own(host, entry, role)
        if name:
            _renew(host, name, allowed)


def _renew(host: Host, name: str, allowed: Allowance) -> None:
    host.deadline.stage(f"setting the packet filter of {name} again")
    try:
        if host.firewall.keeps(name, allowed):
            return
        host.firewall.guard(name, allowed)
    except OSError as error:
        raise HotplugError(
            f"{name} forges what it likes: others deleted its packet filter, which cannot be set"
            f" again: {error.strerror or error}"
        ) from error
    host.note(f"others deleted the packet filter of {name}; it is set again")


def accept(host: Host, card: Vif, link: Link, bridge: Link, entry: Entry, script: str) -> None:
    """The stock rules, once the link is a bridge's port.

    They forbid nothing. So it is noted if iptables refuses them, and no failure, as with stock.
    """
    if not host.firewall.forwards(bridge):
        return
    vif.remember(entry, card, link, script, **{ACCEPTED: 1})
    host.deadline.stage(f"setting iptables' rules for {card.name}")
    with names.held(host, host.deadline, given=is_renamed(card)):
        try:
            host.firewall.accept(card.name, card.ip, host.deadline)
        except OSError as error:
            host.note(f"{card.name}: {error.strerror or error}")


def remove(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """All that the journal has of a link's filters, after the link went down."""
    guarded, accepted = (vif.remembered(entry, role, fact) for fact in (GUARDED, ACCEPTED))
    if not guarded and not accepted:
        return
    grace = Grace(host.deadline)  # also where nobody waits any more
    given = names.was_given(entry, role)
    with vif.best_effort(problems), names.held(host, grace, given=given):
        name = names.own(host, entry, role)
        if name and accepted:
            with vif.best_effort(problems):
                host.firewall.unaccept(name, grace)
        if name and guarded:
            refuse_up(host, entry, role)
            host.firewall.unguard(name)


def remove_stocks(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """The stock script's rules of a card that leaves, if the journal does not know it.

    Then it was set up before we were installed, and nobody else would ever remove them.
    """
    if vif.remembered(entry, card.role):
        return
    grace = Grace(host.deadline)
    with vif.best_effort(problems), names.held(host, grace, given=is_renamed(card)):
        if not names.is_taken(host, card, entry):
            host.firewall.unaccept(card.name, grace)


def refuse_up(host: Host, entry: Entry, role: str) -> None:
    """A link that could not be taken down stays guarded."""
    link = vif.noted(host, entry, role)
    if link is not None and link.up:
        raise HotplugError(f"{link.name} is still up, so the filter of its packets stays")
