"""Which module attaches which kind of disk.

The toolstack names the kind by the script it runs (``block-iscsi``); xend, and administrators
with ``type=`` in the store, by the backend's ``type`` while the script is plain ``block``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.targets import dummy, file, helper, iscsi, nbd, phy, tap

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Attachment, Host, Located

PREPARE: dict[str, Callable[[Host, Disk, Event, ExitStack], Attach]] = {
    "dummy": dummy.prepare,
    "enbd": nbd.refuse_enbd,
    "iscsi": iscsi.prepare,
    "nbd": nbd.prepare,
    "tap": tap.prepare,
}

DETACH: dict[str, Callable[[Host, Device, Attachment], None]] = {
    "file": file.detach,
    "helper": helper.detach,
    "iscsi": iscsi.detach,
    "nbd": nbd.detach,
    "tap": tap.detach,
}

# Remove for what the journal does not know: attached by stock before we were installed. Stock's
# block-nbd and block-enbd never attached anything.
DETACH_UNRECORDED: dict[str, Callable[[Host, Disk, Event], None]] = {
    "": file.detach_unrecorded,
    "dummy": dummy.detach_unrecorded,
    "iscsi": iscsi.detach_unrecorded,
    "tap": tap.detach_unrecorded,
}


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:
    """Find out what kind of disk this is and open it."""
    suffix = script_suffix(event)
    if suffix:
        return PREPARE[suffix](host, disk, event, resources)

    located = locate(host, disk, event, resources)
    if located is not None and located.is_block_device:
        return phy.prepare(host, disk, located)
    if located is not None and located.is_file:
        return file.prepare(host, disk, located, resources)
    if disk.type in PREPARE:
        return PREPARE[disk.type](host, disk, event, resources)
    if helper.path(host, disk.type) is not None:
        return helper.prepare(host, disk, event, resources)
    if located is None:
        raise HotplugError(f"{disk.params} does not exist.")
    raise HotplugError(f"{disk.params} is neither a block device nor a regular file.")


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:
    """Take back what stock scripts, or nobody, attached for this backend."""
    suffix = script_suffix(event) or (disk.type if disk.node is None else "")
    known = DETACH_UNRECORDED.get(suffix)
    if known is not None:
        known(host, disk, event)
    elif disk.node is not None:
        file.detach_unrecorded(host, disk, event)
    elif suffix not in PREPARE:
        helper.detach_unrecorded(host, disk, event)


def script_suffix(event: Event) -> str:
    """``iscsi`` for /etc/xen/scripts/block-iscsi, "" for block."""
    return os.path.basename(event.script).partition("-")[2]


def locate(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Located | None:
    """What ``params`` leads to, or None.

    A relative name is a file in the caller's working directory, or else a device below /dev,
    as xl documents it.
    """
    host.deadline.stage(f"looking for {disk.params}")
    if disk.params.startswith("/"):
        return find(host, disk.params, resources)
    here = find(host, os.path.join(event.cwd, disk.params), resources)
    if here is not None and here.is_file:
        return here
    return find(host, f"/dev/{disk.params}", resources) or here


def find(host: Host, path: str, resources: ExitStack) -> Located | None:
    try:
        return resources.enter_context(host.paths.locate(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HotplugError(f"{path} cannot be looked at: {error.strerror}") from error
