"""What the agent read of a backend ahead turns out to be old, at every step of an event.

The toolstack may change its mind until the script runs. What is told to the guest in the end is
what it wished last; nothing is left of the first attempt; and a program of others is run once.
"""

from __future__ import annotations

import os

import pytest
from harness import leaks, loops
from harness.cards import assert_port, assert_released, bridge_netfilter
from harness.guests import Guest
from harness.netns import netns
from harness.scenario import AskingRunner, Scenario

ASKED = "snapshot.read_and_apply"  # behind this round trip it is known whether all is still true
COUNTING = '#!/bin/sh\necho run >>"${0%/*}/runs"\n'


@pytest.fixture
def ahead(steps, file_disk):
    """An add whose backend was read ahead."""
    return Scenario("add", file_disk, steps, ahead=True)


def backing(backend):
    """The file behind the disk that a guest was given."""
    loop = os.path.basename(os.fsdecode(backend.read("node")))
    with open(f"/sys/block/{loop}/loop/backing_file") as file:
        return file.read().rstrip("\n")


def runs(place):
    path = place.scripts / "runs"
    return path.read_text().count("run") if path.exists() else 0


def remove(runner, backend, place, files):
    assert runner.remove(backend).status == 0
    backend.delete()
    leaks.refuse(place, files, runner.agent)


def test_another_image(asking_agent, ahead, steps, place, files):
    seen, counts = [], {"new": 0, "old": 0}
    for step, backend, run in ahead.walks(asking_agent):
        old = backend.read("params").decode()
        new = str(loops.make_file(files / f"other{len(seen)}.img"))
        backend.write("params", new)
        if step is not None:
            steps.finish()
        result = run.wait()
        assert result.status == 0, (step, result)
        assert backend.read("hotplug-status") == b"connected"
        expected = old if ASKED in seen else new
        assert backing(backend) == expected, (step, seen, result)
        counts["new" if expected == new else "old"] += 1
        assert [loop.backing for loop in loops.below(files)] == [expected]
        remove(asking_agent, backend, place, files)
        seen.append(step)
    assert min(counts.values()) > 3


def test_it_was_to_be_read_only(asking_agent, ahead, steps, place, files):
    backend, run = ahead.stop_before(asking_agent, ASKED)
    backend.write("mode", "r")
    steps.finish()
    assert run.wait().status == 0
    assert [loop.read_only for loop in loops.below(files)] == [True]
    remove(asking_agent, backend, place, files)


def test_the_image_comes_late(asking_agent, steps, file_disk, files, place):
    """The first one is not there, which is of no interest any more."""
    ahead = Scenario("add", lambda: file_disk(file=files / "absent"), steps, ahead=True)
    backend, run = ahead.stop_before(asking_agent, "paths.locate")
    backend.write("params", str(loops.make_file(files / "there.img")))
    steps.finish()
    result = run.wait()
    assert (result.status, result.stderr) == (0, b"")
    assert backend.read("hotplug-error") is None
    remove(asking_agent, backend, place, files)


def test_what_fails_for_good_is_tried_once(asking_agent, steps, file_disk, files):
    ahead = Scenario("add", lambda: file_disk(file=files / "absent"), steps, ahead=True)
    backend, run = ahead.stop_before(asking_agent, "paths.locate")
    seen = ["paths.locate"]
    steps.go()
    while (step := steps.step()) is not None:
        seen.append(step)
        steps.go()
    assert run.wait().status == 1
    assert backend.read("hotplug-error").decode() == f"{files}/absent does not exist."
    assert seen.count("paths.locate") == 1


@pytest.mark.parametrize("state", ["6", None])
def test_the_backend_closes(asking_agent, ahead, steps, place, files, state):
    """Its state is asked for in the transaction alone."""
    backend, run = ahead.stop_before(asking_agent, ASKED)
    if state is None:
        backend.drop("state")
    else:
        backend.write("state", state)
    steps.finish()
    result = run.wait()
    assert result.status == 1
    assert b"Path closed or removed during hotplug add" in result.stderr
    leaks.refuse(place, files, asking_agent.agent)
    assert backend.read("physical-device") is None


def test_the_backend_goes(asking_agent, ahead, steps, place, files):
    seen = []
    for step, backend, run in ahead.walks(asking_agent):
        if step is None:
            assert run.wait().status == 0
            remove(asking_agent, backend, place, files)
            return
        backend.delete()
        steps.finish()
        result = run.wait()
        assert not backend.exists, step
        if result.status:
            assert b"removed" in result.stderr, (step, result)
        leaks.refuse(place, files, asking_agent.agent)
        seen.append(result.status)
    assert 1 in seen


def test_another_run_was_faster(asking_agent, ahead, steps, place, files):
    """Ours takes its own back, and the guest keeps what it was given."""
    backend, run = ahead.stop_before(asking_agent, "journal.claim")
    theirs = loops.attach(files / os.path.basename(backend.read("params").decode()))
    number = next(loop.number for loop in loops.below(files) if loop.path == theirs)
    backend.store.write_many(
        {
            f"{backend.path}/physical-device": number,
            f"{backend.path}/node": theirs,
            f"{backend.path}/hotplug-status": "connected",
        }
    )
    steps.finish()
    assert run.wait().status == 0
    assert backend.read("physical-device") == number.encode()
    assert [loop.path for loop in loops.below(files)] == [theirs]


