r"""What is mounted on this host, from /proc/self/mountinfo (proc(5), section mountinfo).

True there and not obvious:

- ``poll`` on the file reports POLLPRI | POLLERR once after each mount, unmount and remount in our
  namespace (mounts_poll in Linux's fs/proc_namespace.c), so the table is parsed only after
  changes. A remount in another namespace or a file system that turned itself read-only is not
  reported: of what looks mounted we read the present state.
- Read-only are the mount and the superblock, each with a word of its own. /proc/mounts, which the
  stock scripts read, shows "ro" if either is. We take the superblock's: while it is read-write the
  device may be written, and a read-only bind mount of it is no protection.
- btrfs, overlay and others show an anonymous device number (major 0); the source then names the
  block device, if there is one. Of a btrfs over several devices it names one only.
- Blanks, tabs, newlines and backslashes are written as \040, \011, \012 and \134.
"""

from __future__ import annotations

import os
import re
import select
import stat
import threading
from typing import TYPE_CHECKING, NamedTuple

from hotplug.ports import Mount, Number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOUNTINFO = "/proc/self/mountinfo"
ESCAPE = re.compile(rb"\\([0-7]{3})")


class Line(NamedTuple):
    """A line of mountinfo, as far as anybody here needs it."""

    number: Number  # of the superblock
    source: bytes
    read_only: bool  # the superblock


def parse(content: bytes) -> Iterator[Line]:
    """Read mountinfo."""
    for line in content.split(b"\n")[:-1]:  # not splitlines(): a name may contain \r
        fields = line.split(b" ")
        _kind, *source, options = fields[fields.index(b"-", 6) + 1 :]  # after the optional fields
        major, _, minor = fields[2].partition(b":")
        yield Line(
            Number(int(major), int(minor)),
            unescape(b" ".join(source)),
            options.partition(b",")[0] == b"ro",
        )


def unescape(field: bytes) -> bytes:
    if b"\\" not in field:
        return field
    return ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def block_device(line: Line) -> Number | None:
    """The block device that is mounted; None if there is none."""
    if line.number.major:
        return line.number
    if not line.source.startswith(b"/dev/"):
        return None
    try:
        status = os.stat(line.source)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return Number(os.major(status.st_rdev), os.minor(status.st_rdev))


def table(content: bytes) -> dict[Number, list[Mount]]:
    """All mounts of block devices."""
    mounts: dict[Number, list[Mount]] = {}
    for line in parse(content):
        number = block_device(line)
        if number is not None:
            mounts.setdefault(number, []).append(Mount(number, line.read_only))
    return mounts


class KernelMounts:
    """The mounts of our namespace. For several threads; a mutex guards nothing that can hang."""

    __slots__ = ("_file", "_mutex", "_poll", "_table")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._file = open(MOUNTINFO, "rb", buffering=0)  # noqa: SIM115 - kept, to be polled
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._table: dict[Number, list[Mount]] | None = None

    def of(self, number: Number) -> Sequence[Mount]:
        """The mounts of a block device."""
        with self._mutex:
            # poll() goes first: it also takes note that we have seen what there is now.
            changed = bool(self._poll.poll(0))
            if changed or self._table is None or number in self._table:
                self._table = self._read()
            return self._table.get(number, ())

    def _read(self) -> dict[Number, list[Mount]]:
        self._file.seek(0)
        return table(self._file.readall())

    def close(self) -> None:
        self._file.close()
