"""A one-shot run in adverse conditions: it does its work, or says why not where people look."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from harness import locks, loops
from harness.guests import Guest
from harness.run import scripts_directory

PATIENCE = 20.0  # seconds; nothing here takes two


@pytest.fixture
def start(place):
    """Run a program for a backend, by default our ``block add``, however the test likes."""
    started = []

    def run(backend, *argv, **options):
        environment = {
            **place.environment(),
            "XENBUS_PATH": backend.relative,
            "XENBUS_TYPE": "vbd",
            "XENBUS_BASE_PATH": "backend",
        }
        started.append(
            subprocess.Popen(
                argv or [scripts_directory() / "block", "add"],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                **options,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    """(exit status, stderr)."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert stdout == ""
    return process.returncode, stderr


def in_shell(start, backend, command):
    return finish(start(backend, "sh", "-c", command, scripts_directory() / "block"))


def assert_told(backend, result, *sentence):
    """Failed, with the same words on stderr and in the store."""
    status, stderr = result
    assert status == 1
    assert stderr.count("\n") == 1
    assert backend.read("hotplug-error").decode() == stderr.rstrip("\n")
    assert backend.read("hotplug-status") == b"error"
    for words in sentence:
        assert words in stderr


def take_back(oneshot, backend, files):
    assert backend.read("hotplug-status") == b"connected"
    assert "hotplug-error" not in backend.tree()
    assert oneshot.remove(backend).status == 0
    assert not loops.below(files)


def test_the_caller_ignores_sigchld(oneshot, start, disk, tmp_path):
    """libxl does not, but who runs libxl may; it is inherited."""
    backend = disk()
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = start(backend, restore_signals=False)
    finally:
        signal.signal(signal.SIGCHLD, former)
    assert finish(process) == (0, "")
    take_back(oneshot, backend, tmp_path)


def test_an_agent_whose_starter_ignores_sigchld(place, runner, disk):
    """It would take every program for one that succeeded."""
    place.helper(
        "block-foo", "#!/bin/sh\n[ $1 = remove ] || { echo 'no such thing' >&2; exit 1; }\n"
    )
    assert runner.agent.stop() == 0
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    runner.launcher = (sys.executable, "-c", f"{code}; os.execv(sys.argv[1], sys.argv[1:])")
    runner.start_agent()
    runner.launcher = ()
    backend = Guest(place.store).disk("foo:whatever", keys={"type": "foo"})
    assert runner.add(backend).status == 1
    assert b"no such thing" in backend.read("hotplug-error")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_are_closed(oneshot, start, disk, tmp_path, closed):
    backend = disk()
    assert in_shell(start, backend, f'exec "$0" add {closed}') == (0, "")
    take_back(oneshot, backend, tmp_path)


def test_a_broken_configuration(place, start, disk):
    backend = disk()
    place.config.write_text("nonsense = = 1\n")
    assert_told(backend, finish(start(backend)), str(place.config))


def test_the_journal_cannot_be_made(place, start, disk):
    """What is wrong is named, and not taken for the store."""
    backend = disk()
    journal = place.rundir / "journal"
    journal.touch()
    assert_told(backend, finish(start(backend)), f"add failed: {journal}: File exists")
    journal.unlink()


@pytest.mark.parametrize("descriptors", range(4, 9))
def test_no_descriptors(place, start, disk, descriptors):
    backend = disk()
    result = in_shell(start, backend, f'ulimit -n {descriptors}; exec "$0" add')
    assert_told(backend, result, "Too many open files")


def test_no_process_can_be_started(place, start, disk):
    backend = disk()
    refuse = (
        "import errno, os; os.fork = lambda: (_ for _ in ()).throw(OSError(errno.EAGAIN, 'no'))"
    )
    run = "import sys; from hotplug.client import oneshot; sys.exit(oneshot.main(['block', 'add']))"
    process = start(backend, sys.executable, "-c", f"{refuse}; {run}")
    assert_told(backend, finish(process), "no process can be started: no")


def test_a_bug(place, start, disk):
    """In what comes before a handler: that of a handler is dispatch's."""
    backend = disk()
    bug = "from hotplug.agent import host; host.build = lambda settings: 1 // 0"
    run = "import sys; from hotplug.client import oneshot; sys.exit(oneshot.main(['block', 'add']))"
    process = start(backend, sys.executable, "-c", f"{bug}; {run}")
    assert_told(backend, finish(process), "add failed: ZeroDivisionError: ")
    assert "Traceback" in place.log_file.read_text()


def test_the_thin_client_fails(place, start, disk):
    """Something else has taken the place of the agent's socket."""
    backend = disk()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(place.rundir / "control"))
        status, stderr = finish(start(backend))
    assert status == 1
    script, _, sentence = stderr.rstrip("\n").partition(": ")
    assert script == str(scripts_directory() / "block")
    assert f"{place.rundir}/control: the agent cannot be reached" in sentence
    assert backend.read("hotplug-error").decode() == sentence
    assert backend.read("hotplug-status") == b"error"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["it", "its group"])
def test_a_run_is_stopped(place, oneshot, start, disk, tmp_path, number, whom):
    """In good order: nothing stays attached, and the store says why."""
    backend = disk()
    with locks.held(place.block_lock):
        process = start(backend)
        locks.wait_for_waiter(place.block_lock)
        assert loops.below(tmp_path)
        (os.kill if whom == "it" else os.killpg)(process.pid, number)
        status, stderr = finish(process)
        assert not loops.below(tmp_path)
    assert status == 128 + number
    assert stderr == (f"the run was stopped ({number.name}) while waiting for the lock 'block'\n")
    assert backend.read("hotplug-error").decode() == stderr.rstrip("\n")
    assert oneshot.add(backend).status == 0
    take_back(oneshot, backend, tmp_path)


def test_a_run_under_nohup(place, oneshot, start, disk, tmp_path):
    backend = disk()
    with locks.held(place.block_lock):
        former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            process = start(backend)
        finally:
            signal.signal(signal.SIGHUP, former)
        locks.wait_for_waiter(place.block_lock)
        os.killpg(process.pid, signal.SIGHUP)
    assert finish(process) == (0, "")
    take_back(oneshot, backend, tmp_path)


def test_reclaim_is_not_for_toolstacks(runner, oneshot, disk):
    """It would do nothing, without a word, and look like a success."""
    backend = disk()
    for host in (runner, oneshot):
        result = host.run(backend, "reclaim")
        assert (result.status, result.stderr) == (1, b"Invalid command: reclaim\n")
