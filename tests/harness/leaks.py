"""What may not be left behind once every disk of a test was removed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness import loops
from harness.locks import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from harness.agent import Agent
    from harness.place import Place


def found(place: Place, files: Path, agent: Agent | None) -> list[str]:
    """One sentence for each thing that is left."""
    left = [f"{loop.path} is bound to {loop.backing}" for loop in loops.below(files)]
    journal = place.rundir / "journal"
    if journal.exists():
        left += [f"the journal still has {name}" for name in os.listdir(journal)]
    if place.block_lock.exists():
        left.append("the lock file is still there")
    if agent is not None and agent.process.poll() is None:
        left += [f"process {pid} is still a child of the agent" for pid in agent.children()]
    return left


def refuse(place: Place, files: Path, agent: Agent | None) -> None:
    """Fail if something is left; what is being undone gets the time to be."""
    wait_until(
        lambda: not found(place, files, agent),
        "nothing is left behind",
        explain=lambda: "; ".join(found(place, files, agent)),
    )
