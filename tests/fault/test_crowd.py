"""Many events at once, while somebody kills clients or the agent, or takes all loop devices."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
from harness import control, thief
from harness.loops import make_file

AT_ONCE = 20
ROUNDS = 6
ALL_EVENTS = 0.04  # seconds that 20 of them take, about
ONE_EVENT = 0.006


def start_and_kill_some(runner, disks, action, chance):
    """Start a run for each disk; about half of them are killed, each at a moment of its own."""
    runs = []
    for disk in disks:
        run = runner.start(disk, action)
        runs.append(run)
        if chance.random() < 0.5:
            threading.Timer(chance.uniform(0, ONE_EVENT), run.process.kill).start()
    return runs


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_clients_die(agent, place, file_disk, holds, goes_on, seed):
    chance = random.Random(seed)
    disks = [file_disk() for _ in range(AT_ONCE)]
    for action in ("add", "remove"):
        runs = start_and_kill_some(agent, disks, action, chance)
        for result in [run.wait() for run in runs]:
            assert result.status in (0, -signal.SIGKILL), result
        control.wait_until_idle(place)
        holds(*disks, settled=action == "add")
        if action == "add":
            for disk in disks:
                disk.close()
    assert agent.faults == []
    goes_on(agent, *disks)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_agent_dies_among_many(agent, place, file_disk, holds, goes_on, seed):
    """The clients go on alone; all of them succeed."""
    chance = random.Random(seed)
    disks = [file_disk() for _ in range(AT_ONCE)]
    for action in ("add", "remove"):
        runs = [agent.start(disk, action) for disk in disks]
        time.sleep(chance.uniform(0, ALL_EVENTS))
        agent.agent.kill()
        for run in runs:
            result = run.wait()
            assert result.status == 0, result
        agent.start_agent()
        if action == "add":
            holds(*disks, settled=True)
            for disk in disks:
                disk.close()
    assert agent.faults == []
    goes_on(agent, *disks)


@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_somebody_else_wants_every_loop_device(request, kind, tmp_path, file_disk, holds, goes_on):
    """LOOP_CTL_GET_FREE names a device and reserves nothing: EBUSY is everyday life."""
    runner = request.getfixturevalue(kind)
    disks = [file_disk() for _ in range(AT_ONCE)]
    with thief.at_work(str(make_file(tmp_path / "loot.img"))):
        for action in ("add", "remove"):
            runs = [runner.start(disk, action) for disk in disks]
            for result in [run.wait() for run in runs]:
                assert result.status == 0, result
            holds(*disks)
            for disk in disks:
                disk.close()
        goes_on(runner, *disks)
