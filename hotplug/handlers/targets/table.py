"""Which module attaches which kind of disk.

The toolstack names the kind by the script it runs (``block-iscsi``); xend, and administrators
with ``type=`` in the store, by the backend's ``type`` while the script is plain ``block``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Protocol, cast

from hotplug.errors import HotplugError
from hotplug.handlers.targets import file, phy

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach, dummy, helper, iscsi, nbd, tap
    from hotplug.ports import Attachment, FileId, Host, Located

# The kind of a disk, and the module for it.
MODULES = {
    "dummy": "dummy",
    "enbd": "nbd",
    "iscsi": "iscsi",
    "nbd": "nbd",
    "tap": "tap",
}


class Target(Protocol):
    """What a module for a kind of disk offers. ``helper`` is one too."""

    def prepare(self, host: Host, disk: Disk, event: Event, resources: ExitStack, /) -> Attach: ...

    def detach(self, host: Host, device: Device, attachment: Attachment, /) -> None: ...

    def detach_unrecorded(self, host: Host, disk: Disk, event: Event, /) -> None:
        """For what the journal does not know: attached by stock before we were installed."""
        ...


if TYPE_CHECKING:
    CHECKED: tuple[Target, ...] = (dummy, helper, iscsi, nbd, tap)


def target(name: str) -> Target:
    """A module for a kind of disk; who attaches files only shall not pay for all of them."""
    return cast("Target", importlib.import_module(f"hotplug.handlers.targets.{name}"))


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:
    """Find out what kind of disk this is and open it."""
    suffix = script_suffix(event)
    if suffix:
        return target(MODULES[suffix]).prepare(host, disk, event, resources)

    located = locate(host, disk, event, resources)
    if located is not None and located.is_block_device:
        return phy.prepare(host, disk, located)
    if located is not None and located.is_file:
        return file.prepare(host, disk, located, resources)
    if disk.type in MODULES:
        return target(MODULES[disk.type]).prepare(host, disk, event, resources)
    if has_helper(host, disk):
        return target("helper").prepare(host, disk, event, resources)
    if located is None:
        raise HotplugError(f"{disk.params} does not exist.")
    raise HotplugError(f"{disk.params} is neither a block device nor a regular file.")


def has_helper(host: Host, disk: Disk) -> bool:
    """Whether somebody has installed a program for this kind of disk."""
    from hotplug.handlers.targets import helper  # noqa: PLC0415 - as for ``target``

    return helper.path(host, disk.type) is not None


def is_in_place(host: Host, disk: Disk, event: Event) -> bool:
    """Whether the loop device that a backend names is still the one that it was given.

    True for all other disks: there is nothing to tell it by.
    """
    if disk.node is None:
        return True
    with contextlib.ExitStack() as resources:

        def backing() -> FileId | None:
            with contextlib.suppress(HotplugError):
                located = locate(host, disk, event, resources)
                return located.file_id if located is not None else None
            return None

        return file.is_in_place(host, disk, backing)


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Take back what the journal has."""
    if attachment.target == "file":
        file.detach(host, device, attachment)
    else:
        target(attachment.target).detach(host, device, attachment)


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:
    """Take back what stock scripts, or nobody, attached for this backend."""
    kind = script_suffix(event) or (disk.type if disk.node is None else "")
    if kind in MODULES:
        target(MODULES[kind]).detach_unrecorded(host, disk, event)
    elif disk.node is not None:
        file.detach_unrecorded(host, disk, event)
    elif disk.physical_device is not None and disk.type != "phy":
        target("helper").detach_unrecorded(host, disk, event)


def script_suffix(event: Event) -> str:
    """``iscsi`` for /etc/xen/scripts/block-iscsi, "" for block."""
    return os.path.basename(event.script).partition("-")[2]


def locate(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Located | None:
    """What ``params`` leads to, or None.

    A relative name is a file in the caller's working directory, or else a device below /dev,
    as xl documents it; never a device somewhere else.
    """
    host.deadline.stage(f"looking for {disk.params}")
    if disk.params.startswith("/"):
        return find(host, disk.params, resources)
    here = find(host, os.path.join(event.cwd, disk.params), resources)
    if here is not None and here.is_file:
        return here
    there = find(host, f"/dev/{disk.params}", resources)
    if there is None and here is not None and here.is_block_device:
        raise HotplugError(f"/dev/{disk.params} does not exist.")
    return there or here


def find(host: Host, path: str, resources: ExitStack) -> Located | None:
    try:
        return resources.enter_context(host.paths.locate(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HotplugError(f"{path} cannot be looked at: {error.strerror}") from error
