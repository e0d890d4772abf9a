"""Disks ``dummy:<file>``: a file on a loop device, by the script that shows how to write one.

Stock's block-dummy knows no sharing check, no lock and no second add; as a file among files it
has them all here. In the journal it is a file.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.targets import file

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Attachment, Host


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:
    """Find the file that ``params`` names after the colon."""
    path = os.path.join(event.cwd, file_of(disk.params))
    host.deadline.stage(f"looking for {path}")
    try:
        located = resources.enter_context(host.paths.locate(path))
    except OSError:
        located = None
    if located is None or not located.is_file:
        raise HotplugError(f"{path} does not exist.")  # as a regular file, stock means
    return file.prepare(host, disk, located, resources)


def file_of(params: str) -> str:
    kind, _, path = params.partition(":")
    if not kind or not path:
        raise HotplugError("Cannot parse required parameters")
    if kind != "dummy":
        raise HotplugError(f"Invalid type: {kind}")
    return path


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Unbind the loop device."""
    file.detach(host, device, attachment)


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:
    """Unbind what the stock script attached before we were installed."""
    path = os.path.join(event.cwd, disk.params.partition(":")[2])
    file.detach_unrecorded(host, replace(disk, params=path), event)
