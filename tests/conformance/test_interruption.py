"""Checklist lines 20 and 21: runs that are killed, and runs that hang."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from harness import loops
from harness.agent import is_alive
from harness.lines import F_FRESH, F
from harness.locks import forget, held, wait_for_waiter, wait_until
from harness.outcomes import assert_ok

# When to kill a run that would take 2 ms with an agent and some 100 ms without one.
MOMENTS = {
    "agent": [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005],
    "oneshot": [0.0, 0.02, 0.04, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15],
}


def assert_recovers(runner, disk, file):
    """The next add succeeds and so does its remove; nothing is left."""
    assert_ok(runner, disk)
    loops.only_one(file)
    assert runner.remove(disk).status == 0
    loops.wait_until_none(file)


@F
def test_sigkill_recoverable(runner, guest, image):
    """20: killed at any point: the next add or remove succeeds, no loop device leaks (D07)."""
    for moment in MOMENTS[runner.kind]:
        file = image()
        disk = guest().disk(file)
        run = runner.start(disk, "add")
        time.sleep(moment)
        run.kill()
        assert_recovers(runner, disk, file)
        disk.delete()


@F
def test_sigkill_then_remove(runner, guest, image):
    """20: after the kill the toolstack destroys the domain, which runs remove."""
    for moment in MOMENTS[runner.kind]:
        file = image()
        disk = guest().disk(file)
        run = runner.start(disk, "add")
        time.sleep(moment)
        run.kill()
        assert runner.remove(disk).status == 0
        loops.wait_until_none(file)
        disk.delete()
    forget(runner.place.block_lock)


@F
def test_sigkill_of_remove(runner, guest, image):
    """20: a remove that was killed can be repeated."""
    for moment in MOMENTS[runner.kind]:
        file = image()
        disk = guest().disk(file)
        assert runner.add(disk).status == 0
        disk.close()
        run = runner.start(disk, "remove")
        time.sleep(moment)
        run.kill()
        assert runner.remove(disk).status == 0
        loops.wait_until_none(file)
        disk.delete()


@F
def test_sigkill_while_waiting_for_the_lock(runner, guest, image):
    """20: killed while another script has the lock, when the loop device may be there."""
    lock = runner.place.block_lock
    file = image()
    disk = guest().disk(file)
    with held(lock):
        run = runner.start(disk, "add")
        wait_for_waiter(lock)
        run.kill()
    assert_recovers(runner, disk, file)


@pytest.mark.parametrize("fresh_runner", ["agent"], indirect=True)
@pytest.mark.parametrize("next_action", ["add", "remove"])
def test_sigkill_of_the_agent(fresh_runner, guest, image, next_action):
    """20: the agent is killed in the middle of an add; it is started again."""
    lock = fresh_runner.place.block_lock
    file = image()
    disk = guest().disk(file)
    with held(lock):
        run = fresh_runner.start(disk, "add")
        wait_for_waiter(lock)
        fresh_runner.agent.kill()
    run.wait()
    fresh_runner.restart_agent()
    if next_action == "add":
        assert_recovers(fresh_runner, disk, file)
    else:
        assert fresh_runner.remove(disk).status == 0
        loops.wait_until_none(file)
        forget(fresh_runner.place.block_lock)


@pytest.mark.parametrize("fresh_runner", ["agent"], indirect=True)
def test_agent_restarted_with_a_disk_in_use(fresh_runner, guest, image):
    """20: a disk that was added before the agent died is removed by its successor."""
    file = image()
    disk = guest().disk(file)
    assert fresh_runner.add(disk).status == 0
    fresh_runner.agent.kill()
    fresh_runner.restart_agent()
    assert disk.read("hotplug-status") == b"connected"
    loops.only_one(file)
    assert fresh_runner.remove(disk).status == 0
    loops.wait_until_none(file)


DEADLINE = 1.0
MARGIN = 2.0  # seconds: to start an interpreter on a busy machine, and to undo


@contextlib.contextmanager
def bounded():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < DEADLINE + MARGIN


@F_FRESH
def test_bounded_run_time(fresh_runner, guest, image):
    """21: no wait, lock or device, can exceed 35 s in total (D23, D45)."""
    fresh_runner.reconfigure(deadline=DEADLINE)
    file = image()
    disk = guest().disk(file)
    with held(fresh_runner.place.block_lock), bounded():
        result = fresh_runner.add(disk)
    assert result.status == 1
    assert disk.read("hotplug-status") == b"error"
    assert disk.read("hotplug-error")
    loops.wait_until_none(file)


@F_FRESH
def test_bounded_run_time_of_a_helper(fresh_runner, guest, tmp_path):
    """21: a program of somebody else's that never ends is ended, what it started included."""
    fresh_runner.reconfigure(deadline=DEADLINE)
    fresh_runner.place.helper(
        "block-endless",
        f"""#!/bin/sh
        [ "$1" = add ] || exit 0
        sleep 1000 &
        echo $! > {tmp_path}/pid
        wait
        """,
    )
    disk = guest().disk("endless:thing", keys={"type": "endless"})
    with bounded():
        result = fresh_runner.add(disk)
    child = int((tmp_path / "pid").read_text())
    try:
        wait_until(lambda: not is_alive(child), "what the helper started has ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert result.status == 1
    assert disk.read("hotplug-status") == b"error"
    assert disk.read("hotplug-error")


ISCSIADM = """#!/bin/sh
case "$*" in
*discovery*) echo "10.0.0.1:3260,1 iqn.2001-05.org:x" ;;
*session*) exit 21 ;;
esac
"""


@F_FRESH
def test_bounded_run_time_of_iscsi(fresh_runner, guest, tmp_path):
    """21: the device of an iSCSI session that never appears (D45)."""
    fresh_runner.place.configure(deadline=DEADLINE)
    tool = tmp_path / "iscsiadm"
    tool.write_text(ISCSIADM)
    tool.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    fresh_runner.restart_agent(path)
    disk = guest().disk("iqn=iqn.2001-05.org:x,portal=10.0.0.1")
    with bounded():
        result = fresh_runner.add(disk, script="block-iscsi", variables=path)
    assert result.status == 1
    assert disk.read("hotplug-status") == b"error"
    assert disk.read("hotplug-error")


@F_FRESH
def test_bounded_run_time_of_the_store(fresh_runner, guest, image):
    """21: a store that does not answer; there is then no place for a text."""
    fresh_runner.reconfigure(deadline=DEADLINE)
    disk = guest().disk(image())
    fresh_runner.proxy.pause()
    with bounded():
        result = fresh_runner.add(disk)
    fresh_runner.proxy.resume()
    fresh_runner.faults.clear()  # line 126 is about a store that answers
    assert result.status == 1
    assert result.stderr
