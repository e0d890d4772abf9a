"""Disks on an NBD server: ``nbd:HOST:PORT[/EXPORT]`` or ``nbd:unix:PATH[:EXPORT]``.

The prefix may be missing: xl strips it when it turns ``nbd:`` into ``script=block-nbd``. An IPv6
address is in brackets. Stock's block-nbd waits for arguments that no toolstack has passed since
2005 and cannot attach anything, so nothing of its making is ever to be detached.

ENBD, the Enhanced Network Block Device, was a driver of its own outside the kernel with a protocol
of its own, last seen for Linux 2.6. Its disks are refused: an NBD server is not what they mean.

/dev/nbdN is chosen by us and known to the journal before it is connected. Who else chooses at the
same time is kept off by a lock; nbd-client, which is not, makes the kernel answer EBUSY.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hotplug.errors import DeviceBusyError, HotplugError
from hotplug.handlers.sharing import reference, refuse_device
from hotplug.handlers.targets import Attached, tool, users
from hotplug.handlers.targets.phy import device_keys
from hotplug.nbd import NbdServer
from hotplug.ports import Attachment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.nbd import NbdExport
    from hotplug.ports import Deadline, Entry, Host

LOCK = "nbd"  # held while a device is chosen and connected, or looked at and disconnected
ATTEMPTS = 16  # races lost to nbd-client before we give up
NO_DRIVER = "the kernel has no nbd support (modprobe nbd)"


def parse(params: str) -> NbdServer:
    """Read the address of an export; HotplugError says how it should look."""
    rest = params.removeprefix("nbd:")
    if rest.startswith("unix:"):
        path, _, export = rest.removeprefix("unix:").partition(":")
        if path.startswith("/"):
            return NbdServer("", 0, path, export)
    else:
        if rest.startswith("["):
            host, _, rest = rest[1:].partition("]")
            colon, rest = rest[:1], rest[1:]
        else:
            host, colon, rest = rest.partition(":")
        port, _, export = rest.partition("/")
        if host and colon == ":" and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return NbdServer(host, int(port), "", export)
    raise HotplugError(
        f"Cannot parse required parameters: '{params}' is neither nbd:HOST:PORT[/EXPORT]"
        " nor nbd:unix:PATH[:EXPORT]"
    )


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:
    """Connect to the server and agree on the export; the kernel is not involved yet."""
    refuse_enbd(disk, event)
    server = parse(disk.params)
    refuse_without_driver(host)
    host.deadline.stage(f"asking {server} for its export")
    try:
        export = resources.enter_context(host.nbd.open(server, host.deadline))
    except OSError as error:
        raise HotplugError(f"{server} cannot be used: {error.strerror}") from error
    if export.read_only and disk.mode.writes:
        raise DeviceBusyError(
            f"Export {server} is read-only, and so I will not\n"
            "mount it read-write in a guest domain."
        )

    def attach(entry: Entry, undo: ExitStack) -> Attached:
        grace = tool.Grace(host.deadline)
        undo.callback(tool.undo_quietly, lambda: give_up(host, disk.device, entry, grace))
        with host.locks.hold(LOCK, host.deadline):
            number = connect(host, disk, server, export, entry)
        return offer(host, disk, server, number, resources)

    return attach


def refuse_enbd(disk: Disk, event: Event) -> None:
    if "enbd" in (disk.type, os.path.basename(event.script).removeprefix("block-")):
        raise HotplugError(
            f"{disk.params}: no kernel has an ENBD driver any more;"
            " serve the disk by NBD and say nbd:"
        )


def refuse_without_driver(host: Host) -> None:
    """The driver must be there, loaded if need be."""
    try:
        if host.nbd.available():
            return
        modprobe = ("modprobe", "nbd")
        finished = tool.run(host, host.deadline, modprobe, missing=f"{NO_DRIVER}: no modprobe")
        if finished.status:
            raise tool.failure(NO_DRIVER, finished)
        if host.nbd.available():
            return
    except OSError as error:
        raise HotplugError(f"{NO_DRIVER}: {error.strerror}") from error
    raise HotplugError(NO_DRIVER)


def connect(host: Host, disk: Disk, server: NbdServer, export: NbdExport, entry: Entry) -> int:
    """Hand the connection to the kernel; N of /dev/nbdN."""
    facts: dict[str, str | int] = {"path": str(server), "pid": os.getpid()}
    problem = OSError(errno.EBUSY, "every nbd device is in use")
    for _, number in zip(range(ATTEMPTS), host.nbd.free(), strict=False):
        entry.record(Attachment("nbd", {**facts, "number": number}))
        host.deadline.stage(f"connecting {server} to /dev/nbd{number}")
        try:
            host.nbd.connect(
                number,
                export,
                read_only=not disk.mode.writes,
                reference=reference(host, disk.device).decode(),
            )
        except OSError as error:
            if error.errno is not None:
                entry.clear()  # the kernel said no; without an answer the way back will look
            problem = error
            if error.errno != errno.EBUSY:
                break
        else:
            return number
    raise HotplugError(f"{server} cannot be connected to a device: {problem.strerror or problem}")


def offer(host: Host, disk: Disk, server: NbdServer, number: int, resources: ExitStack) -> Attached:
    path = f"/dev/nbd{number}"
    try:
        located = resources.enter_context(host.paths.locate(path))
        device_number = located.number
    except OSError as error:
        raise HotplugError(f"{path} cannot be used: {error.strerror}") from error

    def refuse_sharing() -> None:
        users.refuse(host, disk, f"Device {server} is mounted ", lambda p: is_same(p, server))
        refuse_device(host, disk.device, disk.frontend, path, device_number, disk.mode)

    def verify() -> None:
        if not is_ours(host, disk.device, number, os.getpid()) or not located.still_there():
            raise HotplugError(f"{path} was taken away while {server} was being attached")

    return Attached(device_keys(path, str(device_number)), refuse_sharing, verify)


def is_same(params: bytes, server: NbdServer) -> bool:
    """Whether another backend's ``params`` mean this export."""
    try:
        return parse(os.fsdecode(params)) == server
    except HotplugError:
        return False  # some other kind of disk


def is_ours(host: Host, device: Device, number: int, pid: int) -> bool:
    """Whether /dev/nbdN is what we connected for this backend.

    Before Linux 5.14 it carries no reference. Then the process that connected it tells; the lock
    keeps any other device of that process from having been meant.
    """
    found = host.nbd.get(number)
    if found is None:
        return False
    if found.reference is None:
        return found.pid == pid
    return found.reference == reference(host, device).decode()


def give_up(host: Host, device: Device, entry: Entry, deadline: Deadline) -> None:
    """Undo a connection."""
    if entry.attachment is not None:
        disconnect(host, device, entry.attachment.facts, deadline)
        entry.clear()


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Disconnect what the journal names, if it is still ours."""
    disconnect(host, device, attachment.facts, host.deadline)


def disconnect(
    host: Host, device: Device, facts: Mapping[str, str | int], deadline: Deadline
) -> None:
    number = int(facts["number"])
    with host.locks.hold(LOCK, deadline):
        if is_ours(host, device, number, int(facts["pid"])):
            deadline.stage(f"disconnecting /dev/nbd{number}")
            try:
                host.nbd.disconnect(number)
            except OSError as error:
                raise HotplugError(
                    f"/dev/nbd{number} cannot be disconnected: {error.strerror}"
                ) from error


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:
    """The stock scripts never attached anything."""
