"""The kernel or the store refuses something: at every step, and for real where we can have it so.

A refusal is a failed event with a text, after which nothing is left and the next one succeeds.
"""

from __future__ import annotations

import errno

import pytest

CANNOT_FAIL = (", entered", ", left", "the end")


def test_any_call_of_the_agent_fails(asking_agent, steps, agent_scenario, holds, goes_on):
    refuse_each_call(asking_agent, steps, agent_scenario, holds, goes_on)


def test_any_call_of_a_oneshot_run_fails(asking_oneshot, steps, scenario, holds, goes_on):
    refuse_each_call(asking_oneshot, steps, scenario, holds, goes_on)


def refuse_each_call(runner, steps, scenario, holds, goes_on):
    """With EIO, of which nobody makes an exception."""
    refused = []
    for step, backend, run in scenario.walks(runner):
        if step is not None:
            if not step.endswith(CANNOT_FAIL):
                steps.refuse(errno.EIO)
            steps.finish()
        result = run.wait()
        if result.status and scenario.action == "add":
            assert backend.read("hotplug-status") == b"error", (step, result)
            assert backend.read("physical-device") is None, step
            assert b"by the test" in backend.read("hotplug-error"), step
        refused.append(backend)
        holds(*refused, settled=scenario.action == "add")
    assert runner.faults == []
    goes_on(runner, *refused)


@pytest.mark.parametrize("undone", ["loops.detach", "journal.claim.clear"])
@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_taking_back_fails_too(
    request, place, kind, undone, steps, file_scenario, files, holds, goes_on
):
    """Then the journal keeps it in mind."""
    runner = request.getfixturevalue(f"asking_{kind}")
    backend, run = file_scenario.stop_before(runner, "snapshot.read_and_apply")
    steps.refuse(errno.EIO)
    while (step := steps.step()) != undone:
        assert step is not None
        steps.go()
    steps.refuse(errno.EIO)
    steps.finish()
    assert run.wait().status == 1
    holds(backend)
    entry = place.rundir / "journal" / f"vbd.{backend.domid}.{backend.devid}"
    assert entry.stat().st_size > 0
    goes_on(runner, backend)
