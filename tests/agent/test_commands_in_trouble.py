"""The commands for people where something is broken: they end soon, with a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hangfs
import pytest
from harness import locks, loops
from harness.guests import Guest

from hotplug import disks

SOON = 6.0  # seconds: what takes two on an idle machine
LOOKING = (["status"], ["block", "list"], ["gc", "--dry-run"], ["gc"], ["reconcile", "--dry-run"])
HUNG_STATUS = 5.0  # seconds that `status` waits


@pytest.fixture
def shell(place):
    """Run a shell's line with $X for ``xen-hotplug``: exit status, stderr."""

    def run(line, cwd="/"):
        done = subprocess.run(
            ["bash", "-c", line],
            env={**place.environment(), "X": f"{sys.executable} -P -m hotplug"},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    return run


@pytest.fixture
def dead_disk(place, oneshot, tmp_path):
    """A disk in use whose file system does not answer any more."""
    with hangfs.mounted(tmp_path / "mount") as mount:
        backend = Guest(place.store).disk(mount.path)
        assert oneshot.add(backend).status == 0
        mount.hang("getattr")
        yield backend
        mount.release()
        assert oneshot.remove(backend).status == 0


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_a_device_does_not_answer(command, dead_disk, words):
    node = dead_disk.read("node").decode()
    began = time.monotonic()
    code, out, err = command(*words)
    assert time.monotonic() - began < SOON
    if words == ["status"]:
        assert (code, err) == (0, "")
        assert " of them silent" in out
    elif words == ["block", "list"]:
        assert (code, err) == (0, "")
        assert " silent " in out
    else:
        assert code == 1
        assert f"xen-hotplug: {node} does not answer" in err


def test_an_add_at_work_is_no_leak(place, command, oneshot, disk):
    backend = disk()
    with locks.held(place.block_lock):
        run = oneshot.start(backend, "add")
        locks.wait_for_waiter(place.block_lock)
        for words in (["gc", "--dry-run"], ["gc"]):
            assert command(*words) == (0, "Nothing is attached that no backend wants.\n", "")
    assert run.wait().status == 0
    assert oneshot.remove(backend).status == 0


def test_what_was_not_detached_is_not_said_to_be(place, oneshot, command, tmp_path):
    """A program of others that refuses."""
    allowed = tmp_path / "allowed"
    place.helper("block-foo", HELPER.format(allowed=allowed))
    backend = Guest(place.store).disk("foo:thing", keys={"type": "foo"})
    assert oneshot.add(backend).status == 0
    backend.delete()
    code, out, err = command("gc")
    assert (code, out) == (1, "")
    assert "I will not" in err
    allowed.touch()
    code, out, err = command("gc")
    assert (code, err) == (0, "")
    assert out.startswith("detached ")


HELPER = """#!/bin/sh
if [ "$1" = add ]; then
    xenstore-write "$XENBUS_PATH/physical-device" 7:63 "$XENBUS_PATH/hotplug-status" connected
else
    [ -e {allowed} ] || {{ echo "I will not" >&2; exit 1; }}
fi
"""


def test_an_empty_entry_is_no_leak(place, command):
    """A run that died before it had attached anything."""
    assert command("gc")[0] == 0
    entry = place.rundir / "journal" / "vbd.9.51712"
    entry.touch()
    assert command("gc") == (0, "Nothing is attached that no backend wants.\n", "")
    assert not entry.exists()


def test_reconcile_gives_every_disk_its_time(place, oneshot, command, disk):
    """The first one uses up its own."""
    place.configure(deadline=1.0)
    backends = [disk(f"{number}.img") for number in range(3)]
    entry = place.rundir / "journal" / f"vbd.{backends[0].domid}.51712"
    entry.parent.mkdir(exist_ok=True)
    with locks.held(entry):
        assert command("reconcile")[0] == 1
    assert backends[0].read("hotplug-status") == b"error"
    for backend in backends[1:]:
        assert backend.read("hotplug-status") == b"connected"
        assert oneshot.remove(backend).status == 0


@pytest.fixture
def stopped_agent(runner):
    runner.agent.process.send_signal(signal.SIGSTOP)
    yield runner.agent
    runner.agent.process.send_signal(signal.SIGCONT)


def test_status_of_an_agent_that_does_not_answer(place, stopped_agent, command):
    began = time.monotonic()
    code, out, err = command("status")
    assert time.monotonic() - began < HUNG_STATUS + SOON
    assert code == 1
    assert out.startswith("loops ")
    assert err == (
        f"xen-hotplug: the agent of {place.rundir} has not answered for 5 seconds;"
        " it may still be at work\n"
    )


def test_an_agent_in_another_pid_namespace(runner, shell):
    assert shell("unshare --pid --fork --mount-proc $X status") == (0, "")


def test_status_of_others(place, runner, shell, tmp_path):
    """A user that may not speak to the agent is told whom."""
    (place.rundir / "control").chmod(0)
    without = "setpriv --bounding-set=-all --inh-caps=-all"
    code, err = shell(f"{without} $X status")
    assert code == 1
    assert err == (
        f"xen-hotplug: {place.rundir}/control: the agent cannot be reached: Permission denied\n"
    )


@pytest.mark.parametrize("words", ["block list", "status", "gc", "agent", "block add 5/51712"])
def test_a_runtime_directory_that_cannot_be_one(shell, words):
    code, err = shell(f"XEN_HOTPLUG_RUNDIR=/etc/hostname/x $X {words}")
    assert code == 1
    assert "/etc/hostname/x" in err
    assert "Not a directory\n" in err
    assert "Errno" not in err
    assert err.count("\n") == 1


def test_gc_goes_on_where_nobody_reads(oneshot, shell, disk, tmp_path):
    for number in range(3):
        backend = disk(f"{number}.img")
        assert oneshot.add(backend).status == 0
        backend.delete()
    assert shell("(sleep 0.1; exec $X gc) | true; exit ${PIPESTATUS[0]}") == (0, "")
    assert not loops.below(tmp_path)


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(exec 2>&-; true)"])
def test_a_failure_that_nobody_reads(host_disk, shell, tmp_path, where):
    """Is one nevertheless."""
    (tmp_path / "disk.img").unlink()
    line = f"$X block add {host_disk.domid}/{host_disk.devid}"
    assert shell(f"{line} {where}") == (1, "")


@pytest.mark.parametrize("words", ["status", "agent", "block add 5/51712"])
def test_a_runtime_directory_with_too_long_a_name(shell, words):
    code, err = shell(f"XEN_HOTPLUG_RUNDIR=/tmp/{'r' * 150} $X {words}")
    assert code == 1
    assert "rrr is too long for a socket in it, it may have 99 bytes\n" in err
    assert err.count("\n") == 1


def test_a_working_directory_that_is_gone(host_disk, shell, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && $X block add {host_disk.domid}/{host_disk.devid}"
    assert shell(line) == (0, "")


@pytest.fixture
def host_disk(oneshot, disk):
    backend = disk()
    yield backend
    assert oneshot.remove(backend).status == 0


@pytest.mark.parametrize("words", ["block list", "status", "gc", "--help", "block --help"])
def test_output_that_cannot_be_written(shell, words):
    assert shell(f"(sleep 0.1; $X {words}; exit $?) | true; exit ${{PIPESTATUS[0]}}") == (0, "")
    code, err = shell(f"$X {words} >/dev/full")
    assert code == 1
    assert err == "xen-hotplug: the output cannot be written: No space left on device\n"
    assert shell(f"$X {words} >&-") == (0, "")


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_are_closed(host_disk, shell, closed):
    assert shell(f"$X block add {host_disk.domid}/{host_disk.devid} {closed}") == (0, "")
    assert host_disk.read("hotplug-status") == b"connected"


def test_interrupted(place, disk, tmp_path):
    backend = disk()
    command = [sys.executable, "-m", "hotplug", "block", "add", backend.relative]
    with locks.held(place.block_lock):
        process = subprocess.Popen(
            command,
            env=place.environment(),
            cwd="/",
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        locks.wait_for_waiter(place.block_lock)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
    sentence = "the run was stopped (SIGINT) while waiting for the lock 'block'"
    assert (process.returncode, err) == (130, f"xen-hotplug: {backend.relative}: {sentence}\n")
    assert backend.read("hotplug-error").decode() == sentence
    assert not loops.below(tmp_path)


def test_a_lock_file_that_goes_while_we_look(place, monkeypatch):
    """Its holder removes it when done."""
    with locks.held(place.block_lock):
        names = [*os.listdir(place.rundir), "gone"]
        monkeypatch.setattr(disks.os, "listdir", lambda _: names)
        assert [path for path, _ in disks.lock_holders(str(place.rundir))] == [
            str(place.block_lock)
        ]


def test_json_of_a_silent_device(command, dead_disk):
    assert json.loads(command("status", "--json")[1])["loops"]["silent"] >= 1
    rows = json.loads(command("block", "list", "--json")[1])
    assert [row["state"] for row in rows] == ["silent"]
    assert Path(rows[0]["device"]).exists()


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("print('done') or 3", 3, "done\n"),
        ("1 // 0", 1, "ZeroDivisionError: integer division or modulo by zero\n"),
        ("os.kill(os.getpid(), 9)", 7, "somebody killed the process that looked at the disks\n"),
        ("open('/nonexistent')", 7, "/nonexistent: No such file or directory\n"),
        ("print('x' * 1000000) or 0", 0, "x" * 1000000 + "\n"),
    ],
)
def test_work_in_a_child(work, status, said):
    code = (
        "import os, sys; from hotplug import aside, errors\n"
        f"try: sys.exit(aside.run(lambda: {work}))\n"
        "except errors.HotplugError as error: print(error); sys.exit(7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stdout.endswith(said)
    assert ("Traceback" in done.stdout) == ("//" in work)
