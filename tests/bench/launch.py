"""Start programs as cheaply as a C program does, and say how long they took.

Both sides are started by the same posix_spawn (vfork and exec inside), with the same environment
and descriptors. The clock runs from before the spawn to after the wait, so the fork that a
toolstack makes is in it.

Processes are counted by their numbers: the kernel gives the processes and threads of a process
namespace (see isolation.py) consecutive ones, and the last field of /proc/loadavg is the last one
given. The difference over a run is how many were started, whatever else runs on the machine. It
holds the process that is spawned here, which is the toolstack's own fork and belongs to the event;
the bench itself starts nothing in between.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESERVED_NUMBERS = 300  # RESERVED_PIDS in the kernel: not given a second time


@dataclass(frozen=True, slots=True)
class Command:
    """What to start."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: str  # takes stdout and stderr


@dataclass(frozen=True, slots=True)
class Took:
    """What a run, or several at once, cost."""

    milliseconds: float
    processes: int
    statuses: tuple[int, ...]


def run(commands: Sequence[Command]) -> Took:
    """Start all at once and wait for the last."""
    running: list[int] = []
    statuses = []
    before = last_number()
    started = time.perf_counter()
    try:
        running.extend(map(spawn, commands))  # one by one: what was started is known
        for pid in tuple(running):
            _, status = os.waitpid(pid, 0)
            running.remove(pid)
            statuses.append(os.waitstatus_to_exitcode(status))
    finally:
        for pid in running:
            kill_group(pid)
    ended = time.perf_counter()
    return Took((ended - started) * 1000, started_between(before, last_number()), tuple(statuses))


def spawn(command: Command) -> int:
    """The pid; each program leads a process group, so that it can be ended with its children."""
    return os.posix_spawn(
        command.arguments[0],
        command.arguments,
        command.environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, command.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setpgroup=0,
    )


def kill_group(pid: int) -> None:
    """End a program that we started, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def last_number() -> int:
    """The number of the process or thread that was started last."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[-1])


def started_between(before: int, after: int) -> int:
    """How many processes and threads were started, by their numbers; these start again."""
    if after >= before:
        return after - before
    with open("/proc/sys/kernel/pid_max", "rb") as file:
        return after - before + int(file.read()) - RESERVED_NUMBERS
