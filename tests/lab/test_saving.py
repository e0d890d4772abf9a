"""Guests saved by our helper and by Xen's own, restored by either."""

from __future__ import annotations

import itertools
import time

import pytest
from lab import hotplug
from lab.guests import Guest

OURS = "LIBXL_SAVE_HELPER=/usr/local/lib/xen-hotplug/libxl-save-helper"
STOCK = "stock"
NOISE = 4 << 20  # bytes
BALLOONED = 140  # MB of 160
FILE, ON_DISK = "/tmp/kept.save", "/var/tmp/kept.save"
BLOCK = 512  # bytes
ADDRESS = "10.99.0.2"
NUMBERS = itertools.count(1)
# Who saved it and who restored it: every pair of them, one after the other.
STEPS = ((STOCK, OURS), (OURS, STOCK), (OURS, OURS), (STOCK, STOCK))
# Page tables come and go as fast as they can, on every processor. A PVH guest's are plain data to
# a saver, and under emulation such a guest dies of a triple fault now and then when it is so busy.
BUSY = "while :; do (head -c 3000000 /dev/zero | tail -c 1 >/dev/null); true | true; done"
# Nobody shall read the file between its truncation and the next number.
TICKS = "i=0; while :; do echo $((i+=1)) >/tmp/tick; mv /tmp/tick /tmp/ticks; usleep 100000; done"


@pytest.fixture(params=["pv", "pvh"])
def guest(lab, request):
    """Two processors, noise in its memory, and its processes at work."""
    name = f"saved-{request.param}-{next(NUMBERS)}"  # its console's log is its own
    guest = Guest(lab, name, kind=request.param, more=("vcpus=2",))
    guest.start()
    guest.run(f"head -c {NOISE} /dev/urandom > /tmp/noise")
    guest.run(f"({TICKS}) & true")  # a command follows what it is given
    if guest.kind == "pv":
        guest.run(f"for n in 1 2; do ({BUSY}) & done")
    yield guest
    lab.do(f"rm -f {FILE}")


def xl(lab, who, words):
    helper = f"LIBXL_SAVE_HELPER={hotplug.stock_helper(lab)}" if who is STOCK else OURS
    done = lab.dom0(f"{helper} xl {words}")
    assert done.status == 0, str(done)
    assert ("xen-hotplug: info: " in done.stderr) == (who is OURS), str(done)


def is_alive(guest, digest, vcpus=2):
    """Its memory is what it was, and what ran in it goes on."""
    assert guest.run("sha256sum /tmp/noise") == digest
    assert guest.run("grep -c ^processor /proc/cpuinfo") == str(vcpus)
    before = int(guest.run("cat /tmp/ticks"))
    deadline = time.monotonic() + 30
    while int(guest.run("cat /tmp/ticks")) <= before:
        assert time.monotonic() < deadline, "its processes do not go on"
    assert guest.run("dmesg | grep -c -e BUG: -e 'Bad page' || true") == "0"


def refuse_without_room(lab, guest):
    """Saved to a disk that is full before it is done, by ours: we say so."""
    lab.do("mkdir -p /tmp/small && mount -t tmpfs -o size=8m none /tmp/small")
    done = lab.dom0(f"{OURS} xl save {guest.name} /tmp/small/file")
    lab.do("umount /tmp/small")
    assert done.status != 0
    assert "saving failed: the image: No space left on device" in done.stderr, str(done)


def balloon(lab, guest):
    """Give back some of its memory; its p2m has holes then."""
    lab.do(f"xl mem-set {guest.name} {BALLOONED}")
    asked = f"xl list {guest.name} | awk 'END {{ exit !($3 <= {BALLOONED}) }}'"
    lab.wait_for(asked, "the guest has given memory back")


