"""What is measured: which guests start and stop, how often, with which other disks beside them."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards import CardSide, bridge, cards
from bench.report import AgentCost, Case, Report, Samples, Scale
from bench.sides import Machine, ScriptFailedError, Side, machine
from harness import loops
from harness.xenstored import find_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.launch import Took

OTHERS = 200  # disks of other guests
AT_ONCE = 40
GUARDED = 99  # cards of others with antispoofing
TURNS = 4  # between a host without them and one with
WARM_UP = 2  # rounds that do not count
CPU_ROUNDS = 200  # of an add and a remove: the kernel counts CPU time in ticks of 10 ms
RETRIES = 20  # per comparison: stock loses the race for a loop device to others on this machine


@dataclass(slots=True)
class Bench:
    """What is measured, and what came out so far."""

    rounds: int
    cases: dict[str, Case] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def run(self) -> Report:
        with machine() as host:
            self._files(host, "alone", 0)
            self._block_devices(host, "alone", 0)
            self._at_once(host)
        with machine(OTHERS) as host:
            self._files(host, f"{OTHERS} others", OTHERS)
            self._block_devices(host, f"{OTHERS} others", OTHERS)
            cost = agent_cost(host)
        with machine() as host, bridge():
            self._cards(host)
            self._cards_at_once(host)
            scale = self._guarded(host)
            with_cards = host.agent_rss_mib()
        return Report(self._facts(), self.cases, cost, with_cards, scale, self.repeated)

    def _cards(self, host: Machine) -> None:
        def play(side: Side) -> list[Took]:
            with cards(host, 1) as made:
                return [CardSide(side).online(made), CardSide(side).offline(made)]

        cases = [Case(f"vif_{action}", f"vif-bridge {action}") for action in ("online", "offline")]
        self._compare(host, cases, self.rounds, play)

    def _cards_at_once(self, host: Machine) -> None:
        def play(side: Side) -> list[Took]:
            with cards(host, AT_ONCE) as made:
                return [CardSide(side).online(made), CardSide(side).offline(made)][:1]

        name = f"vif_online_{AT_ONCE}_at_once"
        case = Case(name, f"{AT_ONCE} vif-bridge onlines at once", events=AT_ONCE)
        self._compare(host, [case], self._few, play)

    def _guarded(self, host: Machine) -> Scale:
        """An online with antispoofing, on a host without such a card and on one with 99, in turns.

        Whatever else this machine does meanwhile would count for one of them otherwise.
        """
        ours = CardSide(host.ours)
        scale = Scale()
        rounds = -(-self.rounds // TURNS)

        def play(samples: Samples) -> None:
            for number in range(-WARM_UP, rounds):
                with cards(host, 1, ["10.1.0.1"]) as made:
                    took = ours.online(made)
                    ours.offline(made)
                if number >= 0:
                    samples.add(took.milliseconds, took.processes)

        addresses = [f"10.0.0.{number + 1}" for number in range(GUARDED)]
        for _ in range(TURNS):
            play(scale.first)
            with cards(host, GUARDED, addresses) as others:
                ours.online(others)
                play(scale.hundredth)
                ours.offline(others)
        return scale

    def _files(self, host: Machine, title: str, others: int) -> None:
        image = host.image("disk")

        def play(side: Side) -> list[Took]:
            with host.disks(image) as disks:
                return [side.add(disks), side.remove(disks)]

        cases = [
            Case(f"file_{action}_{others}", f"file {action}, {title}")
            for action in ("add", "remove")
        ]
        self._compare(host, cases, self.rounds, play)

    def _block_devices(self, host: Machine, title: str, others: int) -> None:
        rounds = self._few if others else self.rounds
        with block_device(host) as device:

            def play(side: Side) -> list[Took]:
                with host.disks(device) as disks:
                    return [side.add(disks), side.remove(disks)][:1]

            case = Case(f"block_add_{others}", f"block-device add, {title}")
            self._compare(host, [case], rounds, play)

    def _at_once(self, host: Machine) -> None:
        images = [host.image(f"disk-{number}") for number in range(AT_ONCE)]

        def play(side: Side) -> list[Took]:
            with host.disks(*images) as disks:
                return [side.add(disks), side.remove(disks)][:1]

        case = Case(f"file_add_{AT_ONCE}_at_once", f"{AT_ONCE} file adds at once", events=AT_ONCE)
        self._compare(host, [case], self._few, play)

    @property
    def _few(self) -> int:
        """Rounds of a case in which stock takes seconds."""
        return max(3, self.rounds // 4)

    def _compare(
        self,
        host: Machine,
        cases: Sequence[Case],
        rounds: int,
        play: Callable[[Side], list[Took]],
    ) -> None:
        """Let both sides play each round, and note what they took."""
        print(f"measuring: {', '.join(case.title for case in cases)}", file=sys.stderr)
        retries = RETRIES
        for number in range(-min(WARM_UP, rounds), rounds):
            sides = [host.stock, host.ours] if number % 2 else [host.ours, host.stock]
            while sides:
                try:
                    costs = play(sides[0])
                except ScriptFailedError as error:
                    retries -= 1
                    if retries < 0:
                        raise
                    self.repeated.append(f"{cases[0].name}: {error}")
                    continue
                side = sides.pop(0)
                for case, took in zip(cases, costs, strict=True):
                    if number >= 0:
                        case.of(side.name).add(took.milliseconds, took.processes)
        self.cases |= {case.name: case for case in cases}

    def _facts(self) -> dict[str, str | int]:
        return {
            "kernel": os.uname().release,
            "cpus": os.cpu_count() or 0,
            "loop_devices": len(glob.glob("/sys/block/loop*")),  # stock's losetup -f looks at each
            "xenstored": find_daemon(),
            "rounds": self.rounds,
        }


@contextlib.contextmanager
def block_device(host: Machine) -> Iterator[str]:
    """A block device for guests: a loop device that we attach ourselves."""
    device = loops.attach(Path(host.image("block-device")))
    try:
        yield device
    finally:
        loops.detach(device)


def agent_cost(host: Machine) -> AgentCost:
    """What the agent takes, after and during many events of ours alone."""
    image = host.image("disk")
    before = host.agent_cpu_ms()
    for _ in range(CPU_ROUNDS):
        with host.disks(image) as disks:
            host.ours.add(disks)
            host.ours.remove(disks)
    spent = host.agent_cpu_ms() - before
    events = 2 * CPU_ROUNDS
    return AgentCost(host.agent_rss_mib(), spent / events, events)
