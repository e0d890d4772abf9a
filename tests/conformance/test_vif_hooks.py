"""Lines 115 and 116 of the checklist, and what may happen while a card is being set up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness.cards import assert_port, assert_released
from harness.lines import F_CARD, K_CARD
from harness.locks import held, wait_until
from harness.outcomes import assert_refused


@K_CARD
def test_hooks_order(card_runner, net, card, hook):
    """115: executable *.hook files run in name order, before the status write; others are
    skipped."""
    backend = card(ip="10.0.0.2 10.0.0.3", mtu=1400)
    last = hook("20-last", 'echo "last $command $dev $type_if"')
    first = hook("10-first", 'echo "first $vif $bridge $ip $XENBUS_PATH"')
    state = hook("30-state", 'cat "/sys/class/net/$dev/"{operstate,mtu,address}')
    status = hook("40-status", 'echo "<$(xenstore-read "$XENBUS_PATH/hotplug-status")>"')
    hook("50-not-executable", "exit 1", mode=0o644)
    hook("60-no-hook", "exit 1", suffix=".sh")
    hook(".70-hidden", "exit 1")
    assert card_runner.online(backend).status == 0
    words = f"first {backend.link} xenbr0 10.0.0.2 10.0.0.3 {backend.relative}"
    assert first() == [words]
    assert last() == [f"last online {backend.link} vif"]
    assert state()[1:] == ["1400", "fe:ff:ff:ff:ff:ff"]
    assert status() == ["<>"]
    everything = (card_runner.place.directory / "hooks").read_text().split()
    assert everything == ["10-first", "20-last", "30-state", "40-status"]
    assert card_runner.offline(backend).status == 0
    assert last()[1:] == [f"last offline {backend.link} vif"]


@K_CARD
def test_hooks_of_a_tap(card_runner, net, card, hook):
    """115: for all four actions; a tap's have the variables that the stock scripts make up."""
    backend = card(tap=True, vifname="tapname")
    seen = hook("seen", 'echo "$command $dev $INTERFACE $type_if $vifname $domid $XENBUS_PATH"')
    tap = f"{backend.link}-emu"
    known = f"tapname-emu {tap} tap tapname-emu {backend.domid} {backend.path}"
    for action in ("add", "remove"):
        assert card_runner.tap(backend, action).status == 0
    assert seen() == [f"add {known}", f"remove {known}"]


@K_CARD
def test_hooks_see_the_bridge_by_its_own_name(card_runner, net, card, hook):
    """115: for all four actions, also for a card that another run set up, or none."""
    net.add_bridge("eth7")
    seen = hook("seen", 'echo "$command $bridge"')
    backend, never = card(tap=True, bridge="xenbr7"), card(bridge="xenbr7")
    assert card_runner.online(backend).status == 0
    for action in ("add", "remove"):
        assert card_runner.tap(backend, action).status == 0
    assert card_runner.offline(backend).status == 0
    assert card_runner.offline(never).status == 0
    net.delete("eth7")
    actions = ("online", "add", "remove", "offline", "offline")
    assert seen() == [f"{action} eth7" for action in actions]


@F_CARD
def test_hooks_see_the_bridge_that_was_found(card_runner, net, card, hook):
    """115: where none was given, and where there is a choice of several meanwhile."""
    backend, never = card(bridge=None), card(bridge=None)
    seen = hook("seen", 'echo "$command <$bridge>"')
    assert card_runner.online(backend).status == 0
    assert card_runner.offline(never).status == 0
    net.add_bridge("br-other")
    assert card_runner.offline(backend).status == 0
    assert card_runner.offline(never).status == 0
    net.delete("br-other")
    known = ["online <xenbr0>", "offline <xenbr0>", "offline <xenbr0>"]
    assert seen() == [*known, "offline <>"]


@K_CARD
def test_hooks_after_a_rename(card_runner, net, card, hook):
    """115: vif is the name that the driver gave, dev the one that the link has."""
    backend = card(vifname="renamed")
    seen = hook("seen", 'echo "$dev $vif $vifname"')
    assert card_runner.online(backend).status == 0
    assert seen() == [f"renamed {backend.link} renamed"]


@K_CARD
def test_hooks_see_what_the_toolstack_said(card_runner, net, card, hook):
    """115: also what the script itself makes no use of."""
    backend = card()
    words = hook("words", 'echo "$XENBUS_TYPE $XENBUS_BASE_PATH $INTERFACE"')
    script = hook("script", 'echo "$script"')
    assert card_runner.online(backend, variables={"INTERFACE": "vif1.0-emu"}).status == 0
    assert words() == ["vif backend vif1.0-emu"]
    assert script() == [card_runner.script("vif-bridge")]


@F_CARD
def test_hook_failure_text(card_runner, net, card, hook):
    """116: failing hook: status error with a text (D53)."""
    backend = card()
    hook("10-failing", "echo 'no such vlan' >&2; exit 7")
    result = card_runner.online(backend)
    assert_refused(backend, result, "10-failing.hook", "status 7", "no such vlan")
    assert_released(net, backend.link)


