"""Network cards: kill -9, refusals and vanishing links, at every step of an event.

Afterwards a link is a bridge's port if its guest was told so, and only then; the journal knows of
those alone; and whoever comes next succeeds.
"""

from __future__ import annotations

import errno
import json
import os

import pytest
from harness.agent import start as start_agent
from harness.cards import assert_port, assert_released, bridge_netfilter
from harness.guests import Guest
from harness.locks import wait_until
from harness.netns import netns
from harness.scenario import AskingRunner, Scenario, renew

CANNOT_FAIL = (", entered", ", left", "the end")
WAYS = pytest.mark.parametrize("way", ["online", "online ahead", "offline"])
ONLINE = pytest.mark.parametrize("way", ["online", "online ahead"])


@pytest.fixture(scope="module")
def net():
    with netns() as made:
        made.add_bridge("xenbr0")
        bridge_netfilter(made, on=False)
        yield made


@pytest.fixture
def make(place, net):
    """A guest's card that is to be called something else, and its link."""
    made = []

    def make():
        guest = Guest(place.store)
        backend = guest.card(keys={"vifname": f"card{guest.domid}"})
        net.add_vif(backend.link)
        made.append(backend)
        return backend

    yield make
    net.delete(*(name for backend in made for name in (backend.link, renamed(backend))))


def renamed(backend):
    return f"card{backend.domid}"


def scenario(way, make, steps):
    """An event; ``ahead`` means that the agent has read the card's keys when it comes."""
    action, *ahead = way.split()
    return Scenario(action, make, steps, ahead=bool(ahead))


def asking(kind, place, net, steps):
    return AskingRunner(kind, place, steps=steps, launcher=net.launcher)


@pytest.fixture
def agent(place, net, steps):
    runner = asking("agent", place, net, steps)
    runner.start_agent()
    yield runner
    runner.end_all()
    if runner.agent.process.poll() is None:
        assert runner.agent.stop() == 0


@pytest.fixture
def oneshot(place, net, steps):
    runner = asking("oneshot", place, net, steps)
    yield runner
    runner.end_all()


def wrong(place, net, backends):
    """One sentence for each link that is not as its guest was told."""
    links = net.links()
    folder = place.rundir / "journal"
    lines = {name: (folder / name).read_bytes().split(b"\n") for name in os.listdir(folder)}
    known = {name for name, text in lines.items() if text[:-1] and json.loads(text[-2])}
    found = []
    for backend in backends:
        names = [name for name in (backend.link, renamed(backend)) if name in links]
        is_port = any("master" in links[name] for name in names)
        key = f"vif.{backend.domid}.{backend.devid}"
        is_told = backend.read("hotplug-status") == b"connected" and backend.read("state") != b"6"
        if names and is_port != is_told:
            found.append(f"{key}: {names}, a port: {is_port}, told: {is_told}")
        if (key in known) != is_told:
            found.append(f"{key}: in the journal: {key in known}, told: {is_told}")
    return found


def assert_right(place, net, backends):
    wait_until(
        lambda: not wrong(place, net, backends),
        "all is as the guests were told",
        explain=lambda: "; ".join(wrong(place, net, backends)),
    )


def go_on(runner, place, net, backend):
    """After a fault: the next online succeeds, and offline leaves nothing."""
    if backend.read("state") != b"2":
        assert runner.offline(backend).status == 0
        assert_right(place, net, [backend])
        renew(backend)
        net.delete(backend.link, renamed(backend))  # it went with the driver
        net.add_vif(backend.link)
    assert runner.online(backend).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert_right(place, net, [backend])
    assert runner.offline(backend).status == 0
    assert_right(place, net, [backend])
    assert runner.faults == []


@WAYS
def test_the_agent_dies(agent, place, net, make, steps, way):
    """The client notices and does the work itself."""
    for step, backend, run in scenario(way, make, steps).walks(agent):
        if step is not None:
            agent.agent.kill()
        result = run.wait()
        assert result.status == 0, (step, result)
        assert_right(place, net, [backend])
        if step is not None:
            agent.start_agent()
        go_on(agent, place, net, backend)


