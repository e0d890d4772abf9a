"""The loop driver's ioctls, each as a function: Python types in, OSError with a name out.

True in the kernel and not obvious (drivers/block/loop.c; versions are Linux's):

- LOOP_CTL_GET_FREE names a device and reserves nothing. It names the lowest one whose state is
  "unbound", again and again, also while another thread is inside LOOP_CONFIGURE on it.
- lo_device and lo_inode are not kept, LOOP_GET_STATUS64 asks the file system each time
  (vfs_getattr). They are what stat() tells, in the same encoding, also for btrfs and overlay.
- LOOP_CLR_FD unbinds at once only if nobody else has the device open (5.8-6.10), or always at the
  last close (since 6.11). So an open descriptor on which LOOP_GET_STATUS64 has succeeded pins the
  binding: whoever unbinds the device now only marks it, until we close.
- The event that says "unbound" is sent by that last close, before close() returns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from fcntl import ioctl
from typing import TYPE_CHECKING

from hotplug.kernel import loop_sysfs
from hotplug.kernel.loop_abi import (
    BLKGETDISKSEQ,
    BLKSSZGET,
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_READ_ONLY,
    LOOP_CLR_FD,
    LOOP_CONFIG,
    LOOP_CONFIGURE,
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64,
    LOOP_INFO64,
    LOOP_MAJOR,
)
from hotplug.ports import FileId, Loop, Number

if TYPE_CHECKING:
    from typing import BinaryIO

    from hotplug.ports import LoopOptions

CONTROL = "/dev/loop-control"
RUNDOWN_WAIT = 0.5  # seconds for a device to be unbound; longer on a dead file system only
NODE_WAIT = 2.0  # seconds for /dev/loopN to appear where udev or mdev makes the nodes
NO_DEVICE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)  # from opening /dev/loopN


def status(device: BinaryIO) -> Loop | None:
    """What an open loop device is bound to; None if it is free."""
    try:
        raw = ioctl(device, LOOP_GET_STATUS64, bytes(LOOP_INFO64.size))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        error.filename = device.name
        raise
    info = LOOP_INFO64.unpack(raw)
    dev, inode, _, offset, limit, number, _, _, flags, name = info[:10]
    rdev = os.fstat(device.fileno()).st_rdev
    return Loop(
        number=number,
        device_number=Number(os.major(rdev), os.minor(rdev)),
        backing=FileId(dev, inode),
        offset=offset,
        size_limit=limit,
        read_only=bool(flags & LO_FLAGS_READ_ONLY),
        autoclear=bool(flags & LO_FLAGS_AUTOCLEAR),
        reference=name.partition(b"\0")[0],
    )


def disk_sequence(device: BinaryIO) -> bytes | None:
    """As sysfs spells it, and a twentieth of the time; None before Linux 5.15."""
    try:
        raw = ioctl(device, BLKGETDISKSEQ, bytes(8))
    except OSError:
        return None
    return b"%d\n" % int.from_bytes(raw, sys.byteorder)


def get(number: int) -> Loop | None:
    """What a loop device is bound to; None if it is free or does not exist."""
    try:
        with open_bound(number) as device:
            return status(device)
    except OSError as error:
        if error.errno not in NO_DEVICE or loop_sysfs.is_bound(number):
            raise
        return None


def open_bound(number: int) -> BinaryIO:
    """Open a loop device to look at it.

    While the last close unbinds it, it cannot be opened (ENXIO) and still counts as bound; then
    it is free, or somebody else's. So we wait for that, which takes milliseconds.
    """
    until = time.monotonic() + RUNDOWN_WAIT
    while True:
        try:
            return open(f"/dev/loop{number}", "rb", buffering=0)
        except OSError as error:
            settled = error.errno != errno.ENXIO or not loop_sysfs.is_bound(number)
            if settled or time.monotonic() > until:
                raise
        time.sleep(0.001)


def open_node(number: int) -> BinaryIO:
    """Open a loop device that the kernel has just named.

    devtmpfs has the node before the kernel answers, elsewhere udev or mdev makes it afterwards.
    """
    path = f"/dev/loop{number}"
    until = time.monotonic() + NODE_WAIT
    while True:
        try:
            device = open(path, "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
        except FileNotFoundError as error:
            if not loop_sysfs.exists(number):
                raise  # removed again: a lost race
            if time.monotonic() > until:
                raise OSError(
                    errno.ETIMEDOUT, f"the device node did not appear within {NODE_WAIT:g} s", path
                ) from error
            time.sleep(0.005)
        else:
            break
    mode = os.fstat(device.fileno())
    if stat.S_ISBLK(mode.st_mode) and os.major(mode.st_rdev) == LOOP_MAJOR:
        return device
    device.close()
    raise OSError(errno.EINVAL, "is not a loop device", path)


def free_number() -> int:
    """The loop device that the kernel names as free; it makes one if there is none."""
    try:
        with open(CONTROL, "rb", buffering=0) as control:
            return ioctl(control, LOOP_CTL_GET_FREE)
    except OSError as error:
        error.filename = CONTROL
        raise


def other_number(avoid: set[int]) -> int:
    """A free loop device besides some, or a new one: for when the kernel's choice is stuck."""
    numbers = loop_sysfs.numbers()
    for number in sorted(set(numbers) - avoid):
        if not loop_sysfs.is_bound(number):
            return number
    number = max(numbers, default=-1) + 1
    with open(CONTROL, "rb", buffering=0) as control, contextlib.suppress(FileExistsError):
        ioctl(control, LOOP_CTL_ADD, number)
    return number


def configure(device: BinaryIO, backing: BinaryIO, options: LoopOptions, reference: bytes) -> None:
    """Bind a loop device, in one step."""
    flags = LO_FLAGS_READ_ONLY if options.read_only else 0
    if options.direct_io:
        flags |= LO_FLAGS_DIRECT_IO
    config = LOOP_CONFIG.pack(backing.fileno(), options.block_size, flags, reference)
    ioctl(device, LOOP_CONFIGURE, config)  # as bytes: so ioctl() lets other threads run


def unbind(device: BinaryIO) -> bool:
    """Unbind an open loop device, now or at the last close; False if it was free."""
    try:
        ioctl(device, LOOP_CLR_FD)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        error.filename = device.name
        raise
    return True


def logical_block_size(device: BinaryIO) -> int:
    return int.from_bytes(ioctl(device, BLKSSZGET, bytes(4)), sys.byteorder)
