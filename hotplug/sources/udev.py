"""xen-backend uevents, through pyudev: for hosts whose toolstack does not run the scripts.

Linux facts: every xen-backend uevent carries XENBUS_PATH and XENBUS_TYPE
(drivers/xen/xenbus/xenbus_probe_backend.c, backend_uevent). A vbd's ``add`` comes when the
device is registered, in state 1 (Initialising), so the backend may have to be waited for until it
is in state 2. When the socket's buffer overflows, events are lost and pyudev's ``poll`` raises an
OSError, and does so for ever: only a new socket helps, and everything is looked at again.

The kernel's own events are used, not udevd's: no rule has to run before a backend can be served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyudev

from hotplug.errors import UsageError
from hotplug.events import Action, Device, Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("vbd", "vbd3")
SUBSYSTEM = "xen-backend"
BUFFER = 8 << 20  # bytes; a few thousand guests that start at once
SCRIPT = "/etc/xen/scripts/block"


class OverflowedError(Exception):
    """Events were lost; this source is of no more use."""


def event_for(properties: Mapping[str, str]) -> Event | None:
    """What a uevent asks for; None if it is none of ours."""
    if properties.get("XENBUS_TYPE") not in KINDS:
        return None
    try:
        action = Action(properties.get("ACTION", ""))
        device = Device.parse(properties.get("XENBUS_PATH", ""))
    except (ValueError, UsageError):
        return None  # bind, unbind, change; or a device that is no backend
    if action not in (Action.ADD, Action.REMOVE):
        return None
    names = ("XENBUS_TYPE", "XENBUS_PATH", "XENBUS_BASE_PATH")
    variables = {name: properties[name] for name in names if name in properties}
    return Event(action, device, SCRIPT, (action.value,), {**variables, "UDEV_CALL": "1"})


class UdevSource:
    """The socket on which the kernel tells of its devices."""

    def __init__(self, subsystem: str = SUBSYSTEM, receive_buffer: int = BUFFER) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by(subsystem)
        self._monitor.set_receive_buffer_size(receive_buffer)
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def receive(self) -> Iterator[Mapping[str, str]]:
        """The properties of all uevents that wait; OverflowedError if some were lost."""
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:
                raise OverflowedError from error
            if device is None:
                return
            yield dict(device.properties)
