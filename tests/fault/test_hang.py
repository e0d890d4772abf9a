"""A file system that hangs, as a dead network mount does: it stops nobody but its own disks."""

from __future__ import annotations

import contextlib
import time

import hangfs
import pytest
from harness import control, loops
from harness.locks import wait_until

HANGING = 10
OTHERS = 20
OPERATIONS = ("lookup", "getattr", "open", "statfs", "fsync")
DEADLINE = 4.0  # seconds
SLACK = 6.0  # seconds more, on a busy machine


@pytest.fixture
def dead_mounts(place, files):
    """Make file systems that will hang."""
    place.configure(deadline=DEADLINE)
    with contextlib.ExitStack() as mounts:
        yield lambda count: [
            mounts.enter_context(hangfs.mounted(files / f"mount{number}"))
            for number in range(count)
        ]
        loops.detach_below(files)  # while they can be told by their names


@pytest.fixture
def agent(agent, place):
    """One that gives up soon."""
    place.configure(deadline=DEADLINE)
    agent.restart_agent()
    return agent


@pytest.fixture
def oneshot(oneshot, place):
    place.configure(deadline=DEADLINE)
    return oneshot


@pytest.mark.parametrize("operation", OPERATIONS)
def test_others_do_not_wait(agent, place, dead_mounts, operation, file_disk, holds, goes_on):
    mounts = dead_mounts(HANGING)
    disks = [file_disk(file=mount.path) for mount in mounts]
    others = [file_disk() for _ in range(OTHERS)]
    for mount in mounts:
        mount.hang(operation)
    runs = [agent.start(disk, "add") for disk in disks]
    for mount in mounts:
        mount.wait_until_hung()
    for result in [run.wait() for run in [agent.start(disk, "add") for disk in others]]:
        assert result.status == 0, result
    for result in [run.wait() for run in [agent.start(disk, "remove") for disk in others]]:
        assert result.status == 0, result
    assert not any(run.has_ended for run in runs)
    for run, disk, mount in zip(runs, disks, mounts, strict=True):
        refuse_wrong_words(run.wait(DEADLINE + SLACK), disk, mount)
    for mount in mounts:
        mount.release()
    control.wait_until_idle(place)
    holds(*disks, settled=True)
    goes_on(agent, *disks)


def refuse_wrong_words(result, disk, mount):
    assert result.status == 1
    assert f"gave up after {DEADLINE:.0f} s".encode() in result.stderr
    assert mount.path.encode() in result.stderr
    assert disk.read("hotplug-error") == result.stderr.rstrip(b"\n")
    assert disk.read("hotplug-status") == b"error"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_oneshot_run_gives_up(oneshot, dead_mounts, operation, file_disk, holds, goes_on):
    (mount,) = dead_mounts(1)
    disk = file_disk(file=mount.path)
    mount.hang(operation)
    began = time.monotonic()
    result = oneshot.run(disk, "add")
    assert DEADLINE <= time.monotonic() - began < DEADLINE + SLACK
    refuse_wrong_words(result, disk, mount)
    holds(disk)
    mount.release()
    goes_on(oneshot, disk)


def test_a_oneshot_run_does_not_wait_for_the_disk_of_another(oneshot, dead_mounts, file_disk):
    """It asks every loop device what it is bound to, and leaves behind who does not answer."""
    (mount,) = dead_mounts(1)
    dead, disk = file_disk(file=mount.path), file_disk()
    assert oneshot.add(dead).status == 0
    mount.hang("getattr")
    for action in ("add", "remove"):
        began = time.monotonic()
        assert oneshot.run(disk, action).status == 0
        assert time.monotonic() - began < DEADLINE
    mount.release()
    assert oneshot.remove(dead).status == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_file_system_dies_for_good(agent, place, dead_mounts, operation, file_disk, holds):
    (mount,) = dead_mounts(1)
    disk = file_disk(file=mount.path)
    mount.hang(operation)
    run = agent.start(disk, "add")
    mount.wait_until_hung()
    mount.die()
    result = run.wait()
    assert result.status == 1
    assert mount.path.encode() in result.stderr
    control.wait_until_idle(place)
    holds(disk, settled=True)
    assert agent.remove(disk).status == 0


@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_a_disk_in_use_loses_its_file_system(request, kind, dead_mounts, file_disk, files):
    """Its removal need not ask the file system, or fails with a text until that answers."""
    runner = request.getfixturevalue(kind)
    (mount,) = dead_mounts(1)
    disk = file_disk(file=mount.path)
    assert runner.add(disk).status == 0
    mount.hang("getattr")
    began = time.monotonic()
    result = runner.remove(disk)
    assert time.monotonic() - began < DEADLINE + SLACK
    if kind == "agent":
        assert result.status == 0, result
    else:
        refuse_wrong_words(result, disk, mount)
    mount.release()
    assert runner.remove(disk).status == 0
    wait_until(lambda: not loops.below(files), "it is detached")


def test_a_disk_in_use_is_on_a_dead_file_system(agent, dead_mounts, file_disk, files):
    (mount,) = dead_mounts(1)
    disk, other = file_disk(file=mount.path), file_disk()
    assert agent.add(disk).status == 0
    mount.die()
    assert agent.add(other).status == 0
    for backend in (disk, other):
        assert agent.remove(backend).status == 0
    wait_until(lambda: not loops.below(files), "it is detached")


def test_a_hang_between_commit_and_answer(
    asking_agent, place, steps, dead_mounts, file_disk, holds, goes_on
):
    """The guest was told, and then not: nothing may be left in the end."""
    (mount,) = dead_mounts(1)
    asking_agent.restart_agent()
    disk = file_disk(file=mount.path)
    with steps.armed():
        run = asking_agent.start(disk, "add")
        while steps.step() != "committing, left":
            steps.go()
    mount.hang("lookup")
    steps.go()
    steps.forget()
    result = run.wait(DEADLINE + SLACK)
    mount.release()
    control.wait_until_idle(place)
    refuse_wrong_words(result, disk, mount)
    holds(disk, settled=True)
    goes_on(asking_agent, disk)
