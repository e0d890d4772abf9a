"""block-drbd-probe, with a drbdadm that keeps its rules."""

from __future__ import annotations

import pytest
from fakes_host import World

from hotplug.handlers.targets import drbd

USABLE = {
    "device": "/dev/drbd1",
    "cstate": "Connected",
    "role": "Primary/Secondary",
    "protocol": "D",
}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def probe(world, device="/dev/drbd1"):
    host = world.host()
    return drbd.probe(host.programs, host.deadline, device)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, drbd.USABLE),
        ({"protocol": "C"}, drbd.NOT_PROTOCOL_D),
        ({"cstate": "WFConnection"}, drbd.NOT_READY),
        ({"role": "Secondary/Primary"}, drbd.NOT_READY),
        ({"role": "Primary/Unknown"}, drbd.NOT_READY),
        ({"device": "/dev/drbd11"}, drbd.NOT_DRBD),
    ],
)
def test_statuses(world, changes, status):
    other = {**USABLE, "device": "/dev/drbd2", "protocol": "A"}
    world.tell("drbd", {"other": other, "disk": {**USABLE, **changes}})
    assert probe(world) == status


def test_no_drbd(world):
    assert probe(world) == drbd.NOT_DRBD
    world.absent |= {"drbdadm", "drbdsetup"}
    assert probe(world) == drbd.NOT_DRBD


@pytest.mark.parametrize("step", ["sh-dev all", "sh-resource", "sh-dev disk"])
@pytest.mark.parametrize("fault", [10, "hang"])
def test_drbdadm_fails(world, step, fault):
    world.tell("drbd", {"disk": USABLE})
    world.tell("faults", {f"drbdadm {step}": fault})
    assert probe(world) == drbd.UNKNOWN_ERROR


def test_drbdsetup_knows_no_such_call(world):
    """From DRBD 8.4 on: nothing there has protocol D."""
    world.tell("drbd", {"disk": USABLE})
    world.tell("faults", {"drbdsetup": 20})
    assert probe(world) == drbd.NOT_PROTOCOL_D


def test_explanations():
    assert drbd.explain("/dev/sda", drbd.NOT_DRBD) == "/dev/sda is not a DRBD device"
    assert drbd.explain("/dev/drbd1", drbd.USABLE) == ""
    assert set(drbd.MEANINGS) == set(range(5))
