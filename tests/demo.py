"""A guest with four disks starts and stops, by the stock scripts and by ours (``make demo``).

Needs no Xen: Xen's own xenstored runs without it, and loop devices are Linux's. Touches nothing of
a Xen that may run on this host, and leaves nothing behind (see bench/isolation.py).
"""

from __future__ import annotations

import os
import statistics
import sys
from typing import TYPE_CHECKING

from bench.isolation import isolated
from bench.report import print_table
from bench.sides import ScriptFailedError, machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.launch import Took
    from bench.sides import Machine, Side

DISKS = 4
ROUNDS = 5
WARM_UP = 1
TRIES = 10

BEFORE = f"""\
A guest starts with {DISKS} image files as its disks, and stops again. For each disk Xen's toolstack
runs a hotplug script, all {DISKS} at once: it attaches the file to a loop device and writes the
device to xenstore. First the stock scripts do it, then ours with the agent, {ROUNDS} times in turn.
"""

AFTER = """
Medians; processes are those of the whole start and stop. Everything is cleaned up again.

What next:
  .venv/bin/xen-hotplug --help   the commands
  make test                      the tests, as root
  make bench                     more cases, with their spread, memory and CPU time
  make install                   use it; README.md says how
"""


def main() -> int:
    print(BEFORE, flush=True)
    try:
        with isolated(), machine() as host:
            rows = compare(host)
    except KeyboardInterrupt:
        print("demo: interrupted; what it had started is stopped", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - a newcomer gets a sentence, whatever it is
        print(f"demo: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print_table(rows)
    print(AFTER, end="")
    return 0


def compare(host: Machine) -> list[Sequence[str]]:
    """Let both sides play, and put what they took into a table."""
    stock: list[tuple[Took, Took]] = []
    ours: list[tuple[Took, Took]] = []
    for _ in range(WARM_UP + ROUNDS):
        stock.append(play(host, host.stock))
        ours.append(play(host, host.ours))
    stock, ours = stock[WARM_UP:], ours[WARM_UP:]

    def milliseconds(runs: Sequence[tuple[Took, Took]], action: int) -> float:
        return statistics.median(run[action].milliseconds for run in runs)

    def processes(runs: Sequence[tuple[Took, Took]]) -> int:
        return min(start.processes + stop.processes for start, stop in runs)

    return [
        ("", "stock scripts", "xen-hotplug", "ratio"),
        row("start, ms", milliseconds(stock, 0), milliseconds(ours, 0)),
        row("stop, ms", milliseconds(stock, 1), milliseconds(ours, 1)),
        row("processes", processes(stock), processes(ours)),
    ]


def play(host: Machine, side: Side, tries: int = TRIES) -> tuple[Took, Took]:
    """Start a guest and stop it.

    The stock scripts fail if somebody else on this machine takes the same loop device.
    """
    images = [host.image(f"disk-{number}") for number in range(DISKS)]
    try:
        with host.disks(*images, one_guest=True) as disks:
            return side.add(disks), side.remove(disks)
    except ScriptFailedError:
        if tries == 1:
            raise
        return play(host, side, tries - 1)


def row(title: str, stock: float, ours: float) -> tuple[str, ...]:
    def spell(number: float) -> str:
        return f"{number:.1f}" if isinstance(number, float) else str(number)

    return title, spell(stock), spell(ours), f"{stock / ours:.0f} x"


if __name__ == "__main__":
    os.chdir("/")  # nobody's relative path shall mean anything
    sys.exit(main())
