"""Disks that are block devices of this host: nothing to attach, only a number to tell.

``physical-device-path`` is what the administrator wrote, or, if that is a symbolic link, its
final target. The number comes from a descriptor that stays open until the guest has it, so that
the path cannot come to mean another device in between.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.disk import Mode
from hotplug.handlers.sharing import refuse_device, refuse_other_loops
from hotplug.handlers.targets import Attached

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Device
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Attachment, Entry, Host, Located, Loop


def prepare(host: Host, disk: Disk, located: Located) -> Attach:
    """Offer a block device that was found under ``located``."""
    path = located.real_path if located.is_link else located.path
    number = located.number
    loop: Loop | None = None

    def verify() -> None:
        if not located.still_there():
            raise HotplugError(f"{located.path} was replaced while it was being attached")

    def refuse_sharing() -> None:
        refuse_device(host, disk.device, disk.frontend, path, number, disk.mode)
        if loop is not None:
            refuse_other_loops(host, disk.device, disk.frontend, path, loop, disk.mode)

    def attach(entry: Entry, undo: ExitStack) -> Attached:  # noqa: ARG001 - nothing is attached
        nonlocal loop
        verify()
        if disk.mode is not Mode.FORCED:
            host.deadline.stage(f"asking {path} for its file")
            loop = host.loops.below(number)
        return Attached(device_keys(path, str(number)), refuse_sharing, verify)

    return attach


def device_keys(path: str, number: str) -> dict[str, bytes]:
    """What blkback (the number) and libxl (the path, for qemu) read."""
    return {"physical-device": number.encode(), "physical-device-path": os.fsencode(path)}


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Nothing was attached, so there is nothing to take back."""
