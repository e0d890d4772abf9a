"""What handlers need from the outside, as protocols: the kernel, the store, the clock.

The real implementations live in ``kernel/``, ``xenstore/`` and ``agent/``; fakes for unit tests
in ``tests/fakes.py``. Both are held to the same contract tests. Every operation raises OSError
with the object's name when the system refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from hotplug.config import Config
    from hotplug.events import Device, Known
    from hotplug.nbd import Nbd
    from hotplug.network import Firewall, Links, Switch

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Number:
    """A block device number."""

    major: int
    minor: int

    def __str__(self) -> str:
        """As ``physical-device`` spells it: lowercase hexadecimal, no leading zeros."""
        return f"{self.major:x}:{self.minor:x}"


@dataclass(frozen=True, slots=True)
class FileId:
    """A file's identity, whatever it is called: filesystem device (``st_dev``) and inode."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop device and what it is bound to (LOOP_GET_STATUS64)."""

    number: int  # N of /dev/loopN
    device_number: Number  # 7:N, or 7:(N << part_shift) where loop's max_part is set
    backing: FileId
    offset: int  # bytes
    size_limit: int  # bytes, 0: to the end of the file
    read_only: bool
    autoclear: bool  # the kernel unbinds it at the last close
    reference: bytes  # lo_file_name: at most 63 bytes that whoever bound it chose

    @property
    def path(self) -> str:
        return f"/dev/loop{self.number}"


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How a file is to be bound to a loop device."""

    read_only: bool = False
    direct_io: bool = False
    block_size: int = 0  # bytes; 0 leaves the kernel's choice


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo whose source is a block device."""

    number: Number
    read_only: bool


@dataclass(frozen=True, slots=True)
class Write:
    """One change of a transaction; ``value`` None removes the node."""

    path: str
    value: bytes | None


class Snapshot(Protocol):
    """The store inside a transaction: what is read here cannot have changed at the commit."""

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]: ...

    def directory(self, path: str) -> list[str] | None: ...

    def apply(self, changes: Sequence[Write]) -> None: ...

    def read_and_apply(self, paths: Sequence[str], changes: Sequence[Write]) -> list[bytes | None]:
        """Both in one round trip; the changes count only if the body returns normally."""
        ...


class Begun(Protocol):
    """A transaction that the store was asked for ahead of its use."""

    def stage(self, body: Callable[[Snapshot], T]) -> T:
        """Run ``body``; its changes are seen by nobody until ``run`` is called with it."""
        ...

    def give_up(self) -> None:
        """End it in place of its owner, who hangs elsewhere. For another thread."""
        ...

    def run(self, body: Callable[[Snapshot], T]) -> T:
        """Run ``body`` until its commit succeeds, as ``Store.transaction`` does."""
        ...


class Store(Protocol):
    """xenstore. None is absent, b"" is empty, PermissionError is forbidden."""

    def read(self, path: str) -> bytes | None: ...

    def read_many(
        self, paths: Sequence[str], *, forbidden_is_absent: bool = False
    ) -> list[bytes | None]:
        """All values in one round trip."""
        ...

    def directory(self, path: str) -> list[str] | None: ...

    def survey(
        self, directories: Sequence[str], nodes: Sequence[str]
    ) -> tuple[list[list[str] | PermissionError | None], list[bytes | PermissionError | None]]:
        """Lists of children and values in one round trip; a refusal is a value in its place."""
        ...

    def write(self, path: str, value: bytes) -> None: ...

    def remove(self, path: str) -> None:
        """Delete a node and all below it; an absent one is fine."""
        ...

    def transaction(self, body: Callable[[Snapshot], T]) -> T:
        """Run ``body`` until its commit succeeds; an exception in it aborts."""
        ...

    def begin(self, *, with_next: bool = False) -> AbstractContextManager[Begun]:
        """Ask for a transaction and do not wait: that spares a round trip if more is done first.

        ``with_next``: in one piece with the next request, which takes no longer.

        It is over when this is left, used or not.
        """
        ...


class Loops(Protocol):
    """Loop devices."""

    def attach(self, backing: BinaryIO, options: LoopOptions, reference: bytes) -> Loop:
        """Bind an open file to a free loop device. OSError if the kernel will not."""
        ...

    def get(self, number: int) -> Loop | None:
        """What a loop device is bound to; None if it is free or does not exist."""
        ...

    def is_still(self, loop: Loop) -> bool:
        """Whether a loop device is bound as it was: to the same file, for whom it was."""
        ...

    def below(self, device: Number) -> Loop | None:
        """The loop device that this is, or is a partition of. It answers soon, or OSError."""
        ...

    def detach(self, number: int, *, only_if: Callable[[Loop], bool]) -> bool:
        """Unbind a loop device if it is still the one meant; False if it is not.

        A device that is open is unbound by the kernel at its last close.
        """
        ...

    def all(self) -> Iterable[Loop]: ...

    def backing_name(self, number: int) -> str | None:
        """The path of the file behind a loop device, as sysfs has it, without " (deleted)"."""
        ...

    def bound_to(self, backing: FileId, *, but: int | None = None) -> Sequence[Loop]:
        """Every loop device bound to this file, whoever bound it; no scan in the agent.

        ``but`` is the number of one that need not be asked.
        """
        ...


