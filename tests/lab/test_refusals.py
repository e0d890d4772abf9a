"""Disks that a guest must not get, and what xl makes of it; stock beside ours."""

from __future__ import annotations

import re

import pytest
from lab import hotplug
from lab.guests import Disk, Guest

OURS, STOCK = "block", "block" + hotplug.STOCK
BUSY = (
    r"File /tmp/shared\.img is loopback-mounted through 7:\d+,\n"
    r"which is mounted in a guest domain,\nand so cannot be mounted now\."
)


def two_writers(machine, script):
    machine.do("truncate -s 8M /tmp/shared.img")
    first = Guest(machine, "first", [Disk("xvda", "/tmp/shared.img", script=script)])
    second = Guest(machine, "second", [Disk("xvda", "/tmp/shared.img", script=script)])
    assert first.create().status == 0
    result = second.create()
    there = machine.do("xl list")
    assert "first" in there
    first.destroy()
    second.destroy()
    return result, "second" in there


def test_two_guests_want_to_write_the_same_image(lab):
    result, created = two_writers(lab, OURS)
    assert result.status != 0
    assert re.search(BUSY, result.stderr), str(result)
    assert not created


def test_stock_lets_both_write(lab):
    """D02: the check for files never finds anybody."""
    result, created = two_writers(lab, STOCK)
    assert result.status == 0
    assert created


@pytest.mark.parametrize("script", [OURS, STOCK])
def test_there_is_no_image(lab, script):
    """D05: with stock it fails as well, and nothing says that it is for the image."""
    guest = Guest(lab, "poor", [Disk("xvda", "/tmp/there-is-none.img", script=script)])
    result = guest.create()
    assert result.status != 0
    assert "poor" not in lab.do("xl list")
    told = "/tmp/there-is-none.img does not exist" in result.stderr
    assert told == (script == OURS), str(result)
