"""Start programs as cheaply as a C program does, and say how long they took.

Both sides are started by the same posix_spawn (vfork and exec inside), with the same environment
and descriptors. The clock runs from before the spawn to after the wait, so the fork that a
toolstack makes is in it.

Processes are counted by ``processes`` of /proc/stat, which the kernel adds one to for every fork
and every thread. The difference over a run holds the process that is spawned here, which is the
toolstack's own fork and belongs to the event, and what everybody else on the machine started
meanwhile. The bench starts nothing else in between, so the smallest of several differences is
the exact number as soon as one of the runs was undisturbed.
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
    before = processes_ever()
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
    return Took((ended - started) * 1000, processes_ever() - before, tuple(statuses))


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


def processes_ever() -> int:
    """How many processes and threads the kernel has made since it started."""
    with open("/proc/stat", "rb") as file:
        for line in file:
            if line.startswith(b"processes "):
                return int(line.split()[1])
    raise RuntimeError("/proc/stat has no line 'processes'")