class Located(Protocol):
    """A path as it was when we looked: an open descriptor, so that it cannot change under us."""

    path: str  # as it was asked for
    real_path: str  # every link followed

    @property
    def is_link(self) -> bool: ...

    @property
    def is_file(self) -> bool: ...

    @property
    def is_block_device(self) -> bool: ...

    @property
    def number(self) -> Number:
        """Of a block device."""
        ...

    @property
    def file_id(self) -> FileId: ...

    @property
    def has_write_bit(self) -> bool:
        """Whether the permissions let anybody write."""
        ...

    def open(self, *, writable: bool) -> BinaryIO:
        """Open the very file that was found. OSError if this access is refused."""
        ...

    def still_there(self) -> bool:
        """Whether the path still leads to what was found."""
        ...


class Paths(Protocol):
    """The file system's names."""

    def locate(self, path: str) -> AbstractContextManager[Located]:
        """Find a path without opening what it leads to. OSError if there is nothing."""
        ...


class Mounts(Protocol):
    """What is mounted on this host."""

    def of(self, number: Number) -> Sequence[Mount]: ...


@dataclass(frozen=True, slots=True)
class Holder:
    """A backend in the store, as far as sharing is concerned."""

    device: Device
    number: bytes  # the text of physical-device
    mode: bytes  # b"" if absent
    params: bytes  # b"" if absent


class Holders(Protocol):
    """Which backends hold which device: an index over the store."""

    def read_along(self, mine: Device, paths: Sequence[str]) -> list[bytes | None]:
        """The values of nodes; what is to be taken in anyway comes with them, but for one's own."""
        ...

    def refresh(self, mine: Device | None = None, *, asked: bool = False) -> None:
        """Take in all that was committed to the store before this call, but for one's own.

        With ``asked``: before the store was last asked for something.
        """
        ...

    def of(self, number: Number) -> Sequence[Holder]: ...  # backends of any kind

    def with_params(self, kind: str, matches: Callable[[bytes], bool]) -> Sequence[Holder]: ...

    def hidden(self) -> Sequence[str]:
        """Backends, guests (``backend/vbd/5``) and kinds that we may not read."""
        ...


@dataclass(frozen=True, slots=True)
class Attachment:
    """What was attached for a device, as the journal keeps it."""

    target: str  # the module that can detach it: file, iscsi, nbd, tap, dummy, helper
    facts: Mapping[str, str | int]


class Entry(Protocol):
    """A device's line in the journal, held by us alone until the claim ends."""

    @property
    def attachment(self) -> Attachment | None: ...

    def record(self, attachment: Attachment) -> None: ...

    def clear(self) -> None: ...


class Journal(Protocol):
    """What was attached for whom. It outlives the process, so that nothing leaks."""

    def claim(self, device: Device, deadline: Deadline) -> AbstractContextManager[Entry]:
        """Wait for our turn with this device, across processes, then hold it."""
        ...

    # These do not wait: try_claim is None where somebody is at work, knows does not care.
    def try_claim(self, device: Device) -> AbstractContextManager[Entry] | None: ...
    def devices(self) -> Sequence[Device]: ...
    def knows(self, device: Device) -> bool: ...

    def peek(self, device: Device) -> Attachment | None:
        """What an entry says, without claiming it: for listings."""
        ...


class Locks(Protocol):
    """The lock files that the stock scripts use, under the same protocol."""

    def hold(self, name: str, deadline: Deadline) -> AbstractContextManager[None]:
        """LockTimeoutError names the lock and its holder if the wait takes too long."""
        ...

    def sweep(self, names: Iterable[str]) -> None:
        """Remove the files of locks that nobody holds any more."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ran to its end."""

    status: int  # exit status, negative: the signal that ended it
    stdout: bytes
    stderr: bytes


class Programs(Protocol):
    """Programs of others: iscsiadm, tap-ctl, nbd-client, block-* helpers."""

    def run(
        self, argv: Sequence[str], deadline: Deadline, variables: Mapping[str, str] | None = None
    ) -> Finished:
        """Run to the end; kill its whole process group at the deadline (DeadlineError).

        The environment is the stock scripts': LANG=POSIX, no LC_*, a PATH with the sbin
        directories, plus ``variables``. FileNotFoundError if there is no such program.
        """
        ...


class Deadline(Protocol):
    """How long an event may take, and whether somebody still waits for it."""

    def check(self) -> None:
        """DeadlineError when time is up, AbandonedError when nobody waits any more."""
        ...

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        ...

    def stage(self, what: str) -> None:
        """Say what is being done now, e.g. "opening /srv/a.img", for the text if time runs out."""
        ...

    def hold(self, let_go: Callable[[], object]) -> None:
        """What is to be called when time is up and we hang."""
        ...

    def committing(self) -> AbstractContextManager[None]:
        """The last check; inside, the event cannot be given up."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """Everything a handler may touch."""

    store: Store
    loops: Loops
    paths: Paths
    mounts: Mounts
    holders: Holders
    journal: Journal
    locks: Locks
    programs: Programs
    nbd: Nbd
    links: Links
    firewall: Firewall
    switch: Switch
    config: Config
    deadline: Deadline
    instance: str  # marks our loop devices: two agents with two stores must not mix them up
    note: Callable[[str], object]  # what is worth a line in the log, and no failure
    ahead: Callable[[Device], Known | None] = lambda _: None
    known: Known | None = None  # what ``ahead`` had for the backend of the event