@F_CARD
def test_hook_failure_at_offline(card_runner, net, card, hook):
    """116: a removal goes on, and the log has the text."""
    backend = card()
    assert card_runner.online(backend).status == 0
    backend.close()
    before = backend.tree()
    hook("10-failing", "echo 'no such vlan' >&2; exit 7")
    result = card_runner.offline(backend)
    assert result.status == 0
    assert_released(net, backend.link)
    assert backend.tree() == before
    assert "no such vlan" in result.log


@F_CARD
def test_hook_cannot_change_the_run(card_runner, net, card, hook):
    """115: each is a process of its own (D53)."""
    backend = card()
    hook("10-leaves", "dev=lo; command=offline; exit 0")
    seen = hook("20-seen", 'echo "$command $dev"')
    assert card_runner.online(backend).status == 0
    assert seen() == [f"online {backend.link}"]
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_hook_with_an_interpreter(card_runner, net, card, hook):
    """115: a #! line counts."""
    backend = card()
    hook("10-python", "import os, sys; sys.exit(os.environ['type_if'])", first="#!/usr/bin/python3")
    assert_refused(backend, card_runner.online(backend), "vif")


@F_CARD
def test_hook_with_odd_values(card_runner, net, card, hook):
    """115: what the store has is a value, whatever is in it (D28, D30)."""
    name = 'a"$(id)\\x41'
    backend = card(vifname=name)
    seen = hook("10-seen", 'echo "$vifname"')
    assert card_runner.online(backend).status == 0
    assert seen() == [name]


DELETE = 'xenstore-rm "$XENBUS_PATH"'


@F_CARD
@pytest.mark.parametrize("role", ["vif", "tap"])
def test_deleted_card_not_resurrected(card_runner, net, card, hook, role):
    """43: BE deleted during the run: exit 1, BE still absent, and the port is taken back (D18)."""
    backend = card(tap=True)
    hook("10-delete", DELETE)
    result = card_runner.online(backend) if role == "vif" else card_runner.tap(backend, "add")
    assert result.status == 1
    assert not backend.exists
    assert_released(net, backend.link if role == "vif" else f"{backend.link}-emu")


@F_CARD
def test_link_goes_during_the_run(card_runner, net, card, hook):
    """98: the driver is unbound while the card is being set up."""
    backend = card()
    hook("10-unplug", 'ip link delete dev "$dev"')
    assert card_runner.online(backend).status == 0
    assert card_runner.offline(backend).status == 0


@F_CARD
def test_success_clears_the_error_of_a_card(card_runner, net, card, hook):
    """44: a stale hotplug-error is gone after success (D21)."""
    backend = card()
    hook("10-failing", "exit 1")
    assert card_runner.online(backend).status == 1
    hook("10-failing", "exit 0")
    assert card_runner.online(backend).status == 0
    assert backend.read("hotplug-error") is None
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_killed_while_a_hook_runs(card_runner, net, card, hook):
    """20: killed at any point: nothing of it stays, and the next online succeeds (D07)."""
    backend = card(vifname="killed")
    waiting = hook("10-wait", 'echo "$dev"; sleep 30')
    run = card_runner.start_card(backend, "online")
    wait_until(waiting, "the hook runs")
    run.kill()
    if card_runner.agent is not None:
        wait_until(lambda: backend.link in net.links(), "the agent has taken it back")
        assert_released(net, backend.link)
    hook("10-wait", "exit 0")
    assert card_runner.online(backend).status == 0
    assert_port(net, "killed")
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_killed_run_and_offline(card_runner, net, card, hook):
    """20: after the kill the toolstack destroys the domain, which runs offline."""
    backend = card(vifname="killed")
    waiting = hook("10-wait", '[ "$command" = offline ] || { echo "$dev"; sleep 30; }')
    run = card_runner.start_card(backend, "online")
    wait_until(waiting, "the hook runs")
    run.kill()
    assert card_runner.offline(backend).status == 0
    names = net.links()
    assert_released(net, backend.link if backend.link in names else "killed")


DEADLINE = 1.0
MARGIN = 3.0  # seconds: to start an interpreter on a busy machine, and to undo


@pytest.fixture
def hurried(card_runner):
    """A deadline that no test has to wait long for."""
    card_runner.reconfigure(deadline=DEADLINE)
    yield card_runner
    card_runner.reconfigure()


def assert_bounded(runner, backend):
    began = time.monotonic()
    result = runner.online(backend)
    assert time.monotonic() - began < DEADLINE + MARGIN
    assert result.status == 1
    assert backend.read("hotplug-status") == b"error"
    assert b"1 s" in backend.read("hotplug-error")


@F_CARD
def test_bounded_run_time_of_a_hook(hurried, net, card, hook):
    """21: no wait, lock or device, can exceed 35 s in total (D23, D45). Nor can a hook's."""
    backend = card()
    waiting = hook("10-wait", "echo $$; exec sleep 1000")
    assert_bounded(hurried, backend)
    assert_released(net, backend.link)
    (pid,) = waiting()
    assert not Path(f"/proc/{pid}").exists()


@F_CARD
def test_bounded_run_time_of_a_lock(hurried, net, card):
    """21: the lock of the names that vifname gives (D23)."""
    backend = card(vifname="waiting")
    with held(hurried.place.rundir / "vifname"):
        assert_bounded(hurried, backend)
    assert_released(net, backend.link)
    assert hurried.online(backend).status == 0
    assert_port(net, "waiting")
