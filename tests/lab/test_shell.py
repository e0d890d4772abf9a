"""``make lab-shell``: somebody at a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHELL = Path(__file__).with_name("shell.py")
BOOT_SECONDS, SECONDS = 240.0, 60.0


class Terminal:
    """A program on a terminal of its own, and what it says there."""

    def __init__(self, *command):
        self.ours, theirs = os.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, text, seconds):
        end = time.monotonic() + seconds
        while text not in self.said:
            left = max(0.0, end - time.monotonic())
            assert select.select([self.ours], [], [], left)[0], self.said
            self.said += os.read(self.ours, 65536).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def type(self, line):
        os.write(self.ours, line.encode() + b"\n")

    def wait_for_the_end(self, seconds):
        """Its status. What it still says is read: nobody writes into a terminal that is full."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.ours], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # it has closed its side
                    self.said += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.poll()


@pytest.mark.long
def test_a_console_of_dom0():
    terminal = Terminal(sys.executable, SHELL)
    try:
        terminal.wait_for("This is dom0", BOOT_SECONDS)
        terminal.type("echo $((6 * 7))$((6 * 7))")
        terminal.wait_for("4242", SECONDS)  # what was typed does not say so
        terminal.wait_for("# ", SECONDS)
        terminal.type("xl list && poweroff -f")
        terminal.wait_for("Domain-0", SECONDS)
        assert terminal.wait_for_the_end(SECONDS) == 0, terminal.said
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)
