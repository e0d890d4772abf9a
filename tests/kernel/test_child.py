"""Work in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from harness.locks import wait_until

from hotplug.client import child

PARENT = """
import os, time
from hotplug.client import child

def work(tell):
    for _ in range({notes}):
        tell(b"0 still at it")
    os.write({pipe}, b"%d\\n" % os.getpid())
    time.sleep(600)

worker = child.start(work)
time.sleep(600)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("notes", [0, 1])
def test_a_child_goes_with_its_parent(notes):
    """Also if the parent has not read what it was told: then its end is a reset."""
    reading, writing = os.pipe()
    code = PARENT.format(notes=notes, pipe=writing)
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[writing]) as parent:
        os.close(writing)
        with open(reading) as said:
            pid = int(said.readline())
            assert is_alive(pid)
            parent.kill()
            parent.wait()
            wait_until(lambda: not is_alive(pid), "the child is gone")


def test_what_was_said_before_the_time_was_up_is_heard():
    """Also the answer, of a child that was given up and killed meanwhile."""
    ready, go = os.pipe(), os.pipe()

    def work(tell):
        tell(b"1 committing")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        return b"done"

    worker = child.start(work)
    try:
        os.read(ready[0], 1)
        assert worker.answer(0) is None
        assert worker.note == b"1 committing"
        os.write(go[1], b"x")
        wait_until(worker.has_ended, "it has answered")
        assert worker.kill(0)
        assert worker.answer(0) == b"done"
    finally:
        worker._socket.close()
        for fd in (*ready, *go):
            os.close(fd)


LEAVER = """
import os
from hotplug.client import child

def work():
    os.read({waits}, 1)
    os.write({says}, b"%d" % os.getpid())

child.leave(work)
os._exit(0)
"""


def test_what_is_left_behind_goes_on():
    waits, go = os.pipe()
    said, says = os.pipe()
    code = LEAVER.format(waits=waits, says=says)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, pass_fds=[waits, says], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.read() == b""  # nobody is kept waiting for it
        assert parent.wait() == 0
    os.write(go, b"x")
    assert int(os.read(said, 20)) > 0
    for fd in (waits, go, said, says):
        os.close(fd)


def test_the_end_of_a_process_that_is_not_ours():
    reading, writing = os.pipe()
    command = [sys.executable, "-c", f"import os; os.read({reading}, 1)"]
    with subprocess.Popen(command, pass_fds=[reading], stdin=subprocess.PIPE) as process:
        waiter = child.leave(lambda: child.wait_for_end(process.pid))
        time.sleep(0.1)
        assert not child.ends(waiter, 0)
        os.write(writing, b"x")
        assert child.ends(waiter, 10)
        process.wait()
    child.wait_for_end(process.pid)  # there is none any more
    os.close(reading)
    os.close(writing)
