"""Network cards: scenarios, the two sides that play them, and what may differ.

A side has a network namespace and a store of its own; names and domids are the same on both. They
are compared after every operation. Where the contract names a difference the scenario ends: from
there on the sides are not in the same state.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from harness.cards import bridge_netfilter, states
from harness.guests import Guest
from harness.locks import wait_until
from hypothesis import strategies as st

if TYPE_CHECKING:
    from harness.guests import Backend
    from harness.netns import Netns
    from harness.run import Runner

BRIDGES = {"xenbr0": 1500, "br-jumbo": 9000, "eth7": 1500}
PORT_LIMIT = 65535  # bytes, of a pair's MTU


@dataclass(frozen=True, slots=True)
class Card:
    """A backend with these keys; None: no such key."""

    bridge: str | None = "xenbr0"
    mtu: str | None = None
    vifname: str | None = None
    error: str | None = None  # a hotplug-error of an earlier run
    frontend: bool = True  # whether it is still there
    address: bool = False  # whether the link has one, and is up


@dataclass(frozen=True, slots=True)
class Run:
    """A script is run for a card: online, offline, or add or remove for its tap."""

    card: int
    action: str


@dataclass(frozen=True, slots=True)
class Move:
    """Somebody puts a card's link into this bridge; "": into none."""

    card: int
    bridge: str


Operation: TypeAlias = Run | Move


@dataclass(frozen=True, slots=True)
class Scenario:
    """Guests with a card each, and what happens."""

    cards: tuple[Card, ...]
    operations: tuple[Operation, ...]


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


class Seen(NamedTuple):
    """One side, after an operation."""

    status: int
    links: dict[str, tuple]
    store: dict[str, bytes]


@dataclass(slots=True)
class Side:
    """A side for one scenario."""

    runner: Runner
    net: Netns
    scenario: Scenario
    backends: list[Backend] = field(default_factory=list)

    def build(self) -> None:
        lines = []
        for number, card in enumerate(self.scenario.cards):
            keys = {"bridge": card.bridge, "mtu": card.mtu, "vifname": card.vifname}
            guest = Guest(self.runner.place.store, domid=number + 1, vm=f"/vm/{number}")
            backend = guest.card(keys={**keys, "hotplug-error": card.error})
            if not card.frontend:
                guest.store.remove(backend.frontend)
            link = backend.link
            lines += [f"link add {link} type veth peer name g{number}"]
            lines += [f"link add {link}-emu type veth peer name t{number}"]
            if card.address:
                lines += [f"address add 10.0.{number}.1/24 dev {link}", f"link set {link} up"]
            self.backends.append(backend)
        self.batch(*lines)

    def batch(self, *lines: str) -> None:
        command = ["ip", "-n", self.net.name, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), check=True, capture_output=True, text=True)

    def perform(self, operation: Operation) -> Seen:
        backend = self.backends[operation.card % len(self.backends)]
        status = 0
        match operation:
            case Run(action="online"):
                status = self.runner.online(backend).status
            case Run(action="offline"):
                status = self.runner.offline(backend).status
                backend.write("state", 2)  # it may come again
                backend.write("online", 1)
            case Run(action=action):
                status = self.runner.tap(backend, action).status
            case Move(bridge=bridge):
                name = name_of(self.links(), backend)
                if name is not None:
                    self.batch(f"link set {name} {f'master {bridge}' if bridge else 'nomaster'}")
        return self.look(status)

    def look(self, status: int = 0) -> Seen:
        return Seen(status, self.links(), self.runner.place.store.tree("/local/domain"))

    def links(self) -> dict[str, tuple]:
        """Without what every namespace numbers and names in its own way."""
        ours = {f"{end}{number}" for end in "gt" for number in range(2)} | {"lo", *BRIDGES}
        found = {name: state[1:] for name, state in states(self.net).items() if name not in ours}
        return {
            name: (up, mac if mac.startswith("fe:ff") else "", mtu, master)
            for name, (up, mac, mtu, master) in found.items()
        }

    def tear_down(self) -> None:
        self.batch(*(f"link delete {name}" for name in self.links()))
        for path in ("/local/domain", "/vm", "/libxl"):
            self.runner.place.store.remove(path)
        journal = self.runner.place.rundir / "journal"
        if self.runner.agent is not None:
            wait_until(lambda: not any(journal.iterdir()), "the agent has reclaimed everything")
        for left in journal.iterdir() if journal.exists() else ():
            left.unlink()
        self.runner.place.syslog.take()


def prepare(net: Netns) -> None:
    """What every scenario finds in a namespace."""
    bridge_netfilter(net, on=False)
    for name, mtu in BRIDGES.items():
        net.add_bridge(name, mtu)


def name_of(links: dict[str, tuple], backend: Backend) -> str | None:
    vifname = (backend.read("vifname") or b"").decode()
    return next((name for name in (backend.link, vifname) if name in links), None)


# What may differ


