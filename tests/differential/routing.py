"""What vif-route and vif-nat have in common: what ours must leave behind, and which rules say so.

A rule sees a step and what stock left behind, and says what must be there instead, or None if it
does not apply. It says first what stock did, so that a difference of another kind finds no excuse.
What it demands is what the contract says, computed from the state before the step.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from differential.cards import USUAL, Card, Extras, Run, Scenario, differences
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from differential.cards import Link, Seen, Step

    Rule: TypeAlias = Callable[[Step, Seen], Seen | None]
    Met: TypeAlias = Callable[[Step, Seen], bool]

NAME_SIZE = 15


ACTIONS = ["online", "online", "offline", "offline", "add", "remove"]
runs = st.builds(Run, card=st.integers(0, 1), action=st.sampled_from(ACTIONS))


def cards(**others: st.SearchStrategy) -> st.SearchStrategy[Card]:
    """Cards; what only one of the scripts heeds is its own to say."""
    return st.builds(
        Card,
        bridge=st.none(),
        mtu=st.sampled_from([None, None, "1400"]),
        vifname=st.sampled_from([None, None, "", "web", "a23456789012345"]),
        error=st.sampled_from([None, None, None, "an earlier failure"]),
        frontend=st.sampled_from([True, True, True, False]),
        address=st.sampled_from([False, False, True]),
        idle=st.sampled_from([False, False, True]),
        mac=st.sampled_from([USUAL, USUAL, USUAL, "00:16:3E:00:0A:0B", None]),
        as_words=st.booleans(),
        accepted=st.sampled_from([False] * 5 + [True]),
        **others,
    )


def scenarios(
    cards: st.SearchStrategy[Card], *changes: st.SearchStrategy, **others: st.SearchStrategy
) -> st.SearchStrategy[Scenario]:
    operations = st.one_of(runs, runs, runs, *changes)
    return st.builds(
        Scenario,
        cards=st.lists(cards, min_size=1, max_size=2).map(tuple),
        operations=st.lists(operations, min_size=1, max_size=5).map(tuple),
        **others,
    )


def explain(step: Step, rules: dict[str, Rule]) -> tuple[Seen, list[str]]:
    """What ours must have left behind, and the rules that made it differ from stock."""
    seen, fired = step.stock, []
    for name, rule in rules.items() if isinstance(step.operation, Run) else ():
        demanded = rule(step, seen)
        if demanded is not None and differences(demanded, seen):
            seen = demanded
            fired.append(name)
    return seen, fired


# What stock did.


def text_of(step: Step, seen: Seen) -> bytes:
    """The text of a run that failed; "" if it has none of its own."""
    text = seen.store.get(f"{step.base}/hotplug-error", b"")
    is_new = seen.store.get(f"{step.base}/hotplug-status") == b"error"
    return text if seen.status and is_new else b""


def is_generic(step: Step, seen: Seen) -> bool:
    return text_of(step, seen).endswith(b" failed; error detected.")


def is_silent(step: Step, seen: Seen) -> bool:
    return bool(seen.status) and seen.store == step.before.store


def is_rename(step: Step, seen: Seen) -> bool:
    return text_of(step, seen).startswith(b"Cannot rename interface ")


# What ours must do.


def words(step: Step) -> list[str]:
    return step.before.store.get(f"{step.base}/ip", b"").decode().split()


def mac(step: Step) -> str:
    return f"00:16:3e:00:{step.domid:02x}:00" if step.card.mac == USUAL else step.card.mac or ""


def may_not_be_named(step: Step) -> tuple[str, ...]:
    """What the text must have in it if the link cannot get its name; () if it can."""
    if len(step.name) > NAME_SIZE:
        return (step.name, "too long")
    links = step.before.links
    is_another = step.original in links or step.of not in step.known
    if step.name != step.original and step.name in links and is_another:
        return ("Cannot rename", step.name)
    return ()


def refused(step: Step, mentioned: tuple[str, ...]) -> Seen:
    """A text that says what is wrong, and nothing else."""
    told = step.told
    if not all(word.encode() in told for word in mentioned) or told.endswith(b"error detected."):
        told = f"a text with {', '.join(mentioned)}".encode()
    keys = {f"{step.base}/hotplug-status": b"error", f"{step.base}/hotplug-error": told}
    return step.before._replace(status=1, store=step.before.store | keys)


def connected(step: Step) -> dict[str, bytes]:
    """The store after a success: of a tap, nobody is told."""
    if step.is_tap:
        return step.before.store
    store = {**step.before.store, f"{step.base}/hotplug-status": b"connected"}
    store.pop(f"{step.base}/hotplug-error", None)
    return store


def with_link(step: Step, **changes: object) -> dict[str, Link]:
    """All links, the step's own with another name and other properties.

    A route that it gets is taken over from whichever link had it.
    """
    links = dict(step.before.links)
    own = links.pop(step.was_named)._replace(**changes)
    taken = {route[:2] for route in own.routes}
    for name, link in links.items():
        left = tuple(route for route in link.routes if route[:2] not in taken)
        links[name] = link._replace(routes=left)
    return {**links, step.name: own}


def held(step: Step, addresses: list[str], proxied: frozenset[tuple[str, str]]) -> Extras:
    """What only ours has of a link that is set up for these addresses, [] for any."""
    left = let_go(step)
    return Extras(
        (left.guarded - {step.name}) | ({step.name} if addresses else set()),
        left.neighbours
        | {(step.of, address, mac(step).lower()) for address in addresses if address},
        left.proxied | proxied,
    )


def let_go(step: Step) -> Extras:
    """What only ours has, without that of the step's link."""
    before = step.before.extras
    known = step.known.get(step.of)
    proxied = known.ours.extras.proxied - known.before.extras.proxied if known else frozenset()
    return Extras(
        before.guarded - ({known.name} if known else set()),
        frozenset(one for one in before.neighbours if one[0] != step.of),
        before.proxied - proxied,
    )


