"""Thousands of random operations: add, remove, forced removals, deaths, changing images, others.

The long run prints its seed; XEN_HOTPLUG_SEED=N plays the same operations again.
"""

from __future__ import annotations

import os
import random

import pytest
from harness import leaks
from harness.chaos import Chaos

MAX_DESCRIPTORS = 64  # of an idle agent: it has about 20


def play(runner, files, operations, seed):
    print(f"XEN_HOTPLUG_SEED={seed}")
    chaos = Chaos(runner, files, random.Random(seed))
    chaos.begin()
    while chaos.done < operations:
        chaos.burst()
    chaos.finish()
    assert len(os.listdir(f"/proc/{runner.agent.pid}/fd")) < MAX_DESCRIPTORS
    leaks.refuse(runner.place, files, runner.agent)


def test_two_thousand_operations(agent, files):
    play(agent, files, 2_000, seed=1)


@pytest.mark.soak
def test_ten_thousand_operations(agent, files):
    seed = int(os.environ.get("XEN_HOTPLUG_SEED") or random.SystemRandom().randrange(1 << 32))
    play(agent, files, 10_000, seed)
