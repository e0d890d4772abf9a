"""The commands for network cards: what they print, and what they do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness.guests import Guest
from harness.netns import netns
from harness.run import Runner

from hotplug import cli
from hotplug.handlers import table

HEAD = ["CARD", "GUEST", "LINK", "BRIDGE", "MAC", "STATE", "ADDRESSES"]


@pytest.fixture(scope="module")
def net():
    with netns() as made:
        made.add_bridge("xenbr0")
        made.add_outside("eth0", "192.0.2.1/24")
        yield made


@pytest.fixture(params=["agent", "no agent"])
def host(request, place, net):
    """Commands do the same with an agent and without one."""
    runner = Runner("agent", place, launcher=net.launcher)
    if request.param == "agent":
        runner.start_agent()
    yield runner
    if runner.agent is not None:
        assert runner.agent.stop() == 0


@pytest.fixture
def command(place, net):
    """Run ``xen-hotplug`` in the namespace: exit status, stdout, stderr."""

    def run(*words, variables=None):
        done = subprocess.run(
            [*net.launcher, sys.executable, "-m", "hotplug", *words],
            env={**place.environment(), **(variables or {})},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def card(place, net):
    """Make guests with a card each."""
    made = []

    def make(**keys):
        backend = Guest(place.store).card(keys=keys)
        net.add_vif(backend.link)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        net.delete(backend.link)


def guest_name(backend):
    return backend.store.read(f"/local/domain/{backend.domid}/name").decode()


def test_there_is_a_command_for_each_script():
    assert cli.CARD_COMMANDS.keys() == table.CARD_SCRIPTS.keys()


@pytest.mark.parametrize("words", [("vif",), ("vif", "list"), *((x,) for x in cli.CARD_COMMANDS)])
def test_help(command, words):
    code, out, err = command(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: xen-hotplug {words[0]}")
    assert all(len(line) <= 100 for line in out.split("\n"))


@pytest.mark.parametrize("spelling", ["path", "numbers", "name", "environment"])
def test_online_and_offline(host, command, net, card, spelling):
    backend = card()
    words, variables = {
        "path": ([backend.path], {}),
        "numbers": ([f"{backend.domid}/{backend.devid}"], {}),
        "name": ([f"{guest_name(backend)}:0"], {}),
        "environment": ([], {"XENBUS_PATH": backend.relative}),
    }[spelling]
    assert command("vif-bridge", "online", *words, variables=variables) == (0, "", "")
    assert backend.read("hotplug-status") == b"connected"
    assert net.links()[backend.link]["master"] == "xenbr0"
    assert command("vif-bridge", "offline", *words, variables=variables) == (0, "", "")
    assert "master" not in net.links()[backend.link]
    backend.delete()


def test_parameters(host, command, net, card):
    backend = card(script="/etc/xen/scripts/vif-route")
    name = f"{backend.domid}/0"
    assert command("vif-route", "online", "ip=10.0.0.2 10.0.0.3", name) == (0, "", "")
    assert sorted(net.routes_over(backend.link)) == ["10.0.0.2", "10.0.0.3"]
    assert command("vif-route", "offline", name) == (0, "", "")
    backend.delete()


def test_tap(host, command, net, card):
    backend = card()
    net.add_tap(f"{backend.link}-emu")
    name = f"{backend.domid}/0"
    assert command("vif-bridge", "add", name) == (0, "", "")
    assert net.links()[f"{backend.link}-emu"]["master"] == "xenbr0"
    assert command("vif-bridge", "remove", name) == (0, "", "")
    assert "master" not in net.links()[f"{backend.link}-emu"]
    assert not backend.read("hotplug-status")
    net.delete(f"{backend.link}-emu")
    backend.delete()


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, "which card? name a BACKEND, for example 5/0, or set XENBUS_PATH"),
        (["5/0", "6/0"], 2, "one BACKEND at a time: 5/0 6/0"),
        (["nobody:0"], 2, "there is no guest 'nobody' with a card here; see `xen-hotplug vif list"),
        (["nobody:eth0"], 2, "'nobody:eth0' names no card; say backend/vif/5/0, 5/0 or myguest:0"),
        (["rubbish"], 2, "'rubbish' names no card"),
        (["backend/vbd/5/0"], 2, "'backend/vbd/5/0' is no network card"),
        (["5/0", "brigde=x"], 2, "brigde=x: there is no such parameter; there are bridge, dhcp"),
        (["5/0", "type_if=tap"], 2, "type_if=tap makes no sense with 'online', which is for the"),
        (["5/0", "type_if="], 2, "type_if= makes no sense with 'online'"),
        (["999/0", "type_if=vif"], 1, "there is no backend backend/vif/999/0; was the device"),
        (["999/0"], 1, "there is no backend backend/vif/999/0; was the device removed?"),
    ],
)
def test_wrong_words(host, command, words, status, sentence):
    code, out, err = command("vif-bridge", "online", *words)
    assert (code, out) == (status, "")
    assert err.startswith("xen-hotplug: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_card_that_the_guest_does_not_have(host, command, card):
    name = guest_name(card())
    code, _, err = command("vif-bridge", "online", f"{name}:3")
    assert (code, err) == (2, f"xen-hotplug: guest '{name}' has no card 3; it has 0\n")


def test_list(host, command, net, card):
    assert command("vif", "list") == (0, "No guest has a network card here.\n", "")
    up, waiting, broken = card(ip="10.0.0.2"), card(), card(bridge="nobridge")
    assert host.online(up).status == 0
    assert host.online(broken).status == 1
    code, out, err = command("vif", "list")
    assert (code, err) == (0, "")
    head, *rows = (line.split() for line in out.splitlines())
    assert head == HEAD
    expected = [
        (up, "xenbr0", "waiting", "10.0.0.2"),
        (waiting, "-", "waiting", "-"),
        (broken, "-", "error", "-"),
    ]
    assert rows == [
        [
            f"{backend.domid}/0",
            guest_name(backend),
            backend.link,
            bridge,
            backend.read("mac").decode(),
            state,
            addresses,
        ]
        for backend, bridge, state, addresses in expected
    ]
    net.delete(up.link)
    first, second, third = json.loads(command("vif", "list", "--json")[1])
    assert (first["link"], first["bridge"], first["state"]) == (None, "xenbr0", "lost")
    assert (first["addresses"], second["addresses"]) == (["10.0.0.2"], [])
    assert "nobridge" in third["error"]
    for backend in (up, waiting, broken):
        assert host.offline(backend).status == 0
        backend.delete()
