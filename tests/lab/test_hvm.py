"""An HVM guest: a BIOS, a device model, and beside its disk and card those that this one emulates.

It boots once, which takes minutes, is saved by Xen's own helper, and comes back from that
file for each test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from lab import hotplug
from lab.guests import Disk, Guest
from lab.test_saving import (
    FILE,
    NOISE,
    OURS,
    STEPS,
    STOCK,
    TICKS,
    balloon,
    is_alive,
    refuse_without_room,
    xl,
)

pytestmark = pytest.mark.long

SAVED = "/tmp/hvm.save"
IMAGE, SIZE = "/tmp/hvm.img", 1 << 20
ADDRESS = "10.99.0.2"
FORMS = ("sparse", "dense")
RESUME_SECONDS = 300.0  # its kernel sees to every emulated device; on a busy machine 60 are few


@dataclass(frozen=True, slots=True)
class Saved:
    """A guest whose file is there while it is not."""

    guest: Guest
    noise: str  # what it says of its memory
    content: str  # and of its disk


@pytest.fixture(scope="module")
def saved(host):
    """Noise in its memory, its processes at work.

    One processor: on a busy machine the start of a second one was seen to take for ever.
    """
    host.do(f"modprobe tun; head -c {SIZE} /dev/urandom > {IMAGE}")
    disks = [Disk("hda", IMAGE)]  # xvda, as soon as it has had the emulated one unplugged
    guest = Guest(host, "hvm", disks, kind="hvm", address=ADDRESS)
    guest.start()
    guest.run(f"head -c {NOISE} /dev/urandom > /tmp/noise")
    guest.run(f"({TICKS}) & true")
    noise, content = guest.run("sha256sum /tmp/noise"), guest.run("sha256sum </dev/xvda")
    assert "Xen HVM" in guest.run("dmesg | grep 'Hypervisor detected'")
    xl(host, STOCK, f"save {guest.name} {SAVED}")
    yield Saved(guest, noise, content)
    host.do(f"rm -f {SAVED} {IMAGE}")


def is_well(lab, saved):
    """It is the one that was saved, and its disk and its card are served."""
    guest = saved.guest
    guest.run("true", limit=RESUME_SECONDS)
    is_alive(guest, saved.noise, vcpus=1)
    content = guest.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/xvda")
    assert content == saved.content
    lab.wait_for(f"busybox ping -c 1 -W 3 {ADDRESS} >/dev/null", "the guest answers", 60)


def verify(lab, path):
    assert "no rule of the format is broken" in lab.do(f"xen-hotplug savefile verify {path}")


def test_whoever_saves_and_restores(lab, saved):
    guest = saved.guest
    verify(lab, SAVED)
    assert json.loads(lab.do(f"xen-hotplug savefile info --json {SAVED}"))["guest"]["type"] == "hvm"
    xl(lab, OURS, f"restore {SAVED}")
    is_well(lab, saved)
    balloon(lab, guest)
    for saver, restorer in STEPS[1:]:
        xl(lab, saver, f"save {guest.name} {FILE}")
        assert not guest.is_there
        verify(lab, FILE)
        xl(lab, restorer, f"restore {FILE}")
        is_well(lab, saved)
    guest.destroy()
    lab.do(f"rm {FILE}")
    hotplug.refuse_leaks(lab)


@pytest.mark.parametrize("form", FORMS)
def test_its_compact_files(lab, saved, form):
    option = "--dense" if form == "dense" else ""
    lab.do(f"xen-hotplug savefile compact {option} {SAVED} {FILE}")
    verify(lab, FILE)
    xl(lab, OURS, f"restore {FILE}")
    is_well(lab, saved)
    saved.guest.destroy()
    lab.do(f"xen-hotplug savefile expand {FILE} /tmp/again.save; cmp {SAVED} /tmp/again.save")
    lab.do(f"rm {FILE} /tmp/again.save")


def test_the_guest_that_stays(lab, saved):
    """After ``xl save -c``, and after a save for which there was no room."""
    guest = saved.guest
    xl(lab, OURS, f"restore {SAVED}")
    refuse_without_room(lab, guest)
    is_well(lab, saved)
    xl(lab, OURS, f"save -c {guest.name} {FILE}")
    is_well(lab, saved)
    guest.destroy()
    xl(lab, STOCK, f"restore {FILE}")
    is_well(lab, saved)
    guest.destroy()
    lab.do(f"rm {FILE}")
