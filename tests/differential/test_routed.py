"""Random cards through the stock vif-route and vif-nat and through ours, as test_vif.py does it.

What may differ is in routed.py and natted.py. Every rule there has an example that needs it.
"""

from __future__ import annotations

import shutil

import pytest
from differential import natted, routed
from differential.cards import Card, Run, Scenario, differences, play, steps
from differential.dhcp import Files
from differential.routing import explain
from differential.side import Side, prepare_outside
from harness.netns import netns
from harness.place import place
from harness.run import Runner
from hypothesis import event, example, given, settings

COMMON = settings(deadline=None, database=None, print_blob=True, report_multiple_bugs=False)
AGENT = pytest.mark.parametrize("sides", ["agent"], indirect=True, scope="module")
ONESHOT = pytest.mark.parametrize("sides", ["oneshot"], indirect=True, scope="module")
EITHER = pytest.mark.parametrize("sides", ["agent", "oneshot"], indirect=True, scope="module")
SCRIPTS = {module.SCRIPT: module for module in (routed, natted)}


@pytest.fixture(scope="module")
def sides(request, tmp_path_factory):
    """Make the two sides of a scenario, each with an /etc of its own."""
    folders = [tmp_path_factory.mktemp(side) / "etc" for side in ("stock", "ours")]
    for etc in folders:
        shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
        Files(etc, None).remove()
    with place() as theirs, place() as own, netns(folders[0]) as one, netns(folders[1]) as other:
        prepare_outside(one)
        prepare_outside(other)
        stock = Runner("stock", theirs, launcher=one.launcher)
        runner = Runner(request.param, own, launcher=other.launcher)
        if request.param == "agent":
            runner.start_agent()
        yield lambda script, scenario: (
            Side(stock, one, scenario, script),
            Side(runner, other, scenario, script),
        )
        if runner.agent is not None:
            assert runner.agent.stop() == 0


def check(sides, module, scenario):
    for name in play(*sides(module.SCRIPT, scenario), lambda step: explain(step, module.RULES)):
        event(name)


@AGENT
@settings(COMMON, max_examples=20, derandomize=True)
@given(scenario=routed.scenarios)
def test_the_agent_routes_as_stock_does(sides, scenario):
    check(sides, routed, scenario)


@AGENT
@settings(COMMON, max_examples=20, derandomize=True)
@given(scenario=natted.scenarios)
@example(Scenario((Card(address=True),), (Run(0, "add"), Run(0, "remove"))))
@example(Scenario((Card(address=True, handle="200"),), (Run(0, "online"),)))
def test_the_agent_makes_networks_as_stock_does(sides, scenario):
    check(sides, natted, scenario)


@ONESHOT
@settings(COMMON, max_examples=4, derandomize=True)
@given(scenario=routed.scenarios)
@example(Scenario((Card(ip="2001:db8::2"),), (Run(0, "online"),)))
def test_a_oneshot_run_routes_as_stock_does(sides, scenario):
    check(sides, routed, scenario)


@ONESHOT
@settings(COMMON, max_examples=4, derandomize=True)
@given(scenario=natted.scenarios)
@example(Scenario((Card(ip="192.168.7.9"),), (Run(0, "online"),)))
def test_a_oneshot_run_makes_networks_as_stock_does(sides, scenario):
    check(sides, natted, scenario)


@pytest.mark.soak
@EITHER
@settings(COMMON, max_examples=600)
@given(scenario=routed.scenarios)
def test_any_run_routes_as_stock_does(sides, scenario):
    check(sides, routed, scenario)


@pytest.mark.soak
@EITHER
@settings(COMMON, max_examples=600)
@given(scenario=natted.scenarios)
def test_any_run_makes_networks_as_stock_does(sides, scenario):
    check(sides, natted, scenario)


@pytest.mark.parametrize("module", SCRIPTS.values(), ids=SCRIPTS)
def test_every_rule_has_an_example(module):
    assert module.EXAMPLES.keys() == module.RULES.keys()


@AGENT
@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in SCRIPTS for name in SCRIPTS[script].RULES]
)
def test_the_rule_is_needed(sides, script, name):
    """Its example fires it, and whatever else ours could have done is no excuse."""
    module = SCRIPTS[script]
    played = steps(*sides(script, module.EXAMPLES[name]), lambda step: explain(step, module.RULES))
    fired = [step for step in played if name in explain(step, module.RULES)[1]]
    assert fired
    for step in fired:
        demanded, _ = explain(step, module.RULES)
        for other in tampered(step):
            assert differences(demanded, other), f"this would be excused as well: {other}"


def tampered(step):
    """What ours did, but for one thing."""
    seen = step.ours
    yield seen._replace(status=1 - seen.status)
    for name, link in seen.links.items():
        for change in (
            {"up": not link.up},
            {"addresses": (*link.addresses, "10.9.9.9/32")},
            {"routes": (*link.routes, ("10.9.9.9", 0, ""))},
            {"proxy": not link.proxy},
            {"mtu": link.mtu + 1},
        ):
            yield seen._replace(links={**seen.links, name: link._replace(**change)})
    for key in seen.store:
        yield seen._replace(
            store={other: seen.store[other] for other in seen.store if other != key}
        )
    for key in seen.host:
        yield seen._replace(host={**seen.host, key: "something else"})
    extras = seen.extras
    for change in (
        {"guarded": extras.guarded ^ {step.name}},
        {"neighbours": extras.neighbours | {(step.of, "10.9.9.9", "02:00:00:00:00:01")}},
        {"proxied": extras.proxied | {("eth0", "2001:db8::9")}},
    ):
        yield seen._replace(extras=extras._replace(**change))
