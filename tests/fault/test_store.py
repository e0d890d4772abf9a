"""The store's connection is cut at every step, its daemon freezes, dies and comes again."""

from __future__ import annotations

import signal
import time

import pytest
from harness import control, leaks, loops, xenstored
from harness.locks import wait_until
from harness.store import Store

COMMIT = "store.begin.run"
BEFORE = ("holders.read_along", "store.begin")  # anything is attached
AFTER = ("store.begin.stage", "snapshot.read_and_apply", "holders.refresh")
REQUESTS = (*BEFORE, *AFTER, COMMIT)


def test_the_agents_connection_is_cut(asking_agent, steps, proxy, agent_scenario, holds, goes_on):
    """The agent ends, its client goes on alone, with a connection of its own."""
    for step, backend, run in agent_scenario.walks(asking_agent):
        if step is not None:
            proxy.cut()
            steps.finish()
            assert asking_agent.agent.process.wait(10) == 1, step
        result = run.wait()
        assert result.status == 0, (step, result)
        assert agent_scenario.has_its_device(backend), step
        holds(backend)
        if step is not None:
            asking_agent.start_agent()
        holds(backend, settled=True)
        goes_on(asking_agent, backend)


def test_a_oneshot_runs_connection_is_cut(
    asking_oneshot, oneshot, steps, proxy, scenario, holds, goes_on
):
    """It fails with a text, and takes back what it had attached."""
    backends = []
    for step, backend, run in scenario.walks(asking_oneshot):
        if step is not None:
            proxy.cut()
            steps.finish()
        result = run.wait()
        if result.status:
            assert b"xenstore" in result.stderr, (step, result)
        backends.append(backend)
        holds(*backends, settled=scenario.action == "add")
    asking_oneshot.faults.clear()  # where no connection is there can be no text either
    goes_on(oneshot, *backends)


@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_the_answer_to_the_commit_is_lost(
    request, kind, steps, proxy, file_scenario, holds, goes_on
):
    """Then nobody knows whether the guest has its disk. It has, so it must keep it."""
    runner = request.getfixturevalue(f"asking_{kind}")
    backend, run = file_scenario.stop_before(runner, COMMIT)
    proxy.mute()
    steps.go()
    wait_until(lambda: backend.read("hotplug-status") == b"connected", "it is committed")
    proxy.down()
    proxy.up()
    steps.finish()
    assert run.wait().status == (0 if kind == "agent" else 1)
    holds(backend)
    runner.faults.clear()
    if kind == "agent":
        assert runner.agent.process.wait(10) == 1
        runner.start_agent()
        holds(backend, settled=True)
    assert runner.remove(backend).status == 0
    holds(settled=True)
    goes_on(runner, backend)


def freeze(place):
    place.daemon.process.send_signal(signal.SIGSTOP)


def thaw(place):
    place.daemon.process.send_signal(signal.SIGCONT)


@pytest.fixture
def thawed(place):
    yield
    thaw(place)


@pytest.mark.parametrize("step", REQUESTS)
@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_the_store_hangs(request, place, kind, step, steps, file_scenario, holds, goes_on, thawed):
    """The toolstack gets its answer in time, and what comes of the event is all or nothing."""
    place.configure(deadline=1.5)
    runner = request.getfixturevalue(f"asking_{kind}")
    backend, run = file_scenario.stop_before(runner, step)
    freeze(place)
    began = time.monotonic()
    steps.go()
    steps.forget()
    while not run.has_ended:
        assert time.monotonic() < began + 6
        time.sleep(0.01)
    thaw(place)
    result = run.wait()
    runner.faults.clear()  # the text cannot be in a store that does not answer
    assert result.status == 1
    assert result.stderr
    control.wait_until_idle(place)
    holds(backend)
    assert runner.remove(backend).status == 0
    holds(settled=True)
    goes_on(runner, backend)


@pytest.mark.parametrize("step", AFTER)
def test_a_run_that_gave_up_on_the_store_tidies_up(
    request, place, step, steps, file_scenario, files, thawed
):
    """Nobody else would, without an agent: also if that takes longer than the toolstack waits."""
    place.configure(deadline=1.5)
    runner = request.getfixturevalue("asking_oneshot")
    backend, run = file_scenario.stop_before(runner, step)
    assert loops.below(files)
    freeze(place)
    steps.go()
    steps.forget()
    assert run.process.wait(10) == 1
    assert loops.below(files)
    thaw(place)
    run.wait()
    runner.faults.clear()  # the text cannot be in a store that does not answer
    wait_until(lambda: not loops.below(files), "it is taken back")
    wait_until(lambda: not list((place.rundir / "journal").iterdir()), "and forgotten")
    assert backend.read("physical-device") is None


@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_the_commit_times_out(place, kind, request, steps, file_scenario, holds, goes_on, thawed):
    """The run gives up on the store, which carries the request out when it comes to it."""
    runner = request.getfixturevalue(f"asking_{kind}")
    runner.patience = 0.5
    runner.restart_agent()
    backend, run = file_scenario.stop_before(runner, COMMIT)
    freeze(place)
    steps.go()
    steps.forget()
    assert run.process.wait(10) == 1
    thaw(place)
    assert run.wait().stderr
    runner.faults.clear()
    control.wait_until_idle(place)
    holds(backend)
    assert runner.remove(backend).status == 0
    holds(settled=True)
    goes_on(runner, backend)


def test_the_daemon_dies(agent, place, file_disk, files, holds):
    """A new store is an empty one: no guest wants anything of what is attached."""
    backends = [file_disk() for _ in range(3)]
    for backend in backends:
        assert agent.add(backend).status == 0
    place.daemon.stop()
    assert agent.agent.process.wait(10) == 1
    with xenstored.start(place.daemon.directory), Store(place.daemon.socket) as store:
        agent.start_agent()
        holds(settled=True)
        place.store.close()
        place.store.connection = store.connection
        goes_on = file_disk()
        assert agent.add(goes_on).status == 0
        assert agent.remove(goes_on).status == 0
        leaks.refuse(place, files, agent.agent)
        assert agent.agent.stop() == 0


def test_the_store_is_away_for_a_while(agent, proxy, file_disk, holds, goes_on):
    """Without a store nothing can be told: the runs fail, and nothing is attached meanwhile."""
    backend, other = file_disk(), file_disk()
    assert agent.add(backend).status == 0
    proxy.down()
    assert agent.agent.process.wait(10) == 1
    refused = agent.add(other)
    assert refused.status == 1
    assert b"xenstore cannot be reached" in refused.stderr
    agent.faults.clear()
    proxy.up()
    agent.start_agent()
    holds(backend, settled=True)
    goes_on(agent, backend, other)
