"""Work that prints, in a child that can be left behind: for commands that look at disks.

A thread that asks a device on a dead file system keeps its process, and with it the terminal or
the pipe that it writes to. So the child writes to pipes of ours, and we pass on what it says until
it says that it is done.
"""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

from hotplug.client import child
from hotplug.errors import HotplugError, error_text

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 40.0  # seconds without a word; to detach one disk may take 35
LAST_WORDS = 1.0  # seconds for the exit status, once nothing more is said
CHUNK = 65536  # bytes


def run(work: Callable[[], int]) -> int:
    """Let a child do it; its exit status. HotplugError if it fails otherwise, or hangs."""
    sys.stdout.flush()
    pipes = {1: os.pipe(), 2: os.pipe()}
    worker = child.start(lambda _: in_child(work, pipes))
    try:
        for _, writing in pipes.values():
            os.close(writing)
        refused = pass_on(worker, {reading: number for number, (reading, _) in pipes.items()})
        answer = worker.answer(LAST_WORDS)
    except child.WorkError as error:
        raise HotplugError(str(error)) from error
    finally:
        worker.kill(0)
        for reading, _ in pipes.values():
            os.close(reading)
    if answer is None:
        raise HotplugError("somebody killed the process that looked at the disks")
    if refused is not None:
        raise HotplugError(f"the output cannot be written: {refused.strerror}") from refused
    return int(answer)


def in_child(work: Callable[[], int], pipes: dict[int, tuple[int, int]]) -> bytes:
    for number, (reading, writing) in pipes.items():
        os.dup2(writing, number)
        os.close(reading)
        os.close(writing)
    try:
        status = work()
    except OSError as error:
        raise HotplugError(error_text(error)) from error
    except HotplugError:
        raise
    except Exception:  # noqa: BLE001 - a bug: in our parent it would be one line
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
    return b"%d" % status


def pass_on(worker: child.Child, targets: dict[int, int]) -> OSError | None:
    """Copy from pipes to our own descriptors until the child has nothing more to say.

    It is not stopped half-way if that cannot be written; the error is returned, unless it is that
    nobody reads any more.
    """
    refused: OSError | None = None
    poll = select.poll()
    for fd in (worker.fileno(), *targets):
        poll.register(fd, select.POLLIN)
    while ready := poll.poll(PATIENCE * 1000):
        speaking = [fd for fd, events in ready if fd in targets and events & select.POLLIN]
        if not speaking:
            return refused  # it has answered, or died
        for fd in speaking:
            data = os.read(fd, CHUNK)
            try:
                while data:
                    data = data[os.write(targets[fd], data) :]
            except BrokenPipeError:
                continue
            except OSError as error:
                refused = error
    raise HotplugError(f"gave up after {PATIENCE:.0f} s: a disk's file system does not answer")