@dataclass(frozen=True, slots=True)
class Step:
    """An operation, and what came of it on both sides."""

    operation: Operation
    card: Card
    domid: int
    before: Seen  # of both
    stock: Seen
    ours: Seen

    @property
    def base(self) -> str:
        return f"0/backend/vif/{self.domid}/0"

    @property
    def name(self) -> str:
        """What the link that this is about should be called."""
        tap = isinstance(self.operation, Run) and self.operation.action in ("add", "remove")
        link = self.card.vifname or f"vif{self.domid}.0"
        return f"{link}-emu" if tap else link


def expected(step: Step) -> tuple[Seen, str]:
    """What ours has to be, and the defect of stock's if that is something else."""
    if not isinstance(step.operation, Run):
        return step.stock, ""
    arrives = step.operation.action in ("online", "add")
    return (arrival if arrives else departure)(step)


def arrival(step: Step) -> tuple[Seen, str]:
    told = step.ours.store.get(f"{step.base}/hotplug-error", b"")
    failed = {f"{step.base}/hotplug-status": b"error", f"{step.base}/hotplug-error": told}
    too_long = len(step.name) > 15
    is_again = step.card.vifname and step.name in step.before.links
    if step.stock.status and is_again and not step.ours.status and not taken(step):
        return step.ours, "D41"
    if step.stock.status and is_elsewhere(step) and not step.ours.status:
        return step.ours, "D58"  # brctl, where it is there, refuses what `ip link set master` does
    if step.stock.status and (told or too_long):  # the text is ours, and it is undone
        return Seen(1, step.before.links | undone(step), step.before.store | failed), "D05"
    store, defect = dict(step.stock.store), ""
    if step.operation.action == "online":
        store, defect = told_to_guest(step, store)
        if store.pop(f"{step.base}/hotplug-error", None) is not None:
            defect = "D21"
    return step.stock._replace(store=store), defect


def is_elsewhere(step: Step) -> bool:
    """Whether the link is another bridge's port."""
    tap = "-emu" if step.name.endswith("-emu") else ""
    links = step.before.links
    found = links.get(f"vif{step.domid}.0{tap}") or links.get(step.name)
    now = step.ours.links.get(step.name)
    return found is not None and now is not None and found[3] not in (None, now[3])


def taken(step: Step) -> bool:
    """Whether the name is another card's."""
    return f"vif{step.domid}.0{'-emu' if step.name.endswith('-emu') else ''}" in step.before.links


def undone(step: Step) -> dict[str, tuple]:
    """What a run that failed late may have done to the link: it is down and in no bridge."""
    names = set(step.ours.links) & set(step.before.links)
    return {
        name: step.ours.links[name]
        for name in names
        if step.ours.links[name] != step.before.links[name]
        and not step.ours.links[name][0]
        and step.ours.links[name][3] is None
    }


def told_to_guest(step: Step, store: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """The guest's MTU: at its frontend, if that is there, and if the link has it."""
    right = f"{step.domid}/device/vif/0/mtu"
    garbage = {path for path in store if path not in step.before.store and path.endswith("/mtu")}
    garbage -= {right}
    defect = "D08" if garbage else ""
    for path in garbage:
        del store[path]
    mtu = step.ours.links[step.name][2]
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
    where = step.name if step.name in released else f"vif{step.domid}.0"
    if step.name.endswith("-emu") and step.name not in released:
        where = f"vif{step.domid}.0-emu"
    if where in released:
        _, mac, mtu, _ = released[where]
        released[where] = (False, mac, mtu, None)
    wanted = Seen(0, released, step.before.store)
    if wanted == step.stock:
        return wanted, ""
    if step.stock.status:
        return wanted, "D34"
    return wanted, "D35" if where == step.name else "never renamed"


def differences(wanted: Seen, seen: Seen) -> list[str]:
    found = [] if wanted.status == seen.status else [f"status {seen.status}, not {wanted.status}"]
    for what in ("links", "store"):
        one, other = getattr(wanted, what), getattr(seen, what)
        found += [
            f"{name}: {other.get(name)}, not {one.get(name)}"
            for name in sorted(one | other)
            if one.get(name) != other.get(name)
        ]
    return found


def play(stock: Side, ours: Side) -> list[str]:
    """The defects that were met; AssertionError at a difference that none explains."""
    met: list[str] = []
    with contextlib.ExitStack() as undo:
        for side in (stock, ours):
            undo.callback(side.tear_down)
            side.build()
        before = ours.look()
        assert not differences(stock.look(), before)
        for operation in ours.scenario.operations:
            index = operation.card % len(ours.backends)
            step = Step(
                operation,
                ours.scenario.cards[index],
                index + 1,
                before,
                stock.perform(operation),
                ours.perform(operation),
            )
            wanted, defect = expected(step)
            wrong = differences(wanted, step.ours)
            assert not wrong, f"{operation} ({defect or 'as stock'}): {'; '.join(wrong)}"
            if differences(step.stock, step.ours):
                met.append(defect)
                break
            before = step.ours
    return met
