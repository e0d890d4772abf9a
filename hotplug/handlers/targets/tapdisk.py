"""tap-ctl, the program that starts tapdisks and asks them what they serve.

Facts (github.com/xapi-project/blktap, control/; the same since Xen 4.0 unless a version is named):

- ``list`` prints ``pid=P minor=M state=S args=T:F`` for an image that is open, ``pid=P minor=M
  state=S`` for a number that is only attached, ``pid=P`` for a tapdisk that has none, and
  ``minor=M`` for a number that is allocated and not attached.
- ``allocate`` prints /dev/xen/blktap-2/tapdevM where the kernel has the driver, and from blktap 4
  (2025) on, which needs no driver, /run/blktap-control/tapdisk/tapdisk-M.
- A tapdisk ends by itself when its last number is detached. One that never had any stays.
- Since blktap 4 there is no ``check``; an unknown command prints the usage and exits 0.
- The exit status is an errno, and its text the last line on stderr.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.targets import tool

if TYPE_CHECKING:
    from collections.abc import Collection

    from hotplug.ports import Deadline, Finished, Host

MISSING = "Unable to find tap-ctl tool"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of ``tap-ctl list``; what a line does not have is None or ""."""

    pid: int | None
    minor: int | None
    params: str = ""

    @classmethod
    def parse(cls, line: str) -> Row:
        head, _, params = line.partition("args=")  # the rest of the line, blanks and all
        words = dict(word.split("=", 1) for word in head.split() if "=" in word)
        pid, minor = words.get("pid", ""), words.get("minor", "")
        return cls(
            int(pid) if pid.isdigit() else None, int(minor) if minor.isdigit() else None, params
        )


def tap_ctl(host: Host, deadline: Deadline, *arguments: str) -> Finished:
    return tool.run(host, deadline, ("tap-ctl", *arguments), missing=MISSING)


def must(host: Host, deadline: Deadline, *arguments: str) -> None:
    """Run a step of the way back."""
    finished = tap_ctl(host, deadline, *arguments)
    if finished.status:
        raise tool.failed(("tap-ctl", *arguments), finished)


def rows(host: Host, deadline: Deadline) -> list[Row]:
    """Every tapdisk and every number on this host."""
    finished = tap_ctl(host, deadline, "list")
    if finished.status:
        raise tool.failed(("tap-ctl", "list"), finished)
    return [Row.parse(line) for line in os.fsdecode(finished.stdout).split("\n") if line]


def refuse_without_driver(host: Host) -> None:
    """The kernel's blktap driver must be there, loaded if need be."""
    tool.run(host, host.deadline, ("modprobe", "blktap"), missing="Unable to find modprobe")
    finished = tap_ctl(host, host.deadline, "check")
    if finished.status:
        raise tool.failure("Blocktap kernel module not available", finished)


def allocate(host: Host) -> int:
    finished = tap_ctl(host, host.deadline, "allocate")
    name = os.fsdecode(finished.stdout).strip()
    number = name[len(name.rstrip("0123456789")) :]
    if finished.status or not number:
        raise tool.failure("Could not allocate minor", finished)
    return int(number)


def spawn(host: Host, minor: int) -> int:
    finished = tap_ctl(host, host.deadline, "spawn")
    pid = os.fsdecode(finished.stdout).strip()
    if finished.status or not pid.isdigit():
        raise tool.failure(f"Could not spawn tapdisk for {minor}", finished)
    return int(pid)


def attach(host: Host, pid: int, minor: int) -> None:
    finished = tap_ctl(host, host.deadline, "attach", "-p", str(pid), "-m", str(minor))
    if finished.status:
        raise tool.failure(f"Could not attach {pid} and {minor}", finished)


def open_image(host: Host, pid: int, minor: int, params: str) -> None:
    words = ("open", "-p", str(pid), "-m", str(minor), "-a", params)
    finished = tap_ctl(host, host.deadline, *words)
    if finished.status:
        raise tool.failure(f'Could not open "{params}"', finished)


def destroy(host: Host, deadline: Deadline, pid: int, minor: int) -> None:
    """Close the image, detach the number and free it."""
    must(host, deadline, "destroy", "-p", str(pid), "-m", str(minor))


def clean(host: Host, deadline: Deadline, minor: int, pids: Collection[int]) -> None:
    """Take down a number that serves nothing yet, and the tapdisks that were meant for it."""
    number = ("-m", str(minor))
    free = False
    for row in rows(host, deadline):
        if row.params or (row.pid is not None and row.pid not in pids):
            continue
        if row.pid is not None and row.minor == minor:
            must(host, deadline, "detach", "-p", str(row.pid), *number)
        elif row.pid is not None and row.minor is None:
            end(host, deadline, row.pid, minor)
        free = free or row.minor == minor
    if free:
        must(host, deadline, "free", *number)


def end(host: Host, deadline: Deadline, pid: int, minor: int) -> None:
    """End a tapdisk without numbers: it goes when one is attached and detached again."""
    words = ("-p", str(pid), "-m", str(minor))
    if tap_ctl(host, deadline, "attach", *words).status == 0:
        must(host, deadline, "detach", *words)
        return
    kill = ("kill", str(pid))  # tap-ctl has just seen that this is a tapdisk
    finished = tool.run(host, deadline, kill, missing="Unable to find kill")
    if finished.status:
        raise HotplugError(f"tapdisk {pid} cannot be ended: {tool.reason(finished)}")
