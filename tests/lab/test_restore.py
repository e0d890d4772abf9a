"""Guests that Xen's own helper saved, restored by ours."""

from __future__ import annotations

import pytest
from lab import hotplug
from lab.guests import Guest

OURS = "LIBXL_SAVE_HELPER=/usr/local/lib/xen-hotplug/libxl-save-helper"
NOISE = 4 << 20  # bytes
FILES = "/tmp/*.save"


@pytest.fixture(params=["pv", "pvh"])
def saved(lab, request):
    """A guest with noise in its memory, saved by xl into full.save; and the noise's digest."""
    guest = Guest(lab, f"kept-{request.param}", kind=request.param, more=("vcpus=2",))
    guest.start()
    guest.run(f"head -c {NOISE} /dev/urandom > /tmp/noise")
    digest = guest.run("sha256sum /tmp/noise")
    lab.do(f"xl save {guest.name} /tmp/full.save")
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
        restore(lab, f"/tmp/{form}.save")
        assert guest.run("sha256sum /tmp/noise") == digest
        assert guest.run("grep -c ^processor /proc/cpuinfo") == "2"
        if form != "dense":
            guest.destroy()

    # What was restored can be saved, by Xen's own helper behind ours, and restored again.
    lab.do(f"{OURS} xl save {guest.name} /tmp/again.save")
    restore(lab, "/tmp/again.save")
    assert guest.run("sha256sum /tmp/noise") == digest
    guest.destroy()

    lab.do("head -c 20M /tmp/full.save >/tmp/half.save")
    refused = lab.dom0(f"{OURS} xl restore /tmp/half.save")
    assert refused.status != 0
    assert "truncated: it ends at byte" in refused.stderr, str(refused)
    hotplug.refuse_leaks(lab)