@WAYS
def test_the_client_dies(agent, place, net, make, steps, way):
    """The agent undoes what it had begun, unless the guest may have its card already."""
    due = scenario(way, make, steps)

    def open_files():
        return len(os.listdir(f"/proc/{agent.agent.pid}/fd"))

    for step, backend, run in due.walks(agent):
        if step is None:
            assert run.wait().status == 0
        else:
            before = open_files()
            run.kill()
            wait_until(lambda before=before: open_files() < before, "the agent has noticed")
            steps.finish()
        assert_right(place, net, [backend])
        go_on(agent, place, net, backend)


def test_a_oneshot_run_dies(oneshot, place, net, make, steps):
    """The next run, or an agent that comes, puts right what was left."""
    killed = []
    for step, backend, run in Scenario("online", make, steps).walks(oneshot):
        if step is None:
            assert run.wait().status == 0
        else:
            run.kill()
        if len(killed) % 2:
            go_on(oneshot, place, net, backend)
        killed.append(backend)
    agent = start_agent(place, launcher=net.launcher)
    try:
        assert_right(place, net, killed)
    finally:
        assert agent.stop() == 0
    for backend in killed[::2]:
        go_on(oneshot, place, net, backend)


def test_a_oneshot_removal_dies(oneshot, place, net, make, steps):
    """It can be repeated."""
    for step, backend, run in Scenario("offline", make, steps).walks(oneshot):
        if step is None:
            assert run.wait().status == 0
        else:
            run.kill()
        assert oneshot.offline(backend).status == 0, step
        assert_right(place, net, [backend])


@ONLINE
def test_any_call_fails(agent, place, net, make, steps, way):
    """With EIO, of which nobody makes an exception: then there is a text, and nothing is left."""
    for step, backend, run in scenario(way, make, steps).walks(agent):
        if step is not None:
            if not step.endswith(CANNOT_FAIL):
                steps.refuse(errno.EIO)
            steps.finish()
        result = run.wait()
        if result.status:
            assert backend.read("hotplug-status") == b"error", (step, result)
            assert b"by the test" in backend.read("hotplug-error"), step
        assert_right(place, net, [backend])
        go_on(agent, place, net, backend)


def test_any_call_of_a_removal_fails(agent, place, net, make, steps):
    """The removal goes on, and the kernel takes the link away with the driver."""
    statuses = set()
    for step, backend, run in Scenario("offline", make, steps).walks(agent):
        if step is not None:
            if not step.endswith(CANNOT_FAIL):
                steps.refuse(errno.EIO)
            steps.finish()
        statuses.add((run.wait().status, (step or "").partition(".")[0]))
        go_on(agent, place, net, backend)
    assert (0, "links") in statuses
    assert (1, "links") not in statuses


@WAYS
def test_the_link_goes(agent, place, net, make, steps, way):
    """The driver is unbound, once the link was found, whatever the event is about to do."""
    was_found = way == "offline"
    for step, backend, run in scenario(way, make, steps).walks(agent):
        was_found = was_found or step == "journal.claim.record"
        if step is not None and was_found:
            net.delete(backend.link, renamed(backend))
        if step is not None:
            steps.finish()
        result = run.wait()
        assert way != "offline" or result.status == 0, (step, result)
        if result.status:
            assert backend.read("hotplug-error"), step
        if not {backend.link, renamed(backend)} & net.links().keys():
            net.add_vif(backend.link)
        go_on(agent, place, net, backend)


@ONLINE
def test_the_backend_goes(agent, place, net, make, steps, way):
    """It does not come back, and the port is taken back."""
    for step, backend, run in scenario(way, make, steps).walks(agent):
        keys = backend.tree()
        if step is not None:
            backend.store.remove(backend.path)
            steps.finish()
            assert run.wait().status in (0, 1)
            assert not backend.exists, step
            assert_right(place, net, [backend])
            assert_released(net, backend.link)
            keys.pop("hotplug-status", None)
            backend.store.write_many({f"{backend.path}/{key}": keys[key] for key in keys})
        else:
            assert run.wait().status == 0
            assert_port(net, renamed(backend))
        go_on(agent, place, net, backend)
