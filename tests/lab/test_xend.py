"""xc_restore and old streams, on a real Xen.

There is no xend that would run here. libxl makes the domain and runs a program that drives
xc_restore as xend does; the streams are those of Xen 4.0, made of a guest that was saved today.
"""

from __future__ import annotations

import itertools

import pytest
from lab import hotplug
from lab.guests import Guest

LIBRARY = "/usr/local/lib/xen-hotplug"
OURS = f"LIBXL_SAVE_HELPER={LIBRARY}/libxl-save-helper"
XEND = "LIBXL_SAVE_HELPER=/tmp/xend"
NOISE = 4 << 20  # bytes
NUMBERS = itertools.count(1)
FILES = "/tmp/old-*.save /tmp/xend"


@pytest.fixture(params=["pv", "pvh"])
def saved(lab, request):
    """A guest in /tmp/old-today.save, and the digest of the noise in its memory."""
    name = f"old-{request.param}-{next(NUMBERS)}"  # its console's log is its own
    guest = Guest(lab, name, kind=request.param, more=("vcpus=2",))
    guest.start()
    guest.run(f"head -c {NOISE} /dev/urandom > /tmp/noise")
    digest = guest.run("sha256sum /tmp/noise")
    lab.do(f"{OURS} xl save {guest.name} /tmp/old-today.save")
    lab.put("/tmp/xend", '#!/bin/sh\nexec python3 /lab/xend.py "$@"\n')
    lab.do("chmod +x /tmp/xend")
    yield guest, digest
    lab.do(f"rm -f {FILES}")


def is_alive(guest, digest):
    assert guest.run("sha256sum /tmp/noise") == digest
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "2"
    guest.destroy()


@pytest.mark.long
def test_as_xend_runs_it(lab, saved):
    """What follows the stream in the file is libxl's: it finds it where it has to be."""
    guest, digest = saved
    forms = ["today"]
    if guest.kind == "pv":
        lab.do("python3 /lab/as_legacy.py inside /tmp/old-today.save /tmp/old-inside.save")
        forms.append("inside")
    for form in forms:
        for arguments in (7, 8):
            environment = f"{XEND} XEND_ARGUMENTS={arguments} XEND_HVM={int(guest.kind == 'pvh')}"
            done = lab.dom0(f"{environment} xl restore /tmp/old-{form}.save")
            assert done.status == 0, str(done)
            assert "xc_restore said 'store-mfn " in done.stderr, str(done)
            assert ("console-mfn " in done.stderr) == (guest.kind == "pv"), str(done)
            is_alive(guest, digest)
    lab.do("head -c 20M /tmp/old-today.save >/tmp/old-half.save")
    done = lab.dom0(f"{XEND} XEND_ARGUMENTS=8 XEND_HVM=0 xl restore /tmp/old-half.save")
    assert done.status != 0
    assert "xc_restore said '' and ended with 1" in done.stderr, str(done)
    hotplug.refuse_leaks(lab)


@pytest.mark.long
@pytest.mark.parametrize("saved", ["pv"], indirect=True)
def test_an_old_file_of_xl(lab, saved):
    """xl runs our converter for it."""
    guest, digest = saved
    lab.do("python3 /lab/as_legacy.py xl /tmp/old-today.save /tmp/old-xl.save")
    converter = f"LIBXL_CONVERT_HELPER={LIBRARY}/convert-legacy-stream"
    done = lab.dom0(f"{converter} {OURS} xl restore /tmp/old-xl.save")
    assert done.status == 0, str(done)
    is_alive(guest, digest)