@pytest.mark.long
def test_whoever_saves_and_restores(lab, guest):
    digest = guest.run("sha256sum /tmp/noise")
    for step, (saver, restorer) in enumerate(STEPS):
        if step == 1:
            balloon(lab, guest)
        xl(lab, saver, f"save {guest.name} {FILE}")
        assert not guest.is_there
        assert "no rule of the format is broken" in lab.do(f"xen-hotplug savefile verify {FILE}")
        xl(lab, restorer, f"restore {FILE}")
        is_alive(guest, digest)
    guest.destroy()
    hotplug.refuse_leaks(lab)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "memory", "vcpus"), [("pv", 96, 1), ("pvh", 128, 1), ("pv", 1024, 2), ("pvh", 1024, 2)]
)
def test_small_and_large_guests(lab, kind, memory, vcpus):
    """With a checksum over an eighth of its memory, and a card by which it answers.

    Debian's kernel takes 58 MB to be loaded, and under PVH keeps more. The large file has no room
    in dom0's memory.
    """
    name, more = f"size-{kind}-{memory}", (f"vcpus={vcpus}",)
    guest = Guest(lab, name, kind=kind, memory=memory, address=ADDRESS, more=more)
    guest.start()
    guest.run(f"head -c {memory << 17} /dev/urandom > /tmp/noise", limit=300)
    guest.run(f"({TICKS}) & true")
    digest = guest.run("sha256sum /tmp/noise")
    for saver, restorer in STEPS[:3]:
        xl(lab, saver, f"save {guest.name} {ON_DISK}")
        xl(lab, restorer, f"restore {ON_DISK}")
        is_alive(guest, digest, vcpus)
        lab.wait_for(f"busybox ping -c 1 -W 3 {ADDRESS} >/dev/null", "the guest answers", 60)
    guest.destroy()
    lab.do(f"rm {ON_DISK}")
    hotplug.refuse_leaks(lab)


@pytest.mark.long
def test_the_guest_that_stays(lab, guest):
    """``xl save -c`` lets it run on, and what it wrote is a guest all the same."""
    digest = guest.run("sha256sum /tmp/noise")
    xl(lab, OURS, f"save -c {guest.name} {FILE}")
    is_alive(guest, digest)
    guest.destroy()
    xl(lab, OURS, f"restore {FILE}")
    is_alive(guest, digest)
    guest.destroy()


@pytest.mark.long
def test_a_save_that_fails(lab, guest):
    """The disk is full, or somebody ends it: the guest runs on, and we say what was wrong."""
    digest = guest.run("sha256sum /tmp/noise")
    refuse_without_room(lab, guest)
    is_alive(guest, digest)

    # A reader that takes nothing keeps the helper at it until it is ended.
    done = lab.dom0(
        f"rm -f /tmp/fifo; mkfifo /tmp/fifo; sleep 60 </tmp/fifo & reader=$!;"
        f" {OURS} xl save {guest.name} /tmp/fifo 2>/tmp/said & saver=$!;"
        " until helper=$(pgrep -P $saver -f save-domain); do sleep 0.2; done; sleep 3;"
        " kill -TERM $helper; wait $saver; echo status=$?; kill $reader; cat /tmp/said"
    )
    assert "status=0" not in done.stdout, str(done)
    assert "saving failed: it was ended by SIGTERM" in done.stdout, str(done)
    is_alive(guest, digest)
    guest.destroy()
    hotplug.refuse_leaks(lab)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_what_a_fresh_guest_takes_on_the_disk(lab, kind):
    guest = Guest(lab, f"fresh-{kind}", kind=kind, memory=400)
    guest.start()
    xl(lab, OURS, f"save {guest.name} {FILE}")
    size, blocks = map(int, lab.do(f"stat -c '%s %b' {FILE}").split())
    assert size > 380 << 20
    assert blocks * BLOCK <= 80_000_000
    xl(lab, STOCK, f"restore {FILE}")
    guest.run("true")
    guest.destroy()
    lab.do(f"rm {FILE}")
