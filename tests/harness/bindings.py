"""What loop devices are bound to, asked of the kernel: independent of the code under test."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

# <linux/loop.h>: struct loop_info64
LOOP_GET_STATUS64 = 0x4C05
INFO = struct.Struct("=5Q4I64s64s32s2Q")


@dataclass(frozen=True, slots=True)
class Binding:
    """A loop device's file, and the name that whoever bound it gave it."""

    file: tuple[int, int]  # st_dev and st_ino
    reference: str
    read_only: bool


def binding(path: str) -> Binding | None:
    """What /dev/loopN is bound to; None if it is free."""
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = INFO.unpack(fcntl.ioctl(device, LOOP_GET_STATUS64, bytes(INFO.size)))
    except OSError:
        return None
    finally:
        os.close(device)
    name = info[9].partition(b"\0")[0].decode(errors="replace")
    return Binding((info[0], info[1]), name, bool(info[8] & 1))


def identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """A file's, as ``Binding.file`` has it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
