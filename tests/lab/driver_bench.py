"""How soon a driver domain has a guest's card connected: our agent, and ``xl devd`` beside it.

One driver domain, one guest, one boot; the two serve it in turns, devd by the stock vif-bridge.
What the clock measures, dom0/connect.py tells.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

from lab import netvm
from lab.guests import Guest, driver_domain

if TYPE_CHECKING:
    from lab.machine import Machine

TURNS = 2  # of each side
WARM_UP = 1  # rounds of a turn that do not count
SIDES = {
    "devd": (netvm.start_devd, netvm.DEVD),
    "ours": (netvm.start_agent, netvm.AGENT),
}


def measure(machine: Machine, rounds: int, turns: int = TURNS) -> dict[str, object]:
    """Per side: seconds of each round, their median, processes started per card that came and went.

    ``rounds`` are those of one turn.
    """
    server = driver_domain(machine)
    server.start()
    guest = Guest(machine, "connected")
    guest.start()
    found = {side: {"connected_s": [], "processes": []} for side in SIDES}
    for turn in range(turns):
        for side in sorted(SIDES, reverse=bool(turn % 2)):
            start, name = SIDES[side]
            start(server)
            connect(machine, guest, server, WARM_UP)
            netvm.trace(server)
            found[side]["connected_s"] += connect(machine, guest, server, rounds)
            tasks, _ = netvm.traced(server)
            forks = [t for t in tasks if netvm.FORKED in t and netvm.BY_KERNEL not in t]
            found[side]["processes"].append(len(forks) / rounds)
            netvm.end(server, name)
    guest.destroy()
    server.destroy()
    for figures in found.values():
        figures["p50_s"] = statistics.median(figures["connected_s"])
        figures["processes"] = statistics.mean(figures["processes"])
    ratio = found["devd"]["p50_s"] / found["ours"]["p50_s"]
    return {**found, "ratio": round(ratio, 2)}


def connect(machine: Machine, guest: Guest, server: Guest, rounds: int) -> list[float]:
    command = f"python3 -IS /lab/connect.py {guest.name} {server.name} {rounds}"
    return json.loads(machine.do(command, limit=60 + 20 * rounds))


def lines(found: dict[str, object]) -> list[str]:
    """For people."""
    devd, ours = found["devd"], found["ours"]
    title = "card by a driver domain"
    seconds = f"{devd['p50_s']:>10.2f}{ours['p50_s']:>10.2f}{found['ratio']:>7.2f} x"
    processes = f"{devd['processes']:.0f} / {ours['processes']:.0f}"
    return [f"{title:28}{seconds}{processes:>13}   (stock: run by xl devd)"]
