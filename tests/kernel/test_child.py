"""Work in a child process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness.locks import wait_until

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
