"""Checklist lines 45 to 57: ``block add`` of a file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness import cages, loops, thief
from harness.lines import F_FRESH, K_FRESH, F, K
from harness.locks import held, wait_for_waiter
from harness.outcomes import assert_refused


def assert_connected(backend, file):
    """The keys name the one loop device that the file has."""
    loop = loops.only_one(file)
    keys = backend.tree()
    assert keys["node"] == loop.path.encode()
    assert keys["physical-device-path"] == loop.path.encode()
    assert keys["physical-device"] == loop.number.encode()
    assert keys["hotplug-status"] == b"connected"
    assert "hotplug-error" not in keys
    return loop


@K
def test_file_keys(runner, guest, image):
    """45: node = physical-device-path = loop path, physical-device = its number, connected."""
    file = image()
    disk = guest().disk(file)
    assert runner.add(disk).status == 0
    assert_connected(disk, file)


@K
@pytest.mark.parametrize(("mode", "read_only"), [("r", True), ("w", False), ("w!", False)])
def test_file_read_only_loop(runner, guest, image, mode, read_only):
    """46: mode r attaches read-only; modes w and w! attach read-write."""
    file = image()
    disk = guest().disk(file, mode)
    assert runner.add(disk).status == 0
    assert assert_connected(disk, file).read_only is read_only


@K
def test_file_symlink_resolved(runner, guest, image, tmp_path):
    """47: the loop's backing file is the final target."""
    file = image()
    (tmp_path / "first").symlink_to(file.name)
    (tmp_path / "second").symlink_to(tmp_path / "first")
    disk = guest().disk(tmp_path / "second")
    assert runner.add(disk).status == 0
    assert_connected(disk, file)


@K
@pytest.mark.parametrize("state", [1, 3, 4, 5, 6, None])
def test_file_state_must_be_2(runner, guest, image, state):
    """48: other or missing state: ERR text contains the path and the state value."""
    file = image()
    disk = guest().disk(file, state=state)
    value = "unknown" if state is None else str(state)
    assert_refused(
        disk,
        runner.add(disk),
        f"Path closed or removed during hotplug add: {disk.relative} state: {value}",
    )
    loops.wait_until_none(file)


@K
def test_file_readonly_busy(runner, guest, image):
    """49: mode w on a file that cannot be written: status busy, exit 1."""
    file = image(mode=0o444)
    disk = guest().disk(file)
    assert_refused(disk, runner.add(disk), status=b"busy")
    assert disk.read("hotplug-error").decode() == (
        f"File {file} is read-only, and so I will not\nmount it read-write in a guest domain."
    )
    loops.wait_until_none(file)


@K
def test_file_bang_skips_readonly_check(runner, guest, image):
    """50: mode w! on a file without w bits: success."""
    file = image(mode=0o444)
    disk = guest().disk(file, "w!")
    assert runner.add(disk).status == 0
    assert assert_connected(disk, file).read_only is False


@K_FRESH
def test_file_no_free_loop(fresh_runner, guest, image):
    """51: no loop device is free: status error, exit 1."""
    fresh_runner.launcher = cages.NO_LOOPS
    fresh_runner.restart_agent()
    disk = guest().disk(image())
    assert_refused(disk, fresh_runner.add(disk), "Failed to find an unused loop device")


@F
def test_file_attach_race_retried(runner, guest, image):
    """52: chosen loop device stolen: another is used (D16)."""
    with thief.at_work(str(image("loot"))):
        for _ in range(20 if runner.kind == "agent" else 4):
            file = image()
            disk = guest().disk(file)
            assert runner.add(disk).status == 0
            assert_connected(disk, file)


@F_FRESH
def test_file_attach_failure_clean(fresh_runner, guest, image):
    """53: failed attach leaves no bound loop and no node."""
    fresh_runner.launcher = cages.UNUSABLE_LOOPS
    fresh_runner.restart_agent()
    file = image()
    disk = guest().disk(file)
    assert_refused(disk, fresh_runner.add(disk), str(file))
    loops.wait_until_none(file)


@F_FRESH
def test_file_store_failure_clean(fresh_runner, guest, image):
    """54: failed xenstore write detaches the loop (D07)."""
    file = image()
    disk = guest().disk(file)
    with held(fresh_runner.place.block_lock):
        run = fresh_runner.start(disk, "add")
        wait_for_waiter(fresh_runner.place.block_lock)
        fresh_runner.proxy.down()
    assert run.wait().status == 1
    fresh_runner.faults.clear()  # there was no store to take a text
    if fresh_runner.agent is not None:  # without a store it ends; its service manager knows why
        assert fresh_runner.agent.process.wait(10) != 0
        fresh_runner.proxy.up()
        fresh_runner.restart_agent()
    else:
        fresh_runner.proxy.up()
    loops.wait_until_none(file)
    assert not {"physical-device", "node"} & set(disk.tree())
    assert fresh_runner.add(disk).status == 0
    assert_connected(disk, file)