def program_of_others(place, type_, end):
    """Install it: it counts its runs, and writes to the backend; how it ends is up to the test."""
    tell = 'xenstore-write "$XENBUS_PATH/hotplug-status" busy'
    count = COUNTING.partition("\n")[2]
    place.helper(f"block-{type_}", f"#!/bin/sh\n[ $1 = add ] || exit 0\n{count}{tell}\n{end}\n")
    guest = Guest(place.store)
    return lambda: guest.disk("a:b", keys={"type": type_})


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("type_", ["strange", "phy"])  # the second is one of ours, but not here
def test_a_program_of_others_runs_once(asking_agent, steps, place, files, type_, status, changes):
    """What it writes makes the keys other ones than those that were read."""
    done = 'xenstore-write "$XENBUS_PATH/physical-device" 7:0'
    make = program_of_others(place, type_, "exit 3" if status else done)
    step = "paths.locate" if changes else "journal.claim.record"
    backend, run = Scenario("add", make, steps, ahead=True).stop_before(asking_agent, step)
    if changes:
        backend.write("params", "c:d")
    steps.finish()
    assert run.wait().status == (1 if status else 0)
    assert runs(place) == 1
    assert asking_agent.remove(backend).status == 0
    backend.delete()
    leaks.refuse(place, files, asking_agent.agent)


@pytest.mark.parametrize("type_", ["strange", "phy"])
@pytest.mark.parametrize("state", ["1", "4", "6"])
def test_no_program_runs_for_a_backend_that_does_not_wait(asking_agent, steps, place, type_, state):
    make = program_of_others(place, type_, "exit 0")
    backend, run = Scenario("add", make, steps, ahead=True).stop_before(asking_agent, "store.begin")
    backend.write("state", state)
    steps.finish()
    result = run.wait()
    assert result.status == 1
    assert f"state: {state}".encode() in result.stderr
    assert runs(place) == 0


@pytest.mark.parametrize("state", ["1", "6"])
def test_that_a_backend_does_not_wait_is_told_first(asking_agent, steps, file_disk, files, state):
    """Stock looks at that before it looks for the image."""
    ahead = Scenario("add", lambda: file_disk(file=files / "absent"), steps, ahead=True)
    backend, run = ahead.stop_before(asking_agent, "store.begin")
    backend.write("state", state)
    steps.finish()
    assert f"state: {state}".encode() in run.wait().stderr
    assert f"state: {state}".encode() in backend.read("hotplug-error")


# Cards


@pytest.fixture(scope="module")
def net():
    with netns() as made:
        for name in ("xenbr0", "xenbr1"):
            made.add_bridge(name)
        bridge_netfilter(made, on=False)
        yield made


@pytest.fixture
def card_agent(place, net, steps):
    runner = AskingRunner("agent", place, steps=steps, launcher=net.launcher)
    runner.start_agent()
    yield runner
    runner.end_all()
    assert runner.agent.stop() == 0


@pytest.fixture
def card(place, net, steps):
    """An online whose card was read ahead."""

    def make():
        backend = Guest(place.store).card()
        net.add_vif(backend.link)
        return backend

    return Scenario("online", make, steps, ahead=True)


def test_another_bridge(card_agent, card, steps, net):
    seen, counts = [], {"xenbr0": 0, "xenbr1": 0}
    for step, backend, run in card.walks(card_agent):
        backend.write("bridge", "xenbr1")
        if step is not None:
            steps.finish()
        result = run.wait()
        assert result.status == 0, (step, result)
        expected = "xenbr0" if ASKED in seen else "xenbr1"
        counts[expected] += 1
        assert_port(net, backend.link, expected)
        assert backend.read("hotplug-status") == b"connected"
        assert card_agent.offline(backend).status == 0
        assert_released(net, backend.link)
        backend.delete()
        net.delete(backend.link)
        seen.append(step)
    assert min(counts.values()) > 1


def test_a_bridge_that_comes_late(card_agent, place, steps, net):
    def make():
        backend = Guest(place.store).card(keys={"bridge": "absent"})
        net.add_vif(backend.link)
        return backend

    card = Scenario("online", make, steps, ahead=True)
    backend, run = card.stop_before(card_agent, "journal.claim")
    backend.write("bridge", "xenbr1")
    steps.finish()
    assert run.wait().status == 0
    assert_port(net, backend.link, "xenbr1")


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("status", [0, 3])
def test_a_hook_runs_once(card_agent, card, place, steps, net, status, changes):
    folder = place.scripts / "vif-post.d"
    folder.mkdir()
    tell = 'xenstore-write "$XENBUS_PATH/hotplug-status" error\n'
    place.helper(
        "vif-post.d/count.hook", f"{COUNTING.replace('%/*', '%/*/*')}{tell}exit {status}\n"
    )
    backend, run = card.stop_before(card_agent, "journal.claim.record")
    if changes:
        backend.write("bridge", "xenbr1")
    steps.finish()
    assert run.wait().status == (1 if status else 0)
    assert runs(place) == 1
    if not status:
        assert_port(net, backend.link, "xenbr1" if changes else "xenbr0")
