"""Disks of others: a program ``block-<type>`` in the scripts' folder attaches and detaches them.

The program is run with the single argument ``add`` or ``remove`` and writes the keys itself, as
DRBD's does. Unlike stock we run it before we report success, for ``remove`` as well, and with
``add`` undone if it did not give a device. The lock 'block' is free while it runs: scripts that
use block-common.sh claim it. It must not call our own scripts for the same backend, whose turn
is taken.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import DeviceBusyError, HotplugError
from hotplug.handlers.disk import confirm_waiting
from hotplug.handlers.targets import Attached, tool
from hotplug.ports import Attachment, Write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Deadline, Entry, Finished, Host, Snapshot

OURS_TO_RETRACT = ("physical-device", "physical-device-path", "node")


def path(host: Host, type_: str) -> str | None:
    """The program for a type of disk, if there is one."""
    if not type_ or "/" in type_ or "\0" in type_ or ".." in type_:
        return None
    found = os.path.join(host.config.scripts, f"block-{type_}")
    return found if os.path.isfile(found) and os.access(found, os.X_OK) else None


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:  # noqa: ARG001 - the table's shape
    """Only find the program: what it needs it looks at itself."""
    program = path(host, disk.type)
    if program is None:
        raise HotplugError(f"there is no program block-{disk.type} in {host.config.scripts}")

    def attach(entry: Entry, undo: ExitStack) -> Attached:
        confirm_waiting(host, disk.device)
        grace = tool.Grace(host.deadline)
        entry.record(Attachment("helper", {"path": program}))
        undo.callback(tool.undo_quietly, lambda: give_up(host, disk, event, entry, grace))
        written = add(host, disk, event, program)
        return Attached({}, written=written)

    return attach


def add(host: Host, disk: Disk, event: Event, program: str) -> bytes | None:
    """Run the program; the ``physical-device`` that it wrote."""
    base = disk.device.path
    host.store.remove(f"{base}/hotplug-error")  # what is there afterwards is the program's
    finished = execute(host, host.deadline, program, "add", environment(disk.device, event))
    keys = ("hotplug-error", "hotplug-status", "physical-device", "physical-device-path")
    error, status, number, where = host.store.read_many([f"{base}/{key}" for key in keys])
    if finished.status:
        if not error:
            raise tool.failed((program, "add"), finished)
        kind = DeviceBusyError if status == DeviceBusyError.status.encode() else HotplugError
        raise kind(os.fsdecode(error))
    if number is None and (disk.device.kind != "vbd3" or where is None):
        raise HotplugError(f"{program} add succeeded, but did not write {base}/physical-device")
    return number


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:
    """Run the program for a disk that it attached before we were installed."""
    program = path(host, disk.type)
    if program is not None and disk.physical_device is not None:
        perform(host, host.deadline, program, disk.device, event)


def give_up(host: Host, disk: Disk, event: Event, entry: Entry, deadline: Deadline) -> None:
    """Undo an add: also one that failed, whoever wrote the program may not have cleaned up."""
    attachment = entry.attachment
    if attachment is None:
        return
    perform(host, deadline, str(attachment.facts["path"]), disk.device, event)
    host.store.transaction(lambda store: retract(store, disk))
    entry.clear()


def retract(store: Snapshot, disk: Disk) -> None:
    """Delete the keys of a device that is not there any more."""
    base = disk.device.path
    frontend, number = store.read_many([f"{base}/frontend-id", f"{base}/physical-device"])
    if frontend is not None and number != disk.physical_device:
        store.apply([Write(f"{base}/{key}", None) for key in OURS_TO_RETRACT])


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Run the program that attached the disk, whatever the backend's keys say by now."""
    perform(host, host.deadline, str(attachment.facts["path"]), device, None)


def perform(
    host: Host, deadline: Deadline, program: str, device: Device, event: Event | None
) -> None:
    """Run a program for remove; HotplugError if it fails. A backend that is gone stays gone."""
    finished = execute(host, deadline, program, "remove", environment(device, event))
    host.store.transaction(lambda store: bury(store, device))
    if finished.status:
        raise tool.failed((program, "remove"), finished)


def execute(
    host: Host, deadline: Deadline, program: str, action: str, variables: Mapping[str, str]
) -> Finished:
    missing = f"{program} cannot {action} the disk: it is gone, or the interpreter that it names"
    return tool.run(host, deadline, (program, action), missing=missing, variables=variables)


def environment(device: Device, event: Event | None) -> dict[str, str]:
    """The variables of the toolstack's call, or what they would be."""
    return {
        "XENBUS_PATH": device.path,
        "XENBUS_TYPE": device.kind,
        "XENBUS_BASE_PATH": device.base,
        **(event.variables if event is not None else {}),
    }


def bury(store: Snapshot, device: Device) -> None:
    """Delete what a script wrote to a backend that had been deleted before it did."""
    base = device.path
    keys = ("frontend-id", "state", "params", "hotplug-status", "hotplug-error")
    *living, status, error = store.read_many([f"{base}/{key}" for key in keys])
    if not any(value is not None for value in living) and (status or error):
        store.apply([Write(base, None)])
