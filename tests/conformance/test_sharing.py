"""Checklist lines 66 to 83: may this block device be opened, while others have it?

The holder's ``add`` always comes first and is a real one, so that the keys the check looks at are
those that the same scripts write.
"""

from __future__ import annotations

import os

import pytest
from harness.lines import K
from harness.outcomes import assert_busy, assert_ok, busy_device


@K
def test_share_r_r(runner, guest, hold):
    """66: other VM r, me r: ok."""
    device, _ = hold("r")
    assert_ok(runner, guest().disk(device, "r"))


@K
def test_share_r_w(runner, guest, hold):
    """67: other VM w, me r: busy."""
    device, _ = hold("w")
    assert_busy(runner, guest().disk(device, "r"), busy_device(device, "r", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_w_any(runner, guest, hold, mode):
    """68: other VM r or w, me w: busy."""
    device, _ = hold(mode)
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w", "w!"])
def test_share_bang(runner, guest, hold, mode):
    """69: me w!: ok in every case."""
    device, _ = hold(mode)
    assert_ok(runner, guest().disk(device, "w!"))


@K
def test_share_bang_beside_mount(runner, guest, mounted):
    """69: me w!: ok in every case, mounted on this host included."""
    assert_ok(runner, guest().disk(mounted("rw"), "w!"))


@K
@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [("rw", "w"), ("ro", "r"), ("r!", "r"), ("!", "r"), ("x", "r"), ("rw!", "!"), ("!w", "!")],
)
def test_share_mode_spellings(runner, guest, hold, spelling, canonical):
    """70: rw is w; ro, r! and ! are r; rw! is w!."""
    read_only, _ = hold("r")
    writable, _ = hold("w")
    beside_reader = guest().disk(read_only, spelling)
    beside_writer = guest().disk(writable, spelling)
    match canonical:
        case "!":
            assert_ok(runner, beside_reader)
            assert_ok(runner, beside_writer)
        case "r":
            assert_ok(runner, beside_reader)
            assert_busy(runner, beside_writer, busy_device(writable, "r", "guest"))
        case "w":
            assert_busy(runner, beside_reader, busy_device(read_only, "w", "guest"))
            assert_busy(runner, beside_writer, busy_device(writable, "w", "guest"))


@K
@pytest.mark.parametrize(("spelling", "text"), [("rw", "busy"), ("ro", "ok"), ("!", "ok")])
def test_share_holder_mode_spellings(runner, guest, hold, spelling, text):
    """70: the same spellings of a holder's mode, seen by a reader."""
    device, _ = hold(spelling)
    reader = guest().disk(device, "r")
    if text == "ok":
        assert_ok(runner, reader)
    else:
        assert_busy(runner, reader, busy_device(device, "r", "guest"))


@K
def test_share_local_ro_mount(runner, guest, mounted):
    """71: mounted read-only on this host: r ok, w busy."""
    device = mounted("ro")
    assert_ok(runner, guest().disk(device, "r"))
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "local"))


@K
def test_share_local_rw_mount(runner, guest, mounted):
    """72: mounted read-write on this host: r busy, w busy."""
    device = mounted("rw")
    assert_busy(runner, guest().disk(device, "r"), busy_device(device, "r", "local"))
    assert_busy(runner, guest().disk(device, "w"), busy_device(device, "w", "local"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_local_reported_first(runner, guest, formatted, mount, block_device, mode):
    """73: local and guest conflict: the text names the privileged domain."""
    device = block_device(formatted())
    assert_ok(runner, guest().disk(device, "w"))
    mount(device, "rw")
    assert_busy(runner, guest().disk(device, mode), busy_device(device, mode, "local"))


@K
def test_share_same_vm_value(runner, guest, hold):
    """74: equal vm values of two domids: ok."""
    device, holder = hold("w")
    assert_ok(runner, guest(vm=holder.vm).disk(device))


@K
def test_share_me_stubdom_of_holder(runner, guest, hold):
    """75: ok."""
    device, holder = hold("w")
    assert_ok(runner, guest(target=holder.domid).disk(device))


@K
def test_share_holder_stubdom_of_me(runner, guest, hold):
    """76: ok."""
    me = guest()
    device, _ = hold("w", guest(target=me.domid))
    assert_ok(runner, me.disk(device))


@K
def test_share_two_stubdoms_one_target(runner, guest, hold):
    """77: ok."""
    target = guest()
    device, _ = hold("w", guest(target=target.domid))
    assert_ok(runner, guest(target=target.domid).disk(device))


@K
def test_share_two_stubdoms_two_targets(runner, guest, hold):
    """78: busy."""
    device, _ = hold("w", guest(target=guest().domid))
    disk = guest(target=guest().domid).disk(device)
    assert_busy(runner, disk, busy_device(device, "w", "guest"))


@K
def test_share_holder_vm_missing(runner, guest, hold):
    """79: holder being torn down: ok."""
    device, holder = hold("w")
    runner.place.store.remove(f"{holder.home}/vm")
    assert_ok(runner, guest().disk(device))


@K
def test_share_my_vm_missing(runner, guest, hold):
    """80: my vm is missing, the holder has one: busy."""
    device, _ = hold("w")
    assert_busy(runner, guest(vm=None).disk(device), busy_device(device, "w", "guest"))


@K
@pytest.mark.parametrize("mode", ["r", "w"])
def test_share_busy_result(runner, guest, hold, tmp_path, mode):
    """81: status busy, text exactly as in 3.4 with the newline, exit 1, no physical-device."""
    device, _ = hold("w")
    (tmp_path / "link").symlink_to(device)
    disk = guest().disk(tmp_path / "link", mode)
    assert_busy(runner, disk, busy_device(device, mode, "guest"))


@K
def test_share_own_second_vdev(runner, guest, hold):
    """82: same guest, two vdevs: ok."""
    device, holder = hold("w")
    assert_ok(runner, holder.disk(device))


@K
def test_share_whole_entry_match(runner, guest, block_device):
    """83: 17:63 does not match 7:63, nor does a longer minor number."""
    device = block_device()
    number = os.stat(device).st_rdev
    spelled = f"{os.major(number):x}:{os.minor(number):x}"
    for similar in (f"1{spelled}", f"{spelled}0", f"0{spelled}"):
        guest().disk("/dev/null", keys={"physical-device": similar})
    assert_ok(runner, guest().disk(device))
