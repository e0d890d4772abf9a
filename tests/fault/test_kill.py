"""kill -9 of the agent, of its client and of a one-shot run, at every step of an event.

Afterwards no promise is broken, and whoever comes next (the client itself, which goes on alone; an
agent that starts; a run without one) puts right what was left.
"""

from __future__ import annotations

import itertools
import os

import pytest
from harness import loops
from harness.locks import wait_until
from harness.scenario import FEWEST_STEPS, renew


def test_the_agent_dies(asking_agent, steps, agent_scenario, holds, goes_on):
    """The client notices and does the work itself."""
    for step, backend, run in agent_scenario.walks(asking_agent):
        if step is not None:
            asking_agent.agent.kill()
        result = run.wait()
        assert result.status == 0, (step, result)
        assert agent_scenario.has_its_device(backend), step
        holds(backend)
        if step is not None:
            asking_agent.start_agent()
        goes_on(asking_agent, backend)


def test_the_client_dies(asking_agent, steps, agent_scenario, holds, goes_on):
    """The agent undoes what it had begun, unless the guest may have its disk already."""
    asker = asking_agent.agent.pid

    def open_files():
        return len(os.listdir(f"/proc/{asker}/fd"))

    for step, backend, run in agent_scenario.walks(asking_agent):
        if step is not None:
            before = open_files()
            run.kill()
            wait_until(lambda before=before: open_files() < before, "the agent has noticed")
            steps.finish()
        else:
            assert run.wait().status == 0
        holds(backend, settled=True)
        goes_on(asking_agent, backend)


@pytest.mark.parametrize("kind", ["asking_agent", "asking_oneshot"])
def test_it_dies_while_it_takes_back(request, kind, steps, file_scenario, holds, goes_on, files):
    """The guest was told already when the image turned out to be another one."""
    runner = request.getfixturevalue(kind)
    for number in itertools.count():
        backend, run = file_scenario.stop_before(runner, "committing, left")
        loops.make_file(files / "another").rename(os.fsdecode(backend.read("params")))
        steps.go()
        step = steps.walk(number)
        if step is None:
            break
        if runner.agent is None:
            run.kill()
            holds(backend)
        else:
            runner.agent.kill()
            holds(backend)
            assert run.wait().status == 0
            holds(backend)
            runner.start_agent()
        goes_on(runner, backend)
    assert run.wait().status == 1
    assert number > FEWEST_STEPS
    holds(backend)
    goes_on(runner, backend)


@pytest.fixture
def killed_runs(asking_oneshot, scenario, holds):
    """Backends of one-shot runs, each of which was killed one step later than the one before."""
    backends = []
    for step, backend, run in scenario.walks(asking_oneshot):
        if step is None:
            assert run.wait().status == 0
        else:
            run.kill()
        backends.append(backend)
        holds(*backends)
    return backends


def test_a_oneshot_run_dies_and_an_agent_comes(killed_runs, agent, scenario, holds, goes_on):
    if scenario.action == "remove":
        for backend in killed_runs:
            renew(backend)  # libxl takes its death for success
    holds(*killed_runs, settled=True)
    goes_on(agent, *killed_runs)


def test_a_oneshot_run_dies_and_the_next_one_comes(killed_runs, oneshot, holds, goes_on):
    goes_on(oneshot, *killed_runs)
