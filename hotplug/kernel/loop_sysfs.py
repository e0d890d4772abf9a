"""What sysfs tells about loop devices. Nothing here can hang, whatever became of the backing file.

sysfs takes none of the loop driver's mutexes: ``loop/`` exists from before LOOP_CONFIGURE returns
until the device is unbound, and ``loop/backing_file`` is read under a spinlock and asks no file
system (Linux 5.8, loop_attr_backing_file_show). The path in it is the one that *we* would use only
if the device was bound in our mount namespace.

``diskseq`` (Linux 5.15, commit cf179948554a) counts bindings over all disks: a loop device gets a
new number when it is bound, when LOOP_CHANGE_FD gives it another file and when it is unbound. As
long as it stays, the device is bound to what it was bound to.
"""

from __future__ import annotations

import errno
import os

BLOCK = "/sys/block"
DELETED = " (deleted)"


def numbers() -> list[int]:
    """All loop devices there are, bound or not."""
    names = (name[4:] for name in os.listdir(BLOCK) if name.startswith("loop"))
    return [int(name) for name in names if name.isdigit()]


def number_of(major: int, minor: int) -> int | None:
    """N of the /dev/loopN that a device is, or is a partition of."""
    try:
        where = os.readlink(f"/sys/dev/block/{major}:{minor}")
    except FileNotFoundError:
        return None
    disk = where.rpartition("/block/")[2].partition("/")[0]
    name = disk.removeprefix("loop")
    return int(name) if name != disk and name.isdigit() else None


def exists(number: int) -> bool:
    return os.access(f"{BLOCK}/loop{number}", os.F_OK)


def is_bound(number: int) -> bool:
    return os.access(f"{BLOCK}/loop{number}/loop", os.F_OK)


def disk_sequence(number: int) -> bytes | None:
    """The identity of the present binding; None before Linux 5.15 or without such a device."""
    return _read(f"{BLOCK}/loop{number}/diskseq")


def backing_name(number: int) -> str | None:
    """The path of the backing file, without the mark of a deleted one; None if not bound."""
    content = _read(f"{BLOCK}/loop{number}/loop/backing_file")
    return None if content is None else os.fsdecode(content[:-1]).removesuffix(DELETED)


def part_of_file(number: int) -> tuple[int, int] | None:
    """Offset and size limit (0: none) in bytes; None if not bound."""
    offset, limit = (_read(f"{BLOCK}/loop{number}/loop/{name}") for name in ("offset", "sizelimit"))
    return None if offset is None or limit is None else (int(offset), int(limit))


def uses_direct_io(number: int) -> bool:
    return _read(f"{BLOCK}/loop{number}/loop/dio") == b"1\n"


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096)
    except OSError as error:
        # ENODEV: removed between open and read; ENAMETOOLONG: a path that fills the page
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
            return None
        raise
