"""The agent's side of the restore server: started, started again, ended; no orphans."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hotplug.agent import restorer
from hotplug.agent.restorer import Restorer

TESTS = Path(__file__).parents[1]
PATIENCE = 20.0  # seconds; nothing here takes one
SERVED = (
    f"import sys; sys.path += [sys.argv.pop(1), {str(TESTS)!r}]; import socket; "
    "from fakes_xen import FakeXen; from hotplug.restore.server import Server; "
    "sys.exit(Server(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), FakeXen).run())"
)
# An agent that does nothing else.
AGENT = """
import select, sys, time
from hotplug.agent import restorer
class Logs:
    def failure(self, *words):
        print(*words)
restorer.HYPERVISOR, restorer.PROGRAM = "/", sys.argv[2]
made = restorer.Restorer(sys.argv[1], select.epoll(), Logs())
made.tick()
print(made.server.process.pid, flush=True)
time.sleep(1000)
"""


class Logs:
    def __init__(self):
        self.said = []

    def failure(self, _script, text):
        self.said.append(text)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def wait_until(condition, what):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.005)


def is_there(pid):
    return Path(f"/proc/{pid}").exists()


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def rundir():
    """Short, because a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="xh-") as directory:
        yield directory


@pytest.fixture
def make(rundir, monkeypatch):
    """A restorer on a host with Xen; what it starts has a hypervisor of the tests."""
    monkeypatch.setattr(restorer, "HYPERVISOR", "/")
    monkeypatch.setattr(restorer, "PROGRAM", SERVED)
    made = []

    def build():
        made.append(Restorer(rundir, select.epoll(), Logs(), Clock()))
        return made[-1]

    yield build
    for one in made:
        one.close()
        one.poll.close()
    assert os.listdir(rundir) == []


def wait_for_end(one):
    """As the agent's loop does."""
    assert one.poll.poll(PATIENCE) == [(one.fileno(), select.EPOLLIN | select.EPOLLHUP)]
    one.ended()


def test_it_is_started_and_ended(make, rundir):
    one = make()
    assert one.fileno() == -1
    assert one.tick() is None
    pid = one.server.process.pid
    wait_until(lambda: os.path.exists(f"{rundir}/restore"), "it listens")
    workers = children(pid)
    assert workers
    assert one.tick() is None
    assert one.server.process.pid == pid
    one.close()
    assert not is_there(pid)
    wait_until(lambda: not any(map(is_there, workers)), "no worker is left")
    assert one.logs.said == []


def test_it_is_started_again(make):
    one = make()
    one.tick()
    pid = one.server.process.pid
    one.server.process.kill()
    wait_for_end(one)
    assert one.logs.said == ["the restore server has ended with status -9; started again in 1 s"]
    assert one.tick() == 1.0
    assert one.fileno() == -1
    one.clock.now += 1.0
    assert one.tick() is None
    assert one.server.process.pid != pid


def test_ever_later(make, monkeypatch):
    monkeypatch.setattr(restorer, "PROGRAM", "import sys; sys.exit(4)")
    one = make()
    waits = []
    for _ in range(11):
        one.tick()
        wait_for_end(one)
        waits.append(one.tick())
        one.clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    one.tick()
    one.clock.now += restorer.STEADY
    wait_for_end(one)
    assert one.tick() == 1.0


def test_a_python_that_cannot_be_started(make, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    one = make()
    assert one.tick() == 1.0
    assert "the restore server cannot be started: " in one.logs.said[0]
    assert one.fileno() == -1


def test_where_there_is_no_xen(make, monkeypatch):
    monkeypatch.setattr(restorer, "HYPERVISOR", "/nonexistent")
    one = make()
    assert (one.tick(), one.fileno()) == (None, -1)


def test_a_xen_that_is_not_known(make, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(restorer, "HYPERVISOR", "/")
    one = make()
    one.tick()
    wait_for_end(one)
    assert (one.tick(), one.fileno(), one.logs.said) == (None, -1, [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphans(rundir, number):
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, rundir, SERVED], cwd="/", stdout=subprocess.PIPE
    )
    with agent:
        server = int(agent.stdout.readline())
        wait_until(lambda: children(server), "it has its worker")
        family = [server, *children(server)]
        agent.send_signal(number)
    wait_until(lambda: not any(map(is_there, family)), "all of them are gone")
