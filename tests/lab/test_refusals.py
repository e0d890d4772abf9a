"""Disks that a guest must not get, and what xl makes of it; stock beside ours."""

from __future__ import annotations

from lab.guests import Disk, Guest


def two_writers(machine):
    machine.do("truncate -s 8M /tmp/shared.img")
    first = Guest(machine, "first", [Disk("xvda", "/tmp/shared.img")])
    second = Guest(machine, "second", [Disk("xvda", "/tmp/shared.img")])
    assert first.create().status == 0
    result = second.create()
    first.destroy()
    second.destroy()
    return result


def test_two_guests_want_to_write_the_same_image(lab):
    result = two_writers(lab)
    assert result.status != 0
    assert "File /tmp/shared.img is loopback-mounted through" in result.stderr, str(result)
    assert "used by guest" in result.stderr or "a guest" in result.stderr, str(result)


def test_stock_lets_both_write(stock):
    """D02: the check for files never finds anybody."""
    assert two_writers(stock).status == 0


def no_image(machine):
    guest = Guest(machine, "poor", [Disk("xvda", "/tmp/there-is-none.img")])
    result = guest.create()
    assert not guest.is_there
    return result


def test_there_is_no_image(lab):
    result = no_image(lab)
    assert result.status != 0
    assert "/tmp/there-is-none.img" in result.stderr, str(result)
    assert "does not exist" in result.stderr, str(result)


def test_there_is_no_image_with_stock(stock):
    """D05: it fails as well, and says nothing of the image."""
    result = no_image(stock)
    assert result.status != 0
    assert "/tmp/there-is-none.img" not in result.stderr.replace("script=block,target=", "")
