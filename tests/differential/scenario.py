"""What a scenario is: a host and what is done on it, as values.

Nothing here touches a host. ``world.py`` builds one from a scenario, ``draw.py`` makes scenarios
up. Names are bytes, as the kernel has them; whatever refers to an entry, a guest or a disk does
so by its index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    name: bytes
    size: int = 65536
    permissions: int = 0o644
    sealed: bool = False  # immutable: not even root may write to it


@dataclass(frozen=True, slots=True)
class Device:
    """A block device: a node for a loop device that somebody attached before."""

    name: bytes
    over: int | None = None  # the file that it is over; None: one of its own
    offset: int = 0  # bytes
    mounted: str = ""  # "ro" or "rw": a file system on it is mounted on this host


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    name: bytes
    to: int | None = None  # None: dangling
    absolute: bool = True


@dataclass(frozen=True, slots=True)
class HardLink:
    """A second name of an earlier file, or a file if there is none."""

    name: bytes
    to: int = 0


@dataclass(frozen=True, slots=True)
class Odd:
    """Something that is no disk."""

    name: bytes
    kind: str = "directory"  # or "character", "fifo"


Entry: TypeAlias = File | Device | Link | HardLink | Odd


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain; its domid is its index and one more."""

    vm: str | None = "/vm/a"  # None: being torn down
    target: int | None = None  # domid of the domain that this stubdomain serves


@dataclass(frozen=True, slots=True)
class Named:
    """``params`` that name an entry."""

    entry: int = 0
    spelling: str = "plain"  # see SPELLINGS


# relative: to the folder; slashes: /tmp/folder//.//f; slash: with one at the end; node: /dev/loop7,
# dev: loop7 (both only for devices).
SPELLINGS = ("plain", "relative", "slashes", "slash", "node", "dev")


@dataclass(frozen=True, slots=True)
class Literal:
    """``params`` as they stand; None: no such key."""

    value: bytes | None


@dataclass(frozen=True, slots=True)
class Holding:
    """``physical-device`` that is there from the start: the number of a device entry."""

    entry: int = 0
    prefix: bytes = b""  # to make it a number that only looks similar
    suffix: bytes = b""


@dataclass(frozen=True, slots=True)
class Disk:
    """A block backend."""

    params: Named | Literal = Named()
    mode: bytes | None = b"w"
    guest: int = 0
    type: bytes | None = b"phy"
    state: bytes | None = b"2"
    kind: str = "vbd"
    frontend: bool = True  # whether there is a frontend-id
    holding: Holding | None = None
    status: bytes | None = None  # hotplug-status from the start
    error: bytes | None = None  # a hotplug-error of an earlier run


@dataclass(frozen=True, slots=True)
class Add:
    """Run the script for ``add``."""

    disk: int
    inside: bool = False  # the caller's working directory is the folder
    bare: str = ""  # a variable that the caller did not set


@dataclass(frozen=True, slots=True)
class Remove:
    """Close the device as libxl does, and run the script for ``remove``."""

    disk: int


@dataclass(frozen=True, slots=True)
class Inherit:
    """The disk is attached as a run of stock had left it before ours was installed."""

    disk: int


@dataclass(frozen=True, slots=True)
class Delete:
    """The toolstack deletes the device's nodes."""

    disk: int


@dataclass(frozen=True, slots=True)
class Create:
    """The toolstack writes the device's nodes, anew if they were there."""

    disk: int


@dataclass(frozen=True, slots=True)
class Write:
    """Somebody writes a key of the backend, or deletes it."""

    disk: int
    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Unlink:
    """An entry's name goes away."""

    entry: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Something else comes to have an entry's name; it is moved aside."""

    entry: int
    by: str = "file"  # or "directory", "link" (to another file), "device"


@dataclass(frozen=True, slots=True)
class Reuse:
    """The loop device that a backend names, free by now, is bound to another file."""

    disk: int


@dataclass(frozen=True, slots=True)
class SetVm:
    """A guest's ``vm`` changes."""

    guest: int
    vm: str | None


Operation: TypeAlias = (
    Add | Remove | Inherit | Delete | Create | Write | Unlink | Replace | Reuse | SetVm
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host and what happens on it."""

    entries: tuple[Entry, ...]
    guests: tuple[Guest, ...]
    disks: tuple[Disk, ...]
    operations: tuple[Operation, ...]
