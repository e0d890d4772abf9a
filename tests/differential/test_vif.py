"""Random cards through the stock vif-bridge and through ours; what may differ is in bridged.py."""

from __future__ import annotations

import pytest
from differential.bridged import explain, scenarios
from differential.cards import Card, Move, Run, Scenario, play
from differential.side import Side, prepare
from harness.netns import netns
from harness.place import place
from harness.run import Runner
from hypothesis import event, example, given, settings

COMMON = settings(deadline=None, database=None, print_blob=True, report_multiple_bugs=False)
AGENT = pytest.mark.parametrize("sides", ["agent"], indirect=True, scope="module")
ONESHOT = pytest.mark.parametrize("sides", ["oneshot"], indirect=True, scope="module")
EITHER = pytest.mark.parametrize("sides", ["agent", "oneshot"], indirect=True, scope="module")

ONLINE, OFFLINE, ADD, REMOVE = (Run(0, a) for a in ("online", "offline", "add", "remove"))
# Each meets the defect of stock's that it is named after.
DEFECTS = {
    "D05": Scenario((Card(bridge="nobridge"),), (ONLINE,)),
    "D08": Scenario((Card(vifname="web.1"),), (ONLINE,)),
    "D18": Scenario((Card(frontend=False),), (ONLINE,)),
    "D21": Scenario((Card(error="an earlier failure"),), (ONLINE,)),
    "D34": Scenario((Card(bridge="nobridge"),), (OFFLINE,)),
    "D35": Scenario((Card(),), (ONLINE, Move(0, "br-jumbo"), OFFLINE)),
    "D40": Scenario((Card(mtu="70000"),), (ONLINE,)),
    "D41": Scenario((Card(vifname="web"),), (ADD, ADD)),
}


@pytest.fixture(scope="module")
def sides(request):
    """Make the two sides of a scenario."""
    with place() as theirs, place() as own, netns() as one, netns() as other:
        prepare(one)
        prepare(other)
        stock = Runner("stock", theirs, launcher=one.launcher)
        runner = Runner(request.param, own, launcher=other.launcher)
        if request.param == "agent":
            runner.start_agent()
        yield lambda scenario: (Side(stock, one, scenario), Side(runner, other, scenario))
        if runner.agent is not None:
            assert runner.agent.stop() == 0


def check(sides, scenario):
    for defect in play(*sides(scenario), explain):
        event(defect)


@AGENT
@settings(COMMON, max_examples=35, derandomize=True)
@given(scenario=scenarios)
@example(
    Scenario((Card(), Card(bridge="br-jumbo")), (ONLINE, ADD, Run(1, "online"), OFFLINE, REMOVE))
)
@example(Scenario((Card(vifname="web", mtu="1400"),), (ADD, REMOVE)))
@example(Scenario((Card(bridge="xenbr7", address=True),), (ONLINE, ONLINE, OFFLINE, OFFLINE)))
def test_the_agent_leaves_what_stock_leaves(sides, scenario):
    check(sides, scenario)


@ONESHOT
@settings(COMMON, max_examples=8, derandomize=True)
@given(scenario=scenarios)
def test_a_oneshot_run_leaves_what_stock_leaves(sides, scenario):
    check(sides, scenario)


@pytest.mark.soak
@EITHER
@settings(COMMON, max_examples=600)
@given(scenario=scenarios)
def test_any_run_leaves_what_stock_leaves(sides, scenario):
    check(sides, scenario)


@AGENT
@pytest.mark.parametrize("name", DEFECTS)
def test_the_defect_is_met(sides, name):
    assert play(*sides(DEFECTS[name]), explain) == [name]
