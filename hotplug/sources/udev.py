"""Uevents of backends, through pyudev: for hosts whose toolstack does not run the scripts.

Linux facts: every xen-backend uevent carries XENBUS_PATH and XENBUS_TYPE
(drivers/xen/xenbus/xenbus_probe_backend.c, backend_uevent). A vbd's ``add`` comes when the
device is registered, in state 1 (Initialising), so the backend may have to be waited for until it
is in state 2. A vif has ``online`` once its link is there, and ``offline`` just before it goes;
both carry the key ``script`` as it was then, and as ``vif`` the link's present name
(drivers/net/xen-netback/xenbus.c, netback_uevent). ``remove`` carries neither. When the socket's
buffer overflows, events are lost and pyudev's ``poll`` raises an OSError, and does so for ever:
only a new socket helps, and everything is looked at again.

The kernel's own events are used, not udevd's: no rule has to run before a backend can be served.
What each asks for is what the rules of Xen 4.5 ran for it; what they ran, and with what words, is
in udev-rules/xen-hotplug.rules too. ``vif2`` is not served: no kernel of ours has netchannel2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyudev

from hotplug.errors import UsageError
from hotplug.events import Action, Device, Event
from hotplug.invocation import script_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BACKENDS, LINKS = "xen-backend", "net"  # subsystems
BUFFER = 8 << 20  # bytes; a few thousand guests that start at once
FOLDER = "/etc/xen/scripts"
DISKS = ("vbd", "vbd3")
TAP = re.compile(r"vif(\d{1,5})\.(\d{1,10})-emu")  # device models of Xen 4.2 and later call it so
NAMES = ("XENBUS_TYPE", "XENBUS_PATH", "XENBUS_BASE_PATH")


class OverflowedError(Exception):
    """Events were lost; this source is of no more use."""


def events_for(properties: Mapping[str, str]) -> list[Event]:
    """What a uevent asks for, in order."""
    if properties.get("SUBSYSTEM") == LINKS:
        return tap_events(properties)
    try:
        action = Action(properties.get("ACTION", ""))
        device = Device.parse(properties.get("XENBUS_PATH", ""))
    except (ValueError, UsageError):
        return []  # bind, unbind, change; or a device that is no backend
    variables = {name: properties[name] for name in NAMES if name in properties}
    variables |= {"ACTION": action.value, "UDEV_CALL": "1"}
    events = []
    if device.kind in DISKS and action in (Action.ADD, Action.REMOVE):
        events.append(Event(action, device, f"{FOLDER}/block", (action.value,), variables))
    elif device.kind == "vif" and action in (Action.ONLINE, Action.OFFLINE):
        events.append(vif_event(action, device, properties, variables))
    elif device.kind == "vscsi" and action is Action.ADD:
        events.append(Event(action, device, f"{FOLDER}/vscsi", (action.value,), variables))
    if action is Action.REMOVE:
        events.append(Event(action, device, f"{FOLDER}/xen-hotplug-cleanup", (), variables))
    return events


def vif_event(
    action: Action, device: Device, properties: Mapping[str, str], variables: Mapping[str, str]
) -> Event:
    """A card's: its script may have arguments, which xend took from the guest's configuration."""
    given = properties.get("script", "")
    script, words = script_words(given)
    script = script or f"{FOLDER}/vif-bridge"
    vif = properties.get("vif") or f"vif{device.domid}.{device.devid}"
    arguments = (*words, action.value, "type_if=vif")
    return Event(action, device, script, arguments, {**variables, "script": given, "vif": vif})


def tap_events(properties: Mapping[str, str]) -> list[Event]:
    """A device model made the link of an emulated card. The kernel does not know its script."""
    name = properties.get("INTERFACE", "")
    match = TAP.fullmatch(name)
    if match is None or properties.get("ACTION") != Action.ADD.value:
        return []
    device = Device("vif", int(match[1]), int(match[2]))
    variables = {"INTERFACE": name, "ACTION": Action.ADD.value, "UDEV_CALL": "1"}
    arguments = (Action.ADD.value, "type_if=tap")
    return [Event(Action.ADD, device, f"{FOLDER}/vif-bridge", arguments, variables)]


class UdevSource:
    """The socket on which the kernel tells of its devices."""

    def __init__(self, *subsystems: str, receive_buffer: int = BUFFER) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in subsystems or (BACKENDS, LINKS):
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
