"""Packet filters that others delete come back, while an agent runs and when one starts."""

from __future__ import annotations

import time

import pytest
from harness.guests import Guest
from harness.netns import netns
from harness.rules import guarded
from harness.run import Runner

SECONDS = 10.0  # it takes milliseconds


@pytest.fixture
def net():
    with netns() as made:
        made.add_bridge("xenbr0")
        made.add_outside("eth0", "192.0.2.1/24")
        yield made


@pytest.fixture
def host(place, net):
    runner = Runner("agent", place, launcher=net.launcher)
    runner.start_agent()
    yield runner
    if runner.agent.process.poll() is None:
        assert runner.agent.stop() == 0


@pytest.fixture
def card(place, net):
    """Make guests with a card each, that are online."""
    made = []

    def make(host, **keys):
        backend = Guest(place.store).card(keys={"ip": "10.0.0.2", **keys})
        net.add_vif(backend.link)
        made.append(backend)
        assert host.online(backend).status == 0
        return backend

    yield make
    for backend in made:
        net.delete(backend.link, "web")
        backend.delete()


def flush(net):
    net.run("nft", "flush", "ruleset")


def await_guards(net, *links):
    give_up = time.monotonic() + SECONDS
    while guarded(net) != set(links):
        assert time.monotonic() < give_up, guarded(net)
        time.sleep(0.01)


def rules(net):
    """Of ours, as nft shows them."""
    families = ("bridge", "inet")
    return [
        net.run("nft", "list", "table", family, "xen_hotplug", check=False).stdout
        for family in families
    ]


@pytest.mark.parametrize("script", ["vif-bridge", "vif-route", "vif-nat"])
def test_a_ruleset_that_is_flushed(host, net, card, script):
    backend = card(host, script=f"/etc/xen/scripts/{script}")
    before = rules(net)
    for _ in range(3):
        flush(net)
        await_guards(net, backend.link)
        assert rules(net) == before
    assert f"others deleted the packet filter of {backend.link}" in host.agent.log.read_text()
    assert host.offline(backend).status == 0
    assert guarded(net) == set()


def test_of_many_cards(host, net, card):
    backends = [card(host, ip=f"10.0.0.{number} 2001:db8::{number}") for number in range(1, 9)]
    backends.append(card(host, vifname="web"))
    card(host, ip="")
    links = [*(backend.link for backend in backends[:-1]), "web"]
    flush(net)
    await_guards(net, *links)
    assert host.offline(backends[0]).status == 0
    flush(net)
    await_guards(net, *links[1:])
    for backend in backends[1:]:
        assert host.offline(backend).status == 0
    assert guarded(net) == set()


def test_what_happened_while_no_agent_ran(host, net, card):
    backend = card(host)
    host.agent.kill()
    flush(net)
    assert guarded(net) == set()
    host.start_agent()
    await_guards(net, backend.link)
    flush(net)
    await_guards(net, backend.link)
    assert host.offline(backend).status == 0


def test_a_card_that_is_no_longer_held_to_anything(host, net, card):
    backend, other = card(host), card(host)
    backend.write("ip", "")
    assert host.online(backend).status == 0
    flush(net)
    await_guards(net, other.link)
    for one in (backend, other):
        assert host.offline(one).status == 0
