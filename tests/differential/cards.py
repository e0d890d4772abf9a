"""Network cards: what a scenario with them is, what is seen of a side, and how both are played.

A side has a network namespace and a store of its own; names and domids are the same on both. They
are compared after every operation. Which script it is about, and where ours may differ from it, is
said in ``bridged.py``, ``routed.py`` and ``natted.py``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from differential.dhcp import Server
    from differential.side import Side

USUAL = ""  # the MAC that the harness makes up
NOTHING: frozenset = frozenset()


@dataclass(frozen=True, slots=True)
class Card:
    """A backend with these keys; None: no such key."""

    bridge: str | None = "xenbr0"
    mtu: str | None = None
    vifname: str | None = None
    error: str | None = None  # a hotplug-error of an earlier run
    frontend: bool = True  # whether it is still there
    address: bool = False  # whether the link has one, and is up; so is its tap
    idle: bool = False  # whether the link has one, and is down
    ip: str | None = None
    mac: str | None = USUAL
    handle: str | None = "0"
    gatewaydev: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()  # of the script: netdev, dhcp
    as_words: bool = False  # whether it is given them as arguments; else in its environment
    accepted: bool = False  # whether upstream's script left a rule in FORWARD


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


@dataclass(frozen=True, slots=True)
class Write:
    """Somebody gives a card other addresses."""

    card: int
    ip: str


@dataclass(frozen=True, slots=True)
class Readdress:
    """The host gets another address outside, on eth0; "": none."""

    address: str
    card: int = 0


Operation: TypeAlias = Run | Move | Write | Readdress


@dataclass(frozen=True, slots=True)
class Scenario:
    """Guests with a card each, and what happens."""

    cards: tuple[Card, ...]
    operations: tuple[Operation, ...]
    server: Server | None = None  # for DHCP, on the host


class Link(NamedTuple):
    """A card's link, as far as a script has to do with it."""

    of: str  # "0 vif" or "0 tap", whatever it is called
    up: bool
    mac: str  # that of all ports; "" for any other
    mtu: int
    master: str | None
    addresses: tuple[str, ...] = ()
    routes: tuple[tuple[str, int, str], ...] = ()  # destination, metric, source
    proxy: bool = False  # proxy_arp


class Extras(NamedTuple):
    """What ours has and stock never has."""

    guarded: frozenset[str] = NOTHING  # names of links with a packet filter
    neighbours: frozenset[tuple[str, str, str]] = NOTHING  # which link, address, MAC
    proxied: frozenset[tuple[str, str]] = NOTHING  # outer link, address


class Seen(NamedTuple):
    """One side, after an operation."""

    status: int
    links: dict[str, Link]
    store: dict[str, bytes]
    host: dict[str, object] = {}  # noqa: RUF012 - never changed
    extras: Extras = Extras()


@dataclass(frozen=True, slots=True)
class Step:
    """An operation, and what came of it on both sides."""

    operation: Operation
    card: Card
    domid: int
    before: Seen  # of both
    stock: Seen
    ours: Seen
    server: Server | None = None
    known: Mapping[str, Step] = field(default_factory=dict)  # how ours set up which link

    @property
    def base(self) -> str:
        return f"0/backend/vif/{self.domid}/0"

    @property
    def arrives(self) -> bool:
        return isinstance(self.operation, Run) and self.operation.action in ("online", "add")

    @property
    def is_tap(self) -> bool:
        return isinstance(self.operation, Run) and self.operation.action in ("add", "remove")

    @property
    def original(self) -> str:
        return f"vif{self.domid}.0{'-emu' if self.is_tap else ''}"

    @property
    def name(self) -> str:
        """What the link that this is about should be called."""
        vifname = self.card.vifname
        return f"{vifname}{'-emu' if self.is_tap else ''}" if vifname else self.original

    @property
    def of(self) -> str:
        return f"{self.domid - 1} {'tap' if self.is_tap else 'vif'}"

    @property
    def told(self) -> bytes:
        """The text of ours."""
        return self.ours.store.get(f"{self.base}/hotplug-error", b"")

    @property
    def was_named(self) -> str:
        """What the link that this is about was called before."""
        return next((name for name, link in self.before.links.items() if link.of == self.of), "")


Explain: TypeAlias = "Callable[[Step], tuple[Seen, list[str]]]"


def differences(wanted: Seen, seen: Seen) -> list[str]:
    found = [] if wanted.status == seen.status else [f"status {seen.status}, not {wanted.status}"]
    for what in ("links", "store", "host"):
        one, other = getattr(wanted, what), getattr(seen, what)
        found += [
            f"{name}: {other.get(name)}, not {one.get(name)}"
            for name in sorted(one | other)
            if one.get(name) != other.get(name)
        ]
    for name, one, other in zip(Extras._fields, wanted.extras, seen.extras, strict=True):
        found += [] if one == other else [f"{name}: {sorted(other)}, not {sorted(one)}"]
    return found


def play(stock: Side, ours: Side, explain: Explain) -> list[str]:
    """The differences that were met; AssertionError at one that has no name."""
    return [name for step in steps(stock, ours, explain) for name in explain(step)[1]]


def steps(stock: Side, ours: Side, explain: Explain) -> list[Step]:
    """Play a scenario; after each operation stock's side is made like ours."""
    made: list[Step] = []
    known: dict[str, Step] = {}
    with contextlib.ExitStack() as undo:
        for side in (stock, ours):
            undo.callback(side.tear_down)
            side.build()
        before = ours.look()
        assert not differences(stock.look(), before)
        for operation in ours.scenario.operations:
            step = step_of(stock, ours, operation, before, dict(known))
            judge(step, explain)
            made.append(step)
            note(step, known)
            if differences(step.stock, step.ours):
                stock.become(step.ours)
            before = step.ours._replace(status=0)
    return made


def step_of(
    stock: Side, ours: Side, operation: Operation, before: Seen, known: dict[str, Step]
) -> Step:
    index = operation.card % len(ours.backends)
    seen = stock.perform(operation)
    assert seen.extras == Extras()
    return Step(
        operation,
        ours.scenario.cards[index],
        index + 1,
        before,
        seen._replace(extras=before.extras),
        ours.perform(operation),
        ours.scenario.server,
        known,
    )


def judge(step: Step, explain: Explain) -> None:
    wanted, names = explain(step)
    wrong = differences(wanted, step.ours)
    assert not wrong, (
        f"{step.operation} of {step.card} ({', '.join(names) or 'as stock'}): {'; '.join(wrong)}"
        f"\nbefore to stock: {'; '.join(differences(step.before, step.stock))}"
        f"\nbefore to ours: {'; '.join(differences(step.before, step.ours))}"
    )


def note(step: Step, known: dict[str, Step]) -> None:
    """What ours has in its journal after a step."""
    if isinstance(step.operation, Run) and not step.ours.status:
        known.pop(step.of, None)
        if step.arrives:
            known[step.of] = step
