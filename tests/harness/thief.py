"""Another user of loop devices, who is always in the way.

Run as a program with a file to bind: it takes whichever loop device is free, gives it back and
starts again, until its standard input ends. It prints a line once it has begun, and the number
of devices that it had at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/loop.h>
LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_CTL_GET_FREE = 0x4C82


def steal(control: int, backing: int) -> int:
    """Have a free loop device for a moment; how many were had, 0 if another was faster."""
    number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    with contextlib.suppress(OSError), open(f"/dev/loop{number}", "r+b", buffering=0) as device:
        fcntl.ioctl(device, LOOP_SET_FD, backing)
        fcntl.ioctl(device, LOOP_CLR_FD)
        return 1
    return 0


def main(path: str) -> None:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    count = steal(control, backing)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        count += steal(control, backing)
    print(count)


@contextlib.contextmanager
def at_work(path: str) -> Iterator[None]:
    """Have a thief at work; fails if it never got anything."""
    command = [sys.executable, __file__, path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            said, _ = process.communicate()
        assert int(said) > 0


if __name__ == "__main__":
    main(sys.argv[1])
