"""The source of uevents, on real ones: loop devices stand in for xen-backend devices."""

from __future__ import annotations

import pytest
from harness import loops
from harness.loops import make_file

from hotplug.sources.udev import OverflowedError, UdevSource

CYCLES = 200  # far more than the smallest buffer holds: about two events each


def churn(path, times):
    for _ in range(times):
        loops.detach(loops.attach(path))


def test_events_arrive_with_their_properties(tmp_path):
    source = UdevSource("block")
    churn(make_file(tmp_path / "disk.img"), 1)
    events = list(source.receive())
    assert {"change"} <= {event["ACTION"] for event in events}
    assert {event["SUBSYSTEM"] for event in events} == {"block"}
    assert list(source.receive()) == []


def test_of_other_subsystems_none(tmp_path):
    source = UdevSource("xen-backend")
    churn(make_file(tmp_path / "disk.img"), 1)
    assert list(source.receive()) == []


def test_a_loss_is_told(tmp_path):
    source = UdevSource("block", receive_buffer=1)
    churn(make_file(tmp_path / "disk.img"), CYCLES)
    with pytest.raises(OverflowedError):
        list(source.receive())
