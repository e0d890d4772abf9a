"""Fixtures of the fault tests: a place, ways to run scripts in it, disks, and steps."""

from __future__ import annotations

import itertools

import pytest
from harness import leaks, loops, promises
from harness.guests import Guest
from harness.locks import wait_until
from harness.place import place_behind_proxy
from harness.run import Runner
from harness.scenario import AskingRunner, Scenario, renew
from harness.steps import Steps

UNTIL_RETRY = 20.0  # seconds; the agent tries again after 10 what it could not take back
_names = itertools.count(1)


@pytest.fixture
def place_and_proxy():
    with place_behind_proxy() as both:
        yield both


@pytest.fixture
def place(place_and_proxy):
    """A place whose runs reach the store through ``proxy``."""
    return place_and_proxy[0]


@pytest.fixture
def proxy(place_and_proxy):
    return place_and_proxy[1]


@pytest.fixture
def agent(place):
    """Drop-ins with an agent, which a test may kill."""
    runner = Runner("agent", place)
    runner.start_agent()
    yield runner
    end(runner)


@pytest.fixture
def oneshot(place):
    """Drop-ins that find no agent, unless the test has one running."""
    runner = Runner("oneshot", place)
    yield runner
    end(runner)


def end(runner):
    runner.end_all()
    if runner.agent is not None and runner.agent.process.poll() is None:
        assert runner.agent.stop() == 0


@pytest.fixture
def steps(place):
    with Steps(place.directory) as made:
        yield made


@pytest.fixture
def asking_agent(place, steps):
    runner = AskingRunner("agent", place, steps=steps)
    runner.start_agent()
    yield runner
    end(runner)


@pytest.fixture
def asking_oneshot(place, steps):
    runner = AskingRunner("oneshot", place, steps=steps)
    yield runner
    end(runner)


@pytest.fixture
def files(tmp_path):
    """Where images are; a failed test shall not leave the next one its loop devices."""
    directory = tmp_path / "files"
    directory.mkdir()
    yield directory
    loops.detach_below(directory)


@pytest.fixture
def file_disk(place, files):
    """Make guests with a disk in a file."""

    def make(mode="w", file=None):
        file = file or loops.make_file(files / f"disk{next(_names)}.img")
        return Guest(place.store).disk(str(file), mode)

    return make


@pytest.fixture
def phy_disk(place, tmp_path):
    """Make guests that read a block device: a loop device that the test attaches."""
    device = loops.attach(loops.make_file(tmp_path / "device.img"))
    yield lambda mode="r": Guest(place.store).disk(device, mode)
    loops.detach(device)


@pytest.fixture
def file_scenario(steps, file_disk):
    """The event with the most that can go wrong."""
    return Scenario("add", file_disk, steps)


def named_scenario(request, steps):
    action, _, what, *ahead = request.param.split()
    disk = "file_disk" if what == "file" else "phy_disk"
    return Scenario(action, request.getfixturevalue(disk), steps, ahead=bool(ahead))


SCENARIOS = ("add a file", "add a device", "remove a file")


@pytest.fixture(params=SCENARIOS)
def scenario(request, steps):
    return named_scenario(request, steps)


@pytest.fixture(params=[*SCENARIOS, "add a file ahead"])
def agent_scenario(request, steps):
    """Those that an agent may meet: it may have read the backend's keys before the event came."""
    return named_scenario(request, steps)


@pytest.fixture
def holds(place, files):
    """Refuse a broken promise; what is being tidied up gets the time for it, if ``settled``."""

    def check(*backends, settled=False):
        assert promises.broken(place, backends, files) == []
        if settled:
            wait_until(
                lambda: not promises.unsettled(place, backends, files),
                "everything is tidied up",
                UNTIL_RETRY,
                explain=lambda: "; ".join(promises.unsettled(place, backends, files)),
            )

    return check


@pytest.fixture
def goes_on(place, files, holds):
    """After a fault: the next add succeeds, and remove leaves nothing."""

    def check(runner, *backends):
        holds()
        place.block_lock.unlink(missing_ok=True)  # who is killed leaves the file, but not held
        for backend in backends:
            if backend.read("state") != b"2":
                renew(backend)
            added = runner.add(backend)
            assert added.status == 0, added
            assert backend.read("hotplug-status") == b"connected"
        holds(*backends, settled=True)
        for backend in backends:
            removed = runner.remove(backend)
            assert removed.status == 0, removed
        leaks.refuse(place, files, runner.agent)
        for backend in backends:
            backend.delete()
        assert runner.faults == []

    return check
