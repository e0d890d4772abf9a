"""Guests that Xen's own helper saved, restored by ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import hotplug
from lab.guests import Guest

OURS = "LIBXL_SAVE_HELPER=/usr/local/lib/xen-hotplug/libxl-save-helper"
WORKERS = "pgrep -x restore-worker"
# The one that has libxl's pipe.
AT_WORK = (
    "for pid in $(pgrep -x restore-worker); do"
    " readlink /proc/$pid/fd/0 | grep -q pipe && echo $pid; done"
)
NOISE = 4 << 20  # bytes
TIMES = 100
FILES = "/tmp/*.save"


@pytest.fixture(params=["pv", "pvh"])
def saved(lab, request):
    """A guest with noise in its memory, saved by xl into full.save; and the noise's digest."""
    guest = Guest(lab, f"kept-{request.param}", kind=request.param, more=("vcpus=2",))
    hotplug.await_workers(lab)
    guest.start()
    guest.run(f"head -c {NOISE} /dev/urandom > /tmp/noise")
    digest = guest.run("sha256sum /tmp/noise")
    lab.do(f"LIBXL_SAVE_HELPER={hotplug.stock_helper(lab)} xl save {guest.name} /tmp/full.save")
    yield guest, digest
    lab.do(f"rm {FILES}")


def restore(lab, file):
    """By ours: it says so."""
    done = lab.dom0(f"{OURS} xl restore {file}")
    assert done.status == 0, str(done)
    assert "xen-hotplug: info: restored" in done.stderr, str(done)


def test_a_guest_is_as_it_was(lab, saved):
    guest, digest = saved
    lab.do("xen-hotplug savefile compact /tmp/full.save /tmp/sparse.save")
    lab.do("xen-hotplug savefile compact --dense /tmp/full.save /tmp/dense.save")
    for form in ("full", "sparse", "dense"):
        lab.wait_for(WORKERS, "a worker is there")
        before = lab.do(WORKERS).strip()
        restore(lab, f"/tmp/{form}.save")
        lab.wait_for(f"[ $({WORKERS}) != {before} ]", "it has done this, and another is there")
        assert guest.run("sha256sum /tmp/noise") == digest
        assert guest.run("grep -c ^processor /proc/cpuinfo") == "2"
        if form != "dense":
            guest.destroy()

    # What was restored can be saved, by ours, and restored again.
    lab.do(f"{OURS} xl save {guest.name} /tmp/again.save")
    lab.do("xen-hotplug savefile compact --dense /tmp/again.save /tmp/again-dense.save")
    for form in ("again", "again-dense"):
        restore(lab, f"/tmp/{form}.save")
        assert guest.run("sha256sum /tmp/noise") == digest
        guest.destroy()

    lab.do("head -c 20M /tmp/full.save >/tmp/half.save")
    refused = lab.dom0(f"{OURS} xl restore /tmp/half.save")
    assert refused.status != 0
    assert "truncated: it ends at byte" in refused.stderr, str(refused)
    hotplug.refuse_leaks(lab)


@pytest.mark.long
def test_without_an_agent(lab, saved):
    """A Python is started for it."""
    guest, digest = saved
    hotplug.stop_agent(lab)
    assert lab.dom0("pgrep -x 'restore-(server|worker)'").status == 1
    restore(lab, "/tmp/full.save")
    assert guest.run("sha256sum /tmp/noise") == digest
    guest.destroy()


@pytest.mark.long
def test_killed_in_the_middle(lab, saved):
    """Nothing is left: no guest, no worker, no memory."""
    guest, digest = saved
    free = "$(xl info free_memory)"
    before = lab.do(f"echo {free}").strip()
    for number, victim in (("TERM", "pgrep -x libxl-save-help"), ("KILL", AT_WORK)):
        hang = f"(head -c 30M /tmp/full.save; sleep 60) | {OURS} xl restore"
        lab.do(f"({hang} {guest.config_path} /dev/stdin >/run/hang 2>&1) &")
        lab.wait_for(f"[ $(({before} - {free})) -gt 20 ]", "it has begun")
        lab.do(f"kill -{number} $({victim}); pkill -x sleep")
        lab.wait_for("! pgrep -x libxl-save-help", "what libxl runs is gone")
        lab.wait_for(f"[ {free} -ge {before} ]", "its memory is free again")
        assert not guest.is_there
    restore(lab, "/tmp/full.save")
    assert guest.run("sha256sum /tmp/noise") == digest
    guest.destroy()


@pytest.mark.long
def test_again_and_again(lab, saved):
    guest, digest = saved
    lab.do("xl dmesg -c >/dev/null")
    free = lab.do("xl info free_memory").strip()
    for _ in range(TIMES):
        restore(lab, "/tmp/full.save")
        guest.destroy()
    restore(lab, "/tmp/full.save")
    assert guest.run("sha256sum /tmp/noise") == digest
    guest.destroy()
    lab.wait_for(f"[ $(xl info free_memory) -ge {free} ]", "all memory is free again")
    assert "mm.c" not in lab.do("xl dmesg"), "Xen says that a page has the wrong type"


@pytest.mark.long
def test_four_at_once(lab, saved):
    """Their names are those of one guest, so each restore is given a configuration."""
    guest, digest = saved
    names = [f"four-{number}" for number in range(4)]
    for name in names:
        lab.put(f"/tmp/{name}.cfg", guest.config().replace(guest.name, name))
    restores = [
        f"{OURS} xl restore /tmp/{name}.cfg /tmp/full.save; echo status=$?" for name in names
    ]
    done = lab.dom0("\n".join(f"({one}) 2>&1 &" for one in restores) + "\nwait", limit=300)
    assert done.stdout.count("status=0") == len(names), str(done)
    assert done.stdout.count("xen-hotplug: info: restored") == len(names), str(done)
    for name in names:
        assert replace(guest, name=name).run("sha256sum /tmp/noise", limit=180) == digest
    hotplug.destroy_guests(lab, "four-")
