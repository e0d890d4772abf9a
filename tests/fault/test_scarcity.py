"""No space, no inodes, no memory, no descriptors: for real, or as the kernel would say it.

What cannot be done fails with a text, leaves nothing, and works again as soon as there is room.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess

import pytest
from harness import control, leaks
from harness.locks import wait_until
from harness.run import Runner

PAGE = 4096
LOOPS = 300  # the numbers of those that a test may get


@pytest.fixture
def small_rundir(place):
    """The runtime directory on a file system with room for nothing but a few pages and files."""
    options = f"size={32 * PAGE},nr_inodes=16"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place.rundir], check=True)
    yield place.rundir
    subprocess.run(["umount", place.rundir], check=True)


@pytest.fixture(params=["agent", "oneshot"])
def runner(request, small_rundir, place):
    runner = Runner(request.param, place)
    if runner.kind == "agent":
        runner.start_agent()
    else:
        (small_rundir / "journal").mkdir()
    yield runner
    if runner.agent is not None:
        assert runner.agent.stop() == 0


def fill_space(directory, leave=0):
    """Take every page but a few."""
    with open(directory / "filler", "wb", buffering=0) as file:
        with contextlib.suppress(OSError):  # ENOSPC
            while True:
                file.write(bytes(PAGE))
        file.truncate(os.stat(file.fileno()).st_size // PAGE * PAGE - leave * PAGE)


def fill_inodes(directory):
    (directory / "fillers").mkdir()
    with contextlib.suppress(OSError):  # ENOSPC
        for number in itertools.count():
            (directory / "fillers" / str(number)).touch()


def tidy(directory):
    (directory / "filler").unlink(missing_ok=True)
    for file in (directory / "fillers").glob("*"):
        file.unlink()


@pytest.mark.parametrize("fill", [fill_space, fill_inodes])
def test_no_space_for_the_journal(runner, small_rundir, fill, file_disk, holds, goes_on):
    attached, refused = file_disk(), file_disk()
    assert runner.add(attached).status == 0
    fill(small_rundir)
    result = runner.add(refused)
    assert result.status == 1
    journal = small_rundir / "journal" / f"vbd.{refused.domid}.51712"
    assert (
        refused.read("hotplug-error") == f"add failed: {journal}: No space left on device".encode()
    )
    holds(attached, refused, settled=True)
    assert runner.remove(attached).status == 0
    holds(attached, refused, settled=True)
    tidy(small_rundir)
    goes_on(runner, attached, refused)


def test_space_for_half_a_line_of_the_journal(runner, small_rundir, files, file_disk, goes_on):
    """A short write is no error to the kernel."""
    odd = os.fsdecode(b"\xff" * 200)  # each byte takes six in JSON
    deep = files.joinpath(*[odd] * 4)
    deep.mkdir(parents=True)
    disk = deep / "disk.img"
    disk.write_bytes(bytes(PAGE))
    backend = file_disk()
    backend.write("params", os.fsencode(disk))
    fill_space(small_rundir, leave=1)
    assert runner.add(backend).status == 1
    assert b"No space left on device" in backend.read("hotplug-error")
    leaks.refuse(runner.place, files, runner.agent)
    tidy(small_rundir)
    goes_on(runner, backend)


def without_memory(when, log):
    """A command that has some ioctls of another one, on loop devices, fail with ENOMEM."""
    inject = f"inject=ioctl:error=ENOMEM:when={when}"
    devices = ["loop-control", *(f"loop{number}" for number in range(LOOPS))]
    paths = [word for name in devices for word in ("-P", f"/dev/{name}")]
    return ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=ioctl", "-e", inject, *paths)


def was_hit(log):
    return "INJECTED" in log.read_text()


@pytest.mark.parametrize("action", ["add", "remove"])
def test_the_kernel_has_no_memory(oneshot, place, action, file_disk, holds, goes_on):
    """For any single call of the driver of loop devices."""
    log = place.directory / "strace"
    backends = []
    hits = 0
    for number in range(1, 12):  # then comes the search for who else uses the file, which is long
        backend = file_disk()
        backends.append(backend)
        if action == "remove":
            assert oneshot.add(backend).status == 0
            backend.close()
        oneshot.launcher = without_memory(number, log)
        result = oneshot.run(backend, action)
        oneshot.launcher = ()
        if result.status:
            hits += 1
            assert was_hit(log)
            assert b"Cannot allocate memory" in backend.read("hotplug-error")
            holds(*backends, settled=action == "add")
    assert hits > 1
    assert oneshot.faults == []
    goes_on(oneshot, *backends)


def test_the_kernel_has_no_memory_now_and_then(agent, place, file_disk, holds, goes_on):
    """In an agent at work: strace comes to it later."""
    log = place.directory / "strace"
    command = [*without_memory("3+5", log), "-p", str(agent.agent.pid)]
    backends = [file_disk() for _ in range(12)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
        wait_until(lambda: is_traced(agent.agent.pid), "strace is there")
        runs = [agent.start(backend, "add") for backend in backends]
        results = [run.wait() for run in runs]
        strace.terminate()
    assert was_hit(log)
    assert {result.status for result in results} == {0, 1}
    holds(*backends, settled=True)
    assert agent.faults == []
    goes_on(agent, *backends)


def is_traced(pid):
    """Whether all threads of a process are."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            if "TracerPid:\t0\n" in file.read():
                return False
    return True


def limit(agent, what, value):
    _, hard = resource.prlimit(agent.agent.pid, what)
    resource.prlimit(agent.agent.pid, what, (value, hard))


@pytest.mark.parametrize("spare", [0, 1, 3, 6, 12])
def test_no_descriptors(agent, place, spare, file_disk, holds, goes_on):
    """Clients that cannot be let in wait, and calls that open something fail with a text."""
    backends = [file_disk() for _ in range(8)]
    agent.add(backends[0])  # what is opened once and for all is open
    used = max(map(int, os.listdir(f"/proc/{agent.agent.pid}/fd"))) + 1
    limit(agent, resource.RLIMIT_NOFILE, used + spare)
    runs = [agent.start(backend, "add") for backend in backends[1:]]
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: all(run.has_ended for run in runs), "all are answered", 2.0)
    limit(agent, resource.RLIMIT_NOFILE, 4096)
    results = [run.wait() for run in runs]
    assert {result.status for result in results} <= {0, 1}
    assert agent.faults == []
    control.wait_until_idle(place)
    holds(*backends, settled=True)
    assert agent.agent.process.poll() is None
    goes_on(agent, *backends)
