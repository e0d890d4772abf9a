"""What the bench found out: a table for people, JSON for programs, and the targets.

Figures come from the run alone. build/bench/events.json holds

    machine              kernel, cpus, loop_devices (stock takes longer the more there are),
                         xenstored (the daemon that ran), rounds (per case; cases in which stock
                         takes seconds have a quarter)
    cases                per case: {"stock": {"wall_ms": [...]}, "ours": {"wall_ms": [...]},
                         "ratio": median of stock / median of ours}; one wall_ms for each round
    processes_per_event  per case of one event: {"stock": n, "ours": n}, the toolstack's own
                         fork included (see launch.py)
    agent                {"rss_mib", "cpu_ms_per_event", "events"}
    agent_with_cards     {"rss_mib"}: of one that has had network cards
    guarded              wall_ms of a vif's online with antispoofing: {"first": [...],
                         "hundredth": [...]}, the latter beside 99 others; "ratio" of their medians
    repeated             rounds that were done again because a script failed, with the reason
    targets              [{"name", "wanted", "measured", "reached"}]

Cases are named ACTION_OTHERS: file_add_0 is `add` of a file while no other guest has a disk,
block_add_200 that of a block device beside 200 disks of others; file_add_40_at_once lasts until
the last of 40 is done. vif_online and vif_offline are vif-bridge's.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(slots=True)
class Samples:
    """What one side took for one case, round by round."""

    wall_ms: list[float] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)

    def add(self, milliseconds: float, processes: int) -> None:
        self.wall_ms.append(milliseconds)
        self.processes.append(processes)

    @property
    def median(self) -> float:
        return statistics.median(self.wall_ms)

    @property
    def middle_half(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.wall_ms) < 2:
            return self.wall_ms[0], self.wall_ms[0]
        low, _, high = statistics.quantiles(self.wall_ms, n=4, method="inclusive")
        return low, high


@dataclass(slots=True)
class Case:
    """One thing that both sides did."""

    name: str
    title: str
    events: int = 1  # per round
    stock: Samples = field(default_factory=Samples)
    ours: Samples = field(default_factory=Samples)

    def of(self, side: str) -> Samples:
        return self.stock if side == "stock" else self.ours

    @property
    def ratio(self) -> float:
        return self.stock.median / self.ours.median


@dataclass(frozen=True, slots=True)
class AgentCost:
    """What the agent itself takes."""

    rss_mib: float
    cpu_ms_per_event: float
    events: int


@dataclass(slots=True)
class Scale:
    """A card with antispoofing alone, and beside 99 others."""

    first: Samples = field(default_factory=Samples)
    hundredth: Samples = field(default_factory=Samples)

    @property
    def ratio(self) -> float:
        return self.hundredth.median / self.first.median


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was to be reached."""

    name: str
    wanted: str
    measured: float
    reached: bool


@dataclass(slots=True)
class Report:
    """Everything that a run of the bench found out."""

    machine: dict[str, str | int]
    cases: dict[str, Case]
    agent: AgentCost
    rss_with_cards: float  # MiB
    guarded: Scale
    repeated: list[str]

    def processes(self) -> dict[str, dict[str, int]]:
        return {
            case.name: {"stock": min(case.stock.processes), "ours": min(case.ours.processes)}
            for case in self.cases.values()
            if case.events == 1
        }

    def targets(self) -> list[Target]:
        """What is to be reached, and whether it was."""

        def at_least(name: str, ratio: float, cases: Sequence[str]) -> Target:
            measured = min(self.cases[case].ratio for case in cases)
            return Target(name, f">= {ratio:.0f} x", measured, measured >= ratio)

        def at_most(name: str, limit: float, measured: float) -> Target:
            return Target(name, f"<= {limit:g}", measured, measured <= limit)

        most = max(counts["ours"] for counts in self.processes().values())
        return [
            at_least("file add", 25, ["file_add_0", "file_add_200"]),
            at_least("block-device add among 200", 150, ["block_add_200"]),
            at_least("40 file adds at once", 25, ["file_add_40_at_once"]),
            at_least("vif-bridge online and offline", 15, ["vif_online", "vif_offline"]),
            at_least("40 vif-bridge onlines at once", 20, ["vif_online_40_at_once"]),
            at_most("hundredth vif with antispoofing, to the first", 1.25, self.guarded.ratio),
            Target("processes per event", "1", most, most == 1),
            at_most("resident memory of the agent, MiB", 40, self.agent.rss_mib),
            at_most("the same with network cards, MiB", 60, self.rss_with_cards),
        ]

    def as_json(self) -> dict[str, object]:
        return {
            "machine": self.machine,
            "cases": {
                case.name: {
                    "stock": {"wall_ms": rounded(case.stock.wall_ms)},
                    "ours": {"wall_ms": rounded(case.ours.wall_ms)},
                    "ratio": round(case.ratio, 1),
                }
                for case in self.cases.values()
            },
            "processes_per_event": self.processes(),
            "agent": asdict(self.agent),
            "agent_with_cards": {"rss_mib": self.rss_with_cards},
            "guarded": {
                "first": rounded(self.guarded.first.wall_ms),
                "hundredth": rounded(self.guarded.hundredth.wall_ms),
                "ratio": round(self.guarded.ratio, 2),
            },
            "repeated": self.repeated,
            "targets": [asdict(target) for target in self.targets()],
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")

    def print(self) -> None:
        rows = [
            ("", "stock, ms", "(middle half)", "ours, ms", "(middle half)", "ratio", "processes")
        ]
        counts = self.processes()
        for case in self.cases.values():
            number = counts.get(case.name)
            rows.append(
                (
                    case.title,
                    *milliseconds(case.stock),
                    *milliseconds(case.ours),
                    f"{case.ratio:.1f} x",
                    f"{number['stock']} / {number['ours']}" if number else "",
                )
            )
        print_table(rows)
        agent = self.agent
        print(
            f"\n{self.machine['cpus']} processors, {self.machine['loop_devices']} loop devices,"
            f" Linux {self.machine['kernel']}, {self.machine['rounds']} rounds."
        )
        print(
            f"The agent: {agent.rss_mib:.1f} MiB resident after the run,"
            f" {agent.cpu_ms_per_event:.2f} ms of CPU per event (over {agent.events} events)."
        )
        first, hundredth = self.guarded.first.median, self.guarded.hundredth.median
        print(
            f"vif-bridge online with antispoofing: {first:.2f} ms for the first card,"
            f" {hundredth:.2f} ms for the hundredth.\nThe agent then has"
            f" {self.rss_with_cards:.1f} MiB."
        )
        if self.repeated:
            print(f"{len(self.repeated)} rounds were done again, the last as {self.repeated[-1]}")
        print()
        for target in self.targets():
            word = "reached" if target.reached else "MISSED "
            print(f"{word}  {target.name}: {target.measured:.1f}, wanted {target.wanted}")


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def milliseconds(samples: Samples) -> tuple[str, str]:
    """Median and middle half, with the digits that mean something."""
    digits = 0 if samples.median >= 100 else 2
    low, high = samples.middle_half
    return f"{samples.median:.{digits}f}", f"({low:.{digits}f} to {high:.{digits}f})"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be: the first to the left, figures to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
