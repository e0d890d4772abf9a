"""vif-bridge: scenarios, and what may differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from differential.cards import Card, Move, Run, Scenario, differences
from differential.side import BRIDGES
from hypothesis import strategies as st

if TYPE_CHECKING:
    from differential.cards import Link, Seen, Step

SCRIPT = "vif-bridge"
PORT_LIMIT = 65535  # bytes, of a pair's MTU

bridges = st.sampled_from([*BRIDGES, "xenbr0", "xenbr0", "xenbr7", "nobridge"])
cards = st.builds(
    Card,
    bridge=bridges,
    mtu=st.sampled_from([None, None, "", "1400", "9000", "0", "abc", "70000"]),
    vifname=st.sampled_from([None, None, "", "web", "web.1", "a23456789012345"]),
    error=st.sampled_from([None, None, None, None, "an earlier failure"]),
    frontend=st.sampled_from([True, True, True, False]),
    address=st.booleans(),
)
actions = st.sampled_from(["online", "online", "offline", "add", "remove"])
operations = st.one_of(
    st.builds(Run, card=st.integers(0, 1), action=actions),
    st.builds(Run, card=st.integers(0, 1), action=actions),
    st.builds(Move, card=st.integers(0, 1), bridge=st.sampled_from(["", "xenbr0", "br-jumbo"])),
)
scenarios = st.builds(
    Scenario,
    cards=st.lists(cards, min_size=1, max_size=2).map(tuple),
    operations=st.lists(operations, min_size=1, max_size=5).map(tuple),
)


def explain(step: Step) -> tuple[Seen, list[str]]:
    """What ours has to be, and the defect of stock's if that is something else."""
    if not isinstance(step.operation, Run):
        return step.stock, []
    wanted, defect = (arrival if step.arrives else departure)(step)
    return wanted, [defect] if differences(wanted, step.stock) else []


def arrival(step: Step) -> tuple[Seen, str]:
    failed = {f"{step.base}/hotplug-status": b"error", f"{step.base}/hotplug-error": step.told}
    too_long = len(step.name) > 15
    is_again = step.card.vifname and step.name in step.before.links
    if step.stock.status and is_again and not step.ours.status and not taken(step):
        return step.ours, "D41"
    if step.stock.status and is_elsewhere(step) and not step.ours.status:
        return step.ours, "D58"  # brctl, where it is there, refuses what `ip link set master` does
    if step.stock.status and (step.told or too_long):  # the text is ours, and it is undone
        links, store = step.before.links | undone(step), step.before.store | failed
        return step.before._replace(status=1, links=links, store=store), "D05"
    store, defect = dict(step.stock.store), ""
    if step.operation.action == "online":
        store, defect = told_to_guest(step, store)
        if store.pop(f"{step.base}/hotplug-error", None) is not None:
            defect = "D21"
    return step.stock._replace(store=store), defect


def is_elsewhere(step: Step) -> bool:
    """Whether the link is another bridge's port."""
    links = step.before.links
    found = links.get(step.original) or links.get(step.name)
    now = step.ours.links.get(step.name)
    return found is not None and now is not None and found.master not in (None, now.master)


def taken(step: Step) -> bool:
    """Whether the name is another card's."""
    return step.original in step.before.links


def undone(step: Step) -> dict[str, Link]:
    """What a run that failed late may have done to the link: it is down and in no bridge."""
    names = set(step.ours.links) & set(step.before.links)
    return {
        name: step.ours.links[name]
        for name in names
        if step.ours.links[name] != step.before.links[name]
        and not step.ours.links[name].up
        and step.ours.links[name].master is None
    }


def told_to_guest(step: Step, store: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """The guest's MTU: at its frontend, if that is there, and if the link has it."""
    right = f"{step.domid}/device/vif/0/mtu"
    garbage = {path for path in store if path not in step.before.store and path.endswith("/mtu")}
    garbage -= {right}
    defect = "D08" if garbage else ""
    for path in garbage:
        del store[path]
    mtu = step.ours.links[step.name].mtu
    asked = step.card.mtu or str(BRIDGES.get(step.card.bridge, 1500))
    was_told = asked.isdigit() and 0 < int(asked) <= PORT_LIMIT
    before = step.before.store.get(right)
    if not step.card.frontend:
        store.pop(right, None)
        return store, defect or ("D18" if was_told else "")
    store[right] = str(mtu).encode() if was_told else before
    return store, defect or ("" if store == step.stock.store else "D40")


def departure(step: Step) -> tuple[Seen, str]:
    released = dict(step.before.links)
    where = step.name if step.name in released else step.original
    if where in released:
        released[where] = released[where]._replace(up=False, master=None, routes=())
    wanted = step.before._replace(links=released)
    if not differences(wanted, step.stock):
        return wanted, ""
    if step.stock.status:
        return wanted, "D34"
    return wanted, "D35" if where == step.name else "never renamed"
