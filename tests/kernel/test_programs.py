"""Running real programs."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hangfs
import pytest
from fakes_kernel import FakeDeadline
from harness.locks import wait_until

from hotplug.errors import AbandonedError, DeadlineError
from hotplug.kernel import programs
from hotplug.kernel.programs import MAX_OUTPUT, HostPrograms
from hotplug.ports import Finished

RUN = HostPrograms().run


class RunningDeadline(FakeDeadline):
    """A clock that moves by itself, and an error when it ends."""

    def __init__(self, seconds):
        super().__init__()
        self.end = time.monotonic() + seconds

    def remaining(self):
        return max(0.0, self.end - time.monotonic())

    def check(self):
        if self.remaining() <= 0:
            raise DeadlineError("gave up")
        super().check()


def shell(script, *arguments, deadline=None, variables=None):
    return RUN(["sh", "-c", script, "sh", *arguments], deadline or RunningDeadline(20), variables)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_and_status():
    assert shell("echo out; echo err >&2; exit 3") == Finished(3, b"out\n", b"err\n")


def test_a_signal():
    assert shell("kill -TERM $$").status == -signal.SIGTERM


def test_odd_arguments_arrive_as_they_are():
    arguments = ["a b", "*", "$HOME", "'", "\\", "", os.fsdecode(b"\xff")]
    said = shell('printf "%s\\0" "$@"', *arguments).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(argument) for argument in arguments]


def test_no_such_program():
    for name in ("no-such-program", "/no/such/program"):
        with pytest.raises(FileNotFoundError) as failure:
            RUN([name], FakeDeadline())
        assert failure.value.filename == name


def test_a_program_without_permission(tmp_path):
    (tmp_path / "script").write_text("#!/bin/sh\n")
    for path in (tmp_path / "script", tmp_path):
        with pytest.raises(PermissionError) as failure:
            RUN([str(path)], FakeDeadline())
        assert failure.value.filename == str(path)


def test_a_dead_mount_in_the_path_stops_nobody_else(tmp_path, monkeypatch):
    with hangfs.mounted(tmp_path / "dead") as fs, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("PATH", str(fs.directory))
        fs.hang("lookup")
        started = time.monotonic()
        running = pool.submit(RUN, ["no-such-program"], FakeDeadline())
        fs.wait_until_hung()
        assert not running.done()
        assert time.monotonic() - started < hangfs.LONGEST_HANG / 2
        fs.release()
        assert isinstance(running.exception(), FileNotFoundError)


def test_it_is_found_in_sbin(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert RUN(["losetup", "--version"], FakeDeadline()).status == 0


def test_the_environment(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("LANG", "C.UTF-8")
    said = shell("env", variables={"XENBUS_PATH": "backend/vbd/1/51712"}).stdout.decode()
    words = dict(line.partition("=")[::2] for line in said.splitlines())
    assert words["LANG"] == "POSIX"
    assert words["XENBUS_PATH"] == "backend/vbd/1/51712"
    assert not [name for name in words if name.startswith("LC_")]
    assert "/usr/sbin" in words["PATH"].split(":")


def test_it_has_a_session_of_its_own_and_nothing_else(tmp_path):
    program = "import os; print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd')))"
    with open(tmp_path / "file", "w") as file:
        os.set_inheritable(file.fileno(), True)
        said = RUN([sys.executable, "-c", program], FakeDeadline()).stdout
    assert said == b"True ['0', '1', '2', '3']\n"  # 3 is the folder that is listed


def test_its_input_is_empty():
    assert shell("cat; readlink /proc/self/fd/0").stdout == b"/dev/null\n"


def test_much_output_is_cut_but_not_in_the_way():
    program = f"import os; [os.write(n, b'x' * {MAX_OUTPUT + 5000}) for n in (1, 2)]"
    done = RUN([sys.executable, "-c", program], FakeDeadline())
    assert done.status == 0
    assert done.stdout == done.stderr == b"x" * MAX_OUTPUT


def test_the_last_words_count():
    """Written in the moment before the end, more than one read takes."""
    done = RUN([sys.executable, "-c", "import os; os.write(1, b'y' * 65536)"], FakeDeadline())
    assert done.stdout == b"y" * 65536


def test_closed_output_is_not_the_end():
    done = shell("exec >&- 2>&-; sleep 0.2; exit 4")
    assert done == Finished(4, b"", b"")


def test_who_stays_behind_does_not_hold_us_up(tmp_path):
    """As tapdisk: it keeps our pipes and lives on."""
    started = time.monotonic()
    done = shell("echo done; sleep 60 & echo $! >&2")
    assert time.monotonic() - started < 30
    assert (done.status, done.stdout) == (0, b"done\n")
    pid = int(done.stderr)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_who_stays_behind_and_talks_does_not_hold_us_up():
    done = shell("yes & echo $! >&2; exit 0")
    assert len(done.stdout) <= MAX_OUTPUT
    os.kill(int(done.stderr), signal.SIGKILL)


def children_of(tmp_path):
    return [int(line) for line in (tmp_path / "pids").read_text().split()]


FAMILY = 'sleep 60 & echo $! >> "$1/pids"; echo $$ >> "$1/pids"; sleep 60'


def test_at_the_deadline_the_whole_family_dies(tmp_path):
    with pytest.raises(DeadlineError, match="sh was stopped after 0 s"):
        shell(FAMILY, str(tmp_path), deadline=RunningDeadline(0.3))
    assert len(children_of(tmp_path)) == 2
    wait_until(lambda: not any(map(is_alive, children_of(tmp_path))), "they are dead")


def test_it_dies_when_nobody_waits_for_it_any_more(tmp_path):
    deadline = FakeDeadline()

    def abandon():
        wait_until(lambda: len(children_of(tmp_path)) == 2, "it runs")
        deadline.abandoned = AbandonedError("the caller went away")

    (tmp_path / "pids").touch()
    thread = threading.Thread(target=abandon)
    thread.start()
    with pytest.raises(AbandonedError):
        shell(FAMILY, str(tmp_path), deadline=deadline)
    thread.join()
    wait_until(lambda: not any(map(is_alive, children_of(tmp_path))), "they are dead")


def test_nothing_is_started_too_late(tmp_path):
    with pytest.raises(DeadlineError):
        RUN(["touch", str(tmp_path / "trace")], RunningDeadline(0))
    assert os.listdir(tmp_path) == []


def test_one_that_cannot_be_killed_is_left(monkeypatch):
    """As in an uninterruptible sleep."""
    killed = []
    monkeypatch.setattr(programs.os, "killpg", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(programs, "LAST_WAIT", 0.05)

    def run():
        with pytest.raises(DeadlineError):
            RUN(["sleep", "60"], RunningDeadline(0.1))
        gc.collect()  # the error knows the process

    with pytest.warns(ResourceWarning, match="still running"):
        run()
    (pid,) = killed
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