def taken_down(step: Step) -> dict[str, Link]:
    """All links, the step's own without addresses; one that nobody knows is left alone."""
    name = step.was_named
    if step.of not in step.known and name != step.original:
        return step.before.links
    bare = step.before.links[name]._replace(up=False, master=None, addresses=(), routes=())
    return {**step.before.links, name: bare}


def is_anothers(step: Step) -> bool:
    """Whether a card that nobody knows should have a name that a link has."""
    return (
        step.of not in step.known
        and step.name != step.original
        and (step.name in step.before.links)
    )


def host_without_rules(step: Step) -> dict[str, object]:
    """FORWARD without what upstream's script left for a card that nobody knows (D37)."""
    rules = step.before.host["FORWARD"]
    if step.of not in step.known and not is_anothers(step):
        rules = tuple(rule for rule in rules if step.name not in rule.split())
    return {**step.before.host, "FORWARD": rules}


def network_of(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(word)
    except ValueError:
        return None


# Rules that both have.


def by(demanded: Callable[[Step], Seen], met: Met) -> Rule:
    """A rule for what comes to a card when stock did what ``met`` says."""
    return lambda step, seen: demanded(step) if met(step, seen) else None


def renamed_before(step: Step, seen: Seen) -> bool:
    return step.arrives and is_rename(step, seen) and step.of in step.known


def failed_as_ours(refusal: Callable[[Step], tuple[str, ...]]) -> Met:
    """Without saying why; or with another of several reasons."""
    return lambda step, seen: step.arrives and bool(seen.status) and bool(refusal(step))


def succeeded_in_spite(refusal: Callable[[Step], tuple[str, ...]], of: str) -> Met:
    """Where ours must refuse, over this key."""

    def met(step: Step, seen: Seen) -> bool:
        reason = refusal(step) if step.arrives and not seen.status else ()
        return bool(reason) and reason[0].endswith(of)

    return met


def did_not_hold(demanded: Callable[[Step], Seen]) -> Met:
    """All is as it must be, but that the guest may forge addresses."""

    def met(step: Step, seen: Seen) -> bool:
        wanted = demanded(step)
        return step.arrives and seen == wanted._replace(extras=seen.extras)

    return met


def kept_former_routes(demanded: Callable[[Step], Seen]) -> Met:
    """To the addresses that a card had before others were written to its backend."""

    def met(step: Step, seen: Seen) -> bool:
        own = seen.links.get(step.name)
        if own is None or not step.arrives or seen.status:
            return False
        wanted = demanded(step).links[step.name].routes
        former = step.before.links[step.was_named].routes
        return set(own.routes) == {*wanted, *former} != set(wanted)

    return met


def left_rules(demanded: Callable[[Step], Seen]) -> Met:
    """Of upstream's script, in FORWARD."""

    def met(step: Step, seen: Seen) -> bool:
        is_left = seen.host["FORWARD"] != demanded(step).host["FORWARD"]
        return not step.arrives and not seen.status and is_left

    return met


def error_cleared(step: Step, seen: Seen) -> Seen | None:
    key = f"{step.base}/hotplug-error"
    is_told = step.arrives and not step.is_tap and not seen.status
    if is_told and key in seen.store and seen.store != step.before.store:
        left = {name: value for name, value in seen.store.items() if name != key}
        return seen._replace(store=left)
    return None
