"""Loop devices: what handlers want of them.

True in the kernel and not obvious (drivers/block/loop.c; versions are Linux's), besides what
``loop_ioctl`` says:

- LOOP_CONFIGURE can hang on a dead file system before the device counts as bound: since 6.15
  (commit 86947bdc2889) it writes the file back, since 6.18 (commit 47b71abd5846) it asks for the
  file's size. It holds the device's mutex meanwhile, and since 6.11 (commit 18048c1af783) open()
  waits for that mutex. So one such device stops every user of LOOP_CTL_GET_FREE on the host. We
  do the same ourselves before we touch a device, and threads of ours that wait too long for each
  other take another device than the one that the kernel names.
- Options may be dropped silently: LO_FLAGS_DIRECT_IO stays set only if direct I/O is in use, and
  a device becomes read-only if the file was not opened for writing. So everything is read back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from hotplug.kernel import loop_sysfs
from hotplug.kernel.loop_abi import LO_NAME_SIZE
from hotplug.kernel.loop_index import Binding, LoopIndex
from hotplug.kernel.loop_ioctl import (
    CONTROL,
    NO_DEVICE,
    configure,
    disk_sequence,
    free_number,
    get,
    logical_block_size,
    open_bound,
    open_node,
    other_number,
    status,
    unbind,
)
from hotplug.kernel.release import linux
from hotplug.ports import FileId, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import BinaryIO

    from hotplug.ports import LoopOptions, Number

ATTEMPTS = 64  # at free devices
STEP_ASIDE = 8  # lost races in a row: then whoever wins them all is left the devices they were for
PAUSE = 0.02  # seconds, the longest between two attempts
SIBLING_WAIT = 0.1  # seconds that threads of ours wait for each other; a binding takes 1 ms

ANNOUNCES_BINDING = (6, 15)  # commit e7bc0010ceb4; loop_index.py says more
WRITES_BACK = (6, 14)  # commit 86947bdc2889, Linux 6.15, and in 6.14's stable series

LOST_RACE = (errno.EBUSY, *NO_DEVICE)


def check_request(backing: BinaryIO, size: int, options: LoopOptions, reference: bytes) -> None:
    """Refuse what the kernel would cut off without a word."""
    if len(reference) >= LO_NAME_SIZE or b"\0" in reference:
        raise ValueError(f"{reference!r} is no reference: 63 bytes, none of them NUL")
    if options.block_size and size % options.block_size:
        raise OSError(
            errno.EINVAL,
            f"its {size} bytes are not a multiple of the block size {options.block_size},"
            " so the end would be lost",
            backing.name,
        )


def rouse(backing: BinaryIO, device: int) -> None:
    """Ask a file system that may be dead what the kernel is about to ask it.

    If that hangs, we at least hold no loop device. Local file systems, which have a block device
    and so a major number, are spared a second flush of their disk's cache.
    """
    if os.major(device):
        return
    try:
        os.fstatvfs(backing.fileno())
        if linux() >= WRITES_BACK:
            os.fsync(backing)
    except OSError as error:
        error.filename = backing.name
        raise


def check_result(
    device: BinaryIO, loop: Loop | None, backing: BinaryIO, file_id: FileId, options: LoopOptions
) -> Loop:
    """OSError if the kernel did something else than it was asked for."""
    if loop is None or loop.backing != file_id:
        raise OSError(errno.ESTALE, "was given to another file at once", device.name)
    if loop.read_only and not options.read_only:
        raise OSError(errno.EROFS, "a loop device on it cannot be written", backing.name)
    if options.direct_io and not loop_sysfs.uses_direct_io(loop.number):
        raise OSError(
            errno.EOPNOTSUPP,
            "direct I/O is not possible: its file system cannot do it or needs larger blocks",
            backing.name,
        )
    if options.block_size:
        size = logical_block_size(device)
        if size != options.block_size:
            raise OSError(
                errno.EOPNOTSUPP, f"the kernel gave it blocks of {size} bytes", backing.name
            )
    return loop


class KernelLoops:
    """The loop devices of this host.

    ``watch`` keeps an index of them by the kernel's events, for a process that lives long; without
    it each question about a file is a scan. For several threads.
    """

    __slots__ = ("_index", "_mutex", "_overtaking", "_trying", "_turn")

    def __init__(self, *, watch: bool = False) -> None:
        events = None
        if watch:
            from hotplug.kernel.uevents import LoopUevents  # noqa: PLC0415 - socket takes 4 ms

            events = LoopUevents()
        self._index = LoopIndex(get, events, announced=linux() >= ANNOUNCES_BINDING)
        self._turn = threading.Lock()  # may be held by a thread that hangs: waited for briefly
        self._mutex = threading.Lock()
        self._overtaking = False
        self._trying: set[int] = set()

    def attach(self, backing: BinaryIO, options: LoopOptions, reference: bytes) -> Loop:
        """Bind an open file to a free loop device.

        Whoever configures the device that the kernel named first wins, and the others get EBUSY,
        or ENXIO if it was removed instead. So we ask again, a bounded number of times. The kernel
        always names the lowest one, so who binds and unbinds hundreds a second can win them all:
        then we take one that was not fought over.
        """
        found = os.fstat(backing.fileno())
        file_id = FileId(found.st_dev, found.st_ino)
        check_request(backing, found.st_size, options, reference)
        rouse(backing, found.st_dev)
        lost: set[int] = set()
        for attempt in range(ATTEMPTS):
            with self._free_device(lost if attempt >= STEP_ASIDE else ()) as number:
                try:
                    return self._bind(number, backing, file_id, options, reference)
                except OSError as error:
                    if error.errno not in LOST_RACE or error.filename == backing.name:
                        raise
            lost.add(number)
            time.sleep(min(PAUSE, attempt / 1000) * os.urandom(1)[0] / 255)
        raise OSError(errno.EBUSY, f"lost {ATTEMPTS} races for a free loop device", CONTROL)

    def get(self, number: int) -> Loop | None:
        """What a loop device is bound to; None if it is free or does not exist."""
        try:
            return get(number)
        except OSError:
            # A file system that is gone (ENOTCONN, ESTALE, EIO) does not unbind the device.
            if (loop := self._index.current(number)) is not None:
                return loop
            raise

    def is_still(self, loop: Loop) -> bool:
        """Whether a loop device is bound as it was; nobody is asked if we are sure of it."""
        now = self._index.unchanged(loop.number) or self.get(loop.number)
        return now is not None and (now.backing, now.reference) == (loop.backing, loop.reference)

    def below(self, device: Number) -> Loop | None:
        """The loop device that a block device is, or is a partition of."""
        number = loop_sysfs.number_of(device.major, device.minor)
        return self._index.ask(number) if number is not None else None

    def detach(self, number: int, *, only_if: Callable[[Loop], bool]) -> bool:
        """Unbind a loop device if it is still the one meant; False if it is not."""
        try:
            with open_bound(number) as device:
                # First what we are sure of: it spares us asking a file system that may be dead.
                loop = self._index.current(number) or status(device)
                return loop is not None and only_if(loop) and unbind(device)
        except OSError as error:
            if error.errno not in NO_DEVICE or loop_sysfs.is_bound(number):
                raise
            return False

    def all(self) -> Sequence[Loop]:
        """Every bound loop device; those whose file system does not answer only if known."""
        return self._index.all()

    def backing_name(self, number: int) -> str | None:
        """The path of the backing file, as sysfs has it."""
        return loop_sysfs.backing_name(number)

    def bound_to(self, backing: FileId, *, but: int | None = None) -> Sequence[Loop]:
        """Every loop device bound to a file, ``but`` one that the caller knows.

        One that does not answer is missing; ``attach`` makes up for it.
        """
        loops = map(self.get, sorted(self._index.candidates(backing) - {but}))
        return [loop for loop in loops if loop is not None and loop.backing == backing]

    def close(self) -> None:
        """Listen to events no more."""
        self._index.close()

    def _bind(
        self,
        number: int,
        backing: BinaryIO,
        file_id: FileId,
        options: LoopOptions,
        reference: bytes,
    ) -> Loop:
        with self._index.attaching(number, file_id), open_node(number) as device:
            try:
                configure(device, backing, options, reference)
            except OSError as error:
                error.filename = device.name if error.errno in LOST_RACE else backing.name
                raise
            try:
                ticket = self._index.ticket(number)
                sequence = disk_sequence(device)
                loop = check_result(device, status(device), backing, file_id, options)
                self._index.record(number, Binding(loop, sequence), ticket)
                self._check_late(backing, file_id)
            except BaseException:
                unbind(device)
                raise
            return loop

    def _check_late(self, backing: BinaryIO, file_id: FileId) -> None:
        """OSError if ``bound_to`` missed a device because it did not answer at the time."""
        late = self._index.found_too_late(file_id)
        if late is not None:
            raise OSError(
                errno.EBUSY,
                f"it is bound to /dev/loop{late} already, which did not answer before",
                backing.name,
            )

    @contextlib.contextmanager
    def _free_device(self, lost: Collection[int] = ()) -> Iterator[int]:
        """A free loop device, none of ``lost``, that no other thread of ours tries meanwhile.

        One after the other, because the kernel names the same device to all. A thread that hangs
        does not keep the rest waiting: they take other devices, and only the first of them waits.
        """
        my_turn = self._turn.acquire(timeout=0 if self._overtaking else SIBLING_WAIT)
        self._overtaking = not my_turn
        try:
            with self._mutex:
                number = free_number()
                if number in self._trying or number in lost:
                    number = other_number(self._trying.union(lost))
                self._trying.add(number)
            try:
                yield number
            finally:
                with self._mutex:
                    self._trying.discard(number)
        finally:
            if my_turn:
                self._turn.release()