@F
@pytest.mark.parametrize("other", ["a file", "nothing", "a directory", "a link to it"])
def test_file_swap_detected(runner, guest, image, tmp_path, other):
    """55: path replaced between check and attach: ERR (D14)."""
    file = image()
    disk = guest().disk(file)
    with held(runner.place.block_lock):
        run = runner.start(disk, "add")
        wait_for_waiter(runner.place.block_lock)
        file.rename(tmp_path / "aside")
        match other:
            case "a file":
                image("other").rename(file)
            case "a directory":
                file.mkdir()
            case "a link to it":
                file.symlink_to(image("elsewhere"))
    assert_refused(disk, run.wait(), str(file))
    loops.wait_until_none(tmp_path)


@K
def test_file_blank_in_path(runner, guest, image, tmp_path):
    """56: a blank in the path works."""
    (tmp_path / "my disks").mkdir()
    file = image("my disks/first one")
    disk = guest().disk(file)
    assert runner.add(disk).status == 0
    assert_connected(disk, file)


@K
def test_file_add_twice_nop(runner, guest, image):
    """57: a second add makes no second loop device."""
    file = image()
    disk = guest().disk(file)
    assert runner.add(disk).status == 0
    before = disk.tree()
    assert runner.add(disk).status == 0
    assert_connected(disk, file)
    assert disk.tree() == before


@F
@pytest.mark.parametrize("now", ["free", "another guest's", "another file's"])
def test_file_add_again_without_its_loop(runner, guest, image, block_device, now):
    """57: a second add does not take the store's word for the loop device (D20)."""
    file = image()
    disk = guest().disk(file)
    assert runner.add(disk).status == 0
    node = disk.read("node").decode()
    loops.detach(node)
    loops.wait_until_none(file)
    if now == "another guest's":
        other, theirs = guest().disk(image("theirs")), image("theirs")
        assert runner.add(other).status == 0
        claim(disk, other.read("node").decode())
    elif now == "another file's":
        theirs = image("theirs")
        claim(disk, block_device(theirs))
    assert runner.add(disk).status == 0
    assert_connected(disk, file)
    if now != "free":
        assert loops.only_one(theirs).path.encode() != disk.read("node")


def claim(disk, node):
    """Let a backend name a loop device, as after its own was given to somebody else."""
    device = os.stat(node).st_rdev
    disk.write("node", node)
    disk.write("physical-device", f"{os.major(device):x}:{os.minor(device):x}")
    disk.write("physical-device-path", node)


@F
def test_file_add_again_with_the_loop_of_stock(runner, guest, image, block_device):
    """57: what stock attached before we were installed stays as it is."""
    file = image()
    disk = guest().disk(file)
    claim(disk, block_device(file))
    disk.write("hotplug-status", "connected")
    before = disk.tree()
    assert runner.add(disk).status == 0
    assert disk.tree() == before
    loops.only_one(file)
    disk.delete()


@F
@pytest.mark.parametrize("end", ["remove", "reclaim"])
def test_file_half_done_by_stock(runner, guest, image, end):
    """57: what stock had attached when it died is taken over, and taken back (D20, D07)."""
    file = image()
    disk = guest().disk(file)
    claim(disk, loops.attach(file))
    assert runner.add(disk).status == 0
    assert_connected(disk, file)
    if end == "remove":
        assert runner.remove(disk).status == 0
    else:
        disk.delete()
        if runner.agent is None:  # nobody is there to see it
            command = [sys.executable, "-m", "hotplug", "gc"]
            subprocess.run(command, env=runner.place.environment(), cwd="/", check=True)
    loops.wait_until_none(file)


@F
def test_file_half_done_with_anothers_loop(runner, guest, image):
    """57: the loop device of another guest's disk is not taken over, whatever the keys say."""
    file = image()
    theirs, ours = guest().disk(file, "r"), guest().disk(file, "r")
    assert runner.add(theirs).status == 0
    claim(ours, theirs.read("node").decode())
    assert runner.add(ours).status == 0
    assert ours.read("node") != theirs.read("node")
    assert runner.remove(theirs).status == 0
    assert_connected(ours, file)
