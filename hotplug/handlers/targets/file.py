"""Disks that are files: each gets a loop device of its own.

The file is opened once; its permissions, its identity and the loop device all come from that
descriptor, so that nothing can be slipped in between check and use. The loop device carries a
reference (lo_file_name) that names the backend, and the journal knows it before it exists.
Whether it is still ours is decided by reference and file identity, never by a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from hotplug.errors import DeviceBusyError, HotplugError
from hotplug.handlers.disk import Mode
from hotplug.handlers.sharing import mark, reference, refuse_file
from hotplug.handlers.targets import Attached
from hotplug.handlers.targets.phy import device_keys
from hotplug.ports import Attachment, FileId, LoopOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import BinaryIO

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Entry, Host, Located, Loop

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)  # from opening to write


def prepare(host: Host, disk: Disk, located: Located, resources: ExitStack) -> Attach:
    """Open the file that was found under ``located`` with the access that the mode needs."""
    path, file_id = located.real_path, located.file_id
    backing = open_backing(host, disk.mode, located)
    resources.callback(close, backing)

    def attach(entry: Entry, undo: ExitStack) -> Attached:
        loop = half_done(host, disk, path, file_id, entry) or attach_loop(
            host, disk, backing, path, file_id, entry, undo
        )
        refuse_replaced(located)

        def refuse_sharing() -> None:
            refuse_file(host, disk.device, disk.frontend, path, loop, disk.mode)

        def verify() -> None:
            host.deadline.stage(f"looking at {path} once more")
            if not host.loops.is_still(loop):
                raise HotplugError(f"{loop.path} was taken away while {path} was being attached")
            refuse_replaced(located)

        keys = device_keys(loop.path, str(loop.device_number))
        return Attached({"node": loop.path.encode(), **keys}, refuse_sharing, verify)

    return attach


def refuse_replaced(located: Located) -> None:
    """What we opened must still be what the path says. This may hang: not under a lock."""
    if not located.still_there():
        raise HotplugError(f"{located.path} was replaced while it was being attached")


def half_done(host: Host, disk: Disk, path: str, file_id: FileId, entry: Entry) -> Loop | None:
    """The loop device that a stock run attached and told the guest before it died.

    The journal takes it over. It stays there if we fail, as the keys do: whoever removes the
    backend, or finds it gone, detaches the device.
    """
    if disk.physical_device is None or disk.node is None:
        return None
    number = loop_number(disk.node)
    loop = host.loops.get(number) if number is not None else None
    if loop is None or (loop.backing, str(loop.device_number).encode()) != (
        file_id,
        disk.physical_device,
    ):
        return None
    if loop.reference.startswith(mark(host)):
        return None  # bound for another backend, or for ours and forgotten
    facts = {
        **facts_of(path, file_id),
        "loop": loop.number,
        "reference": os.fsdecode(loop.reference),
    }
    entry.record(Attachment("file", facts))
    return loop


def is_in_place(host: Host, disk: Disk, backing: Callable[[], FileId | None]) -> bool:
    """Whether the loop device of ``node`` is ours, or a stock one that is bound to the file.

    ``backing`` finds out which file that is; None if it is gone, which proves nothing.
    """
    number = loop_number(disk.node or b"")
    if number is None:
        return True
    host.deadline.stage(f"looking at /dev/loop{number}")
    try:
        loop = host.loops.get(number)
    except OSError:
        return True  # a file system that is gone does not unbind the device
    if loop is None or disk.physical_device not in (None, str(loop.device_number).encode()):
        return False
    if loop.reference.startswith(mark(host)):
        return loop.reference == reference(host, disk.device)
    return backing() in (None, loop.backing)


def facts_of(path: str, file_id: FileId) -> dict[str, str | int]:
    """What the journal needs to know a file again."""
    return {"path": path, "device": file_id.device, "inode": file_id.inode}


def loop_number(node: bytes) -> int | None:
    """N of ``/dev/loopN``."""
    number = node.removeprefix(b"/dev/loop")
    return int(number) if number != node and number.isdigit() else None


def open_backing(host: Host, mode: Mode, located: Located) -> BinaryIO:
    """Open the image; a file that must not be written is busy, as stock calls it."""
    refusal = DeviceBusyError(
        f"File {located.real_path} is read-only, and so I will not\n"
        "mount it read-write in a guest domain."
    )
    if mode is Mode.WRITE and not located.has_write_bit:
        raise refusal
    host.deadline.stage(f"opening {located.real_path}")
    try:
        return located.open(writable=mode.writes)
    except OSError as error:
        if mode.writes and error.errno in READ_ONLY:
            raise DeviceBusyError(f"{refusal} ({error.strerror})") from error
        raise HotplugError(f"{located.path} cannot be opened: {error.strerror}") from error


def close(backing: BinaryIO) -> None:
    """A file system may have died meanwhile and say so now; we have written nothing."""
    with contextlib.suppress(OSError):
        backing.close()


def attach_loop(
    host: Host,
    disk: Disk,
    backing: BinaryIO,
    path: str,
    file_id: FileId,
    entry: Entry,
    undo: ExitStack,
    target: str = "file",
) -> Loop:
    """Bind an open file to a loop device, with the journal knowing first."""
    rule = host.config.disk(path)
    options = LoopOptions(
        read_only=not disk.mode.writes, direct_io=rule.direct_io, block_size=rule.block_size
    )
    facts = facts_of(path, file_id)
    entry.record(Attachment(target, facts))
    host.deadline.stage(f"attaching {path} to a loop device")
    try:
        loop = host.loops.attach(backing, options, reference(host, disk.device))
    except OSError as error:
        with contextlib.suppress(OSError):  # there is a failure to tell of already
            entry.clear()
        raise HotplugError(attach_failure(path, error)) from error
    undo.callback(let_go, host, disk.device, file_id, loop.number, entry)
    entry.record(Attachment(target, {**facts, "loop": loop.number}))
    return loop


def let_go(host: Host, device: Device, file_id: FileId, number: int, entry: Entry) -> None:
    """The way back. If it is barred the journal keeps it in mind; the first error is to be told."""
    with contextlib.suppress(OSError):
        detach_loop(host, device, file_id, number)
        entry.clear()


def attach_failure(path: str, error: OSError) -> str:
    """Why there is no loop device for this file."""
    where = error.filename or path
    if error.filename and os.fsdecode(error.filename).startswith("/dev/loop"):
        return f"Failed to find an unused loop device for {path}: {where}: {error.strerror}"
    return f"{path} cannot be attached to a loop device: {error.strerror}"


def is_ours(host: Host, device: Device, file_id: FileId, loop: Loop) -> bool:
    """Whether a loop device is the one that we bound to this file for this backend."""
    return loop.backing == file_id and loop.reference == reference(host, device)


def detach_loop(host: Host, device: Device, file_id: FileId, number: int) -> bool:
    """Unbind a loop device if it is still ours."""
    return host.loops.detach(number, only_if=lambda loop: is_ours(host, device, file_id, loop))


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Unbind what the journal names; a run that died may not have got to noting the number."""
    facts = attachment.facts
    file_id = FileId(int(facts["device"]), int(facts["inode"]))
    host.deadline.stage(f"detaching {facts['path']} from its loop device")
    if "reference" in facts:  # of another's making, see half_done
        theirs = os.fsencode(str(facts["reference"]))
        host.loops.detach(
            int(facts["loop"]),
            only_if=lambda loop: (loop.backing, loop.reference) == (file_id, theirs),
        )
        return
    if "loop" in facts:
        detach_loop(host, device, file_id, int(facts["loop"]))
        return
    for loop in host.loops.all():
        if loop.reference == reference(host, device):
            detach_loop(host, device, file_id, loop.number)


def detach_unrecorded(
    host: Host,
    disk: Disk,
    event: Event,  # noqa: ARG001 - the table's shape
) -> None:
    """Unbind a loop device that the journal does not know.

    It is one of the stock scripts', from before we were installed, or ours if the runtime
    directory was emptied. ``node`` names it. It may have been given to somebody else since, so
    its file must be the one of ``params``: the same file, or the same name if that is gone.
    """
    number = loop_number(disk.node or b"")
    if number is None:
        return
    names, file_id = {disk.params}, None
    with contextlib.suppress(OSError), host.paths.locate(disk.params) as located:
        names.add(located.real_path)
        file_id = located.file_id
    backing_name = host.loops.backing_name(number)

    def is_meant(loop: Loop) -> bool:
        if loop.reference.startswith(mark(host)):
            return loop.reference == reference(host, disk.device)
        return loop.backing == file_id or backing_name in names

    host.loops.detach(number, only_if=is_meant)
