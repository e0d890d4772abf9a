"""The agent as a service: one of it, reloaded, drained, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys

from harness import locks, loops
from harness.guests import Guest
from harness.locks import wait_until
from harness.loops import make_file
from harness.place import place_in_domain
from harness.run import Runner


def test_the_socket_is_for_root_alone(runner, place):
    control = place.rundir / "control"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    os.chmod(control, 0o666)  # noqa: S103 - the file's mode must not be all that keeps others out
    os.chmod(place.directory, 0o755)  # noqa: S103 - so that they get that far
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect(sys.argv[1]); print(s.recv(4096))"
    )
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", program, control],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "only root may ask for devices" in done.stdout, done.stderr
    assert done.stdout.startswith("b'\\x01")


def test_there_is_only_one(runner, place, command):
    code, out, err = command("agent")
    assert code == 1
    assert out == ""
    assert err == (
        f"xen-hotplug: another agent (pid {runner.agent.pid}) already serves {place.rundir};"
        " stop it first\n"
    )


def test_a_socket_left_by_a_dead_agent_is_replaced(runner, disk):
    runner.agent.kill()
    runner.start_agent()
    backend = disk()
    assert runner.add(backend).status == 0
    assert runner.remove(backend).status == 0


def test_reload(runner, place, status):
    place.configure(deadline=7.5)
    runner.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: status()["agent"]["deadline_s"] == 7.5, "the new deadline is in force")


def test_a_broken_file_leaves_the_old_settings(runner, place, disk, status):
    place.config.write_text("deadline = 'soon'\n")
    runner.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "not reloaded" in runner.agent.log.read_text(), "it says so")
    assert "deadline: 'soon' is not of the right type" in runner.agent.log.read_text()
    place.configure()  # the command reads it too
    assert status()["agent"]["deadline_s"] == 35.0
    backend = disk()
    assert runner.add(backend).status == 0
    assert runner.remove(backend).status == 0


def test_sigterm_lets_running_work_finish(runner, place, disk, tmp_path):
    backend = disk()
    with locks.held(place.block_lock):
        run = runner.start(backend, "add")
        locks.wait_for_waiter(place.block_lock)
        runner.agent.process.send_signal(signal.SIGTERM)
        late = runner.start(disk("late.img"), "remove")  # nobody accepts it any more
        assert late.wait().status == 0
        assert runner.agent.process.poll() is None
    assert run.wait().status == 0
    assert runner.agent.process.wait(10) == 0
    assert backend.read("hotplug-status") == b"connected"
    assert not (place.rundir / "control").exists()
    runner.start_agent()
    assert runner.remove(backend).status == 0


def test_the_loss_of_the_store_ends_it(runner, place):
    place.daemon.stop()
    assert runner.agent.process.wait(10) == 1
    assert "the agent ends" in runner.agent.log.read_text()


def test_the_watchdog_is_fed(place):
    path = place.directory / "watchdog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10)
        process = subprocess.Popen(
            [sys.executable, "-m", "hotplug", "agent"],
            env={**place.environment(), "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"},
            cwd="/",
            stderr=subprocess.DEVNULL,
        )
        try:
            said = b""
            while said.count(b"WATCHDOG=1") < 3:
                said += manager.recv(4096) + b"\n"
            assert b"READY=1" in said
            process.terminate()
            while b"STOPPING=1" not in said:
                said += manager.recv(4096) + b"\n"
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()


ACTIVATE = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "${@:2}" 3<&"$1"'


def test_a_socket_passed_by_the_service_manager(oneshot, place, disk):
    """A client that came before the agent was there is answered by it."""
    backend = disk()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place.rundir / "control"))
        listener.listen(16)
        early = oneshot.start(backend, "add")
        number = listener.fileno()
        agent = [sys.executable, "-m", "hotplug", "agent"]
        process = subprocess.Popen(
            ["bash", "-c", ACTIVATE, "bash", str(number), *agent],
            env=place.environment(),
            cwd="/",
            pass_fds=(number,),
        )
        try:
            assert early.wait().status == 0
            assert oneshot.remove(backend).status == 0
        finally:
            process.terminate()
            assert process.wait(10) == 0
        assert (place.rundir / "control").exists()  # it is the service manager's


def test_a_client_that_is_killed_is_undone(runner, place, disk, tmp_path):
    backend = disk()
    with locks.held(place.block_lock):
        run = runner.start(backend, "add")
        locks.wait_for_waiter(place.block_lock)
        assert loops.below(tmp_path)
        run.kill()
        wait_until(lambda: not loops.below(tmp_path), "it is taken back")
    assert backend.read("physical-device") is None
    assert backend.read("hotplug-status") is None
    assert runner.add(backend).status == 0
    assert runner.remove(backend).status == 0


def test_a_forced_removal_leaves_nothing(runner, disk, tmp_path):
    """libxl deletes the backend of a removal that takes too long, and runs no script."""
    backend = disk()
    assert runner.add(backend).status == 0
    assert loops.below(tmp_path)
    backend.delete()
    wait_until(lambda: not loops.below(tmp_path), "it is taken back")


def test_a_whole_domain_that_is_deleted_leaves_nothing(runner, place, tmp_path):
    guest = Guest(place.store)
    for number in range(3):
        backend = guest.disk(str(make_file(tmp_path / f"{number}.img")))
        assert runner.add(backend).status == 0
    assert len(loops.below(tmp_path)) == 3
    place.store.remove(f"/local/domain/0/backend/vbd/{guest.domid}")
    wait_until(lambda: not loops.below(tmp_path), "all are taken back")


def test_the_cold_start_repairs(runner, disk, tmp_path):
    """What went away while no agent ran, and what an agent that was killed left half done."""
    gone, kept = disk("gone.img"), disk("kept.img")
    for backend in (gone, kept):
        assert runner.add(backend).status == 0
    runner.agent.kill()
    gone.delete()
    runner.start_agent()
    wait_until(lambda: len(loops.below(tmp_path)) == 1, "only one is left")
    assert loops.below(tmp_path)[0].backing.endswith("kept.img")
    assert runner.remove(kept).status == 0


def test_the_cold_start_finds_loops_without_a_journal(runner, disk, place, tmp_path):
    gone, kept = disk("gone.img"), disk("kept.img")
    for backend in (gone, kept):
        assert runner.add(backend).status == 0
    runner.agent.kill()
    for entry in (place.rundir / "journal").iterdir():
        entry.unlink()
    gone.delete()
    runner.start_agent()
    wait_until(lambda: len(loops.below(tmp_path)) == 1, "only one is left")
    assert loops.below(tmp_path)[0].backing.endswith("kept.img")
    assert runner.remove(kept).status == 0


def test_a_host_of_udev_serves_what_waits(runner, place, disk, status):
    """Backends that were announced before anybody listened; switched on and off by SIGHUP."""
    waiting, connected = disk("waiting.img"), disk("connected.img")
    assert runner.add(connected).status == 0
    place.configure(udev=True)
    runner.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: waiting.read("hotplug-status") == b"connected", "it is served")
    assert status()["agent"]["sources"] == ["control", "udev"]
    place.configure()
    runner.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: status()["agent"]["sources"] == ["control"], "it does not listen any more")
    for backend in (waiting, connected):
        assert runner.remove(backend).status == 0


def test_disable_udev_that_may_not_be_read(tmp_path):
    """A refusal is that device's failure, and the agent goes on."""
    with place_in_domain(7) as place:
        place.store.write("/local/domain/7/libxl/disable_udev", "")
        place.store.set_permissions("/local/domain/7/libxl/disable_udev", "n0")
        runner = Runner("agent", place, domid=7)
        runner.start_agent()
        backend = Guest(place.store).disk(str(make_file(tmp_path / "a.img")), backend_domid=7)
        result = runner.run(backend, "add", variables={"UDEV_CALL": "1"})
        assert result.status == 1
        assert b"libxl/disable_udev" in result.stderr
        assert runner.agent.process.poll() is None
        assert runner.agent.stop() == 0
