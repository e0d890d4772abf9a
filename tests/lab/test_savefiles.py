"""Real save files: read, checked, compacted; and what Xen's own helper makes of the result."""

from __future__ import annotations

import json

import pytest
from lab import hotplug
from lab.guests import Guest

BLOCK = 512


def savefile(lab, words):
    return lab.do(f"xen-hotplug savefile {words}")


def on_disk(lab, path):
    return int(lab.do(f"stat -c %b {path}")) * BLOCK


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_saved_guest(lab, kind):
    """xl's own file without a violation; its compacted form restored by xl, its dense one not."""
    guest = Guest(lab, "kept", kind=kind)
    guest.start()
    guest.run("head -c 1048576 /dev/urandom > /tmp/noise")
    noise = guest.run("sha256sum /tmp/noise")
    stock = f"LIBXL_SAVE_HELPER={hotplug.stock_helper(lab)}"
    lab.do(f"{stock} xl save kept /tmp/full.save")
    facts = json.loads(savefile(lab, "info --json /tmp/full.save"))
    assert facts["guest"]["type"] == kind
    assert facts["form"] == "plain"
    assert facts["pages"]["zero"] > facts["pages"]["with_data"] // 4
    said = savefile(lab, "verify /tmp/full.save")
    assert said == "/tmp/full.save: no rule of the format is broken\n"

    savefile(lab, "compact /tmp/full.save /tmp/sparse.save")
    savefile(lab, "compact --dense /tmp/full.save /tmp/dense.save")
    for form in ("sparse", "dense"):
        savefile(lab, f"expand /tmp/{form}.save /tmp/again.save")
        lab.do("cmp /tmp/full.save /tmp/again.save")
    taken = on_disk(lab, "/tmp/full.save") - facts["pages"]["zero"] * 4096
    assert on_disk(lab, "/tmp/sparse.save") < taken + (2 << 20)
    savefile(lab, "compact --in-place /tmp/full.save")
    assert on_disk(lab, "/tmp/full.save") < taken + (8 << 20)
    lab.do("cmp /tmp/full.save /tmp/again.save")

    refused = lab.dom0(f"{stock} xl restore /tmp/dense.save")
    assert refused.status != 0
    assert "7f58485a" in refused.stderr.lower()
    assert not guest.is_there
    for form in ("sparse", "full"):
        lab.do(f"{stock} xl restore /tmp/{form}.save")
        assert guest.run("sha256sum /tmp/noise") == noise
        guest.destroy()
    lab.do("rm /tmp/*.save")
