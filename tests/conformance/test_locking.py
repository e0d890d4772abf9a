"""Checklist lines 92 to 95: the lock files, which third-party block-* scripts use too."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time

import pytest
from harness.lines import F_FRESH, K_FRESH, F
from harness.locks import held, is_held, users, wait_for_waiter, wait_until

# What a third-party script does. The library is stock's own, the directory is the place's.
STOCK = """
. /etc/xen/scripts/locking.sh
LOCK_BASEDIR=$1
claim_lock block
echo held
read -r _
release_lock block
"""


@contextlib.contextmanager
def stock_claimant(rundir):
    """A script that claims the lock with stock's locking.sh; it holds it until told."""
    command = ["bash", "-ec", STOCK, "bash", str(rundir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate("release\n")
        assert process.returncode == 0


@K_FRESH
def test_lock_interoperates(fresh_runner, guest, block_device):
    """92: a stock holder of the lock blocks us and we block a stock claimant."""
    lock = fresh_runner.place.block_lock
    disk = guest().disk(block_device())

    with stock_claimant(fresh_runner.place.rundir) as holder:
        assert holder.stdout.readline() == "held\n"
        run = fresh_runner.start(disk, "add")
        wait_until(lambda: set(users(lock)) - {holder.pid}, "our run waits for the lock")
        assert not run.has_ended
        assert disk.read("hotplug-status") is None
        # While our run waits we stop the store, so that it will stay in the locked part.
        fresh_runner.proxy.pause()
    wait_until(lambda: is_held(lock), "our run has the lock")

    with stock_claimant(fresh_runner.place.rundir) as claimant:
        wait_until(lambda: claimant.pid in users(lock), "the stock claimant waits for the lock")
        assert disk.read("hotplug-status") is None
        assert not run.has_ended
        fresh_runner.proxy.resume()
        assert claimant.stdout.readline() == "held\n"
        # The lock was ours until our run was done with it.
        assert disk.read("hotplug-status") == b"connected"
    assert run.wait().status == 0


@F
def test_lock_file_removed(runner, guest, block_device, image):
    """93: gone after success and after every error (D26)."""
    device, file = block_device(), image()
    outcomes = {
        "connected": guest().disk(device),
        "busy": guest().disk(device),
        "connected file": guest().disk(file),
        "busy file": guest().disk(file),
        "error: no such file": guest().disk("/nowhere/at/all"),
        "error: state": guest().disk(image(), state=4),
        "error: mode": guest().disk(image(), mode=None),
        "busy: read-only": guest().disk(image(mode=0o444)),
    }
    for outcome, disk in outcomes.items():
        runner.add(disk)
        assert disk.read("hotplug-status").decode() == outcome.split(":")[0].split()[0], outcome
        assert not runner.place.block_lock.exists(), outcome
    for outcome, disk in outcomes.items():
        assert runner.remove(disk).status == 0
        assert not runner.place.block_lock.exists(), outcome


@F
def test_lock_not_inherited(runner, guest, tmp_path):
    """94: a surviving child does not hold the lock (D24)."""
    runner.place.helper(
        "block-lingering",
        f"""#!/bin/sh
        if [ "$1" = add ]; then
            setsid sleep 60 >/dev/null 2>&1 &
            echo $! > {tmp_path}/pid
            xenstore-write "$XENBUS_PATH/physical-device" fe:7b
        fi
        """,
    )
    disk = guest().disk("lingering:thing", keys={"type": "lingering"})
    assert runner.add(disk).status == 0
    child = int((tmp_path / "pid").read_text())
    try:
        os.kill(child, 0)
        assert [name for name in open_files(child) if name.endswith("/block")] == []
        assert users(runner.place.block_lock) == []
        other = guest().disk("lingering:other", keys={"type": "none", "params": "/nowhere"})
        assert runner.add(other).status == 1
        assert other.read("hotplug-status") == b"error"
    finally:
        os.kill(child, signal.SIGKILL)


def open_files(pid):
    """What a process has open."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}").removesuffix(" (deleted)"))
    return found


@F_FRESH
@pytest.mark.parametrize("kind", ["device", "file"])
def test_lock_wait_bounded(fresh_runner, guest, block_device, image, kind):
    """95: held too long: status error with a text naming the lock (D23)."""
    fresh_runner.reconfigure(deadline=1.0)
    disk = guest().disk(block_device() if kind == "device" else image())
    lock = fresh_runner.place.block_lock
    command = ["flock", str(lock), "sh", "-c", "echo held; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        result = fresh_runner.add(disk)
        took = time.monotonic() - began
        assert holder.poll() is None
        holder.communicate(b"\n")
    lock.unlink()  # flock(1) leaves it
    assert took < 3.0
    assert result.status == 1
    keys = disk.tree()
    assert keys["hotplug-status"] == b"error"
    assert b"lock" in keys["hotplug-error"]
    assert b"block" in keys["hotplug-error"]
    assert "physical-device" not in keys


@F
def test_lock_of_a_dead_holder(runner, guest, block_device):
    """93: a lock file that nobody holds any more is no obstacle, and goes away."""
    runner.place.block_lock.touch()
    assert runner.add(guest().disk(block_device())).status == 0
    assert not runner.place.block_lock.exists()


@F
def test_lock_on_a_stale_file_is_none(runner, guest, block_device):
    """92: the file was unlinked while we waited for it: the new one counts (contract 2.6)."""
    lock = runner.place.block_lock
    disk = guest().disk(block_device())
    with open(lock, "wb") as stale, held(lock.with_name("another")) as another:
        fcntl.flock(stale, fcntl.LOCK_EX)
        run = runner.start(disk, "add")
        wait_for_waiter(lock)
        # At once, or the run could take the lock in between.
        lock.with_name("another").rename(lock)
        fcntl.flock(stale, fcntl.LOCK_UN)
        wait_for_waiter(lock)
        assert disk.read("hotplug-status") is None
        assert not run.has_ended
        lock.unlink()
        fcntl.flock(another, fcntl.LOCK_UN)
    assert run.wait().status == 0
