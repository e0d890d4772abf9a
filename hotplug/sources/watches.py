"""A driver domain's source: xenstore watches, in place of ``xl devd``.

What libxl's devd does, without its memory: it reacts to ``state`` and ``online`` of backends. A
backend in InitWait (2) wants its device; one that is Closed (6) and no longer ``online`` is to be
taken back, and then its directory deleted, which the toolstack waits for. A closed backend that
is still online only reconnects. Handlers are idempotent, so nothing needs to be remembered, and
what was there before the agent started is handled alike.

True of network cards, and not obvious:

- netback stays in InitWait until ``hotplug-status`` is ``connected``, so both together are a card
  that was served and whose guest is not there yet. It deletes the key when the card goes
  (drivers/net/xen-netback/xenbus.c, netback_remove).
- Some kernels delete it as soon as they have seen it (5.5 to 5.16) and, where no toolstack made it
  beforehand (libxl does since 4.17), connect without waiting for it (5.13 to 5.16). So a connected
  card without it was either served or not; the journal knows.
- netback goes to InitWait before it makes its link.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from hotplug.events import Action, Device, Event
from hotplug.ports import Write

if TYPE_CHECKING:
    from hotplug.ports import Snapshot, Store

INIT_WAIT, STARTED, CLOSED = b"2", b"4", b"6"
KINDS = ("vbd", "vbd3", "vif")
QEMU_KINDS = ("qdisk", "9pfs")  # a device model serves them
SCRIPTS = {"vif": "/etc/xen/scripts/vif-bridge"}
DEFAULT_SCRIPT = "/etc/xen/scripts/block"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a backend says of itself; a key's name is the field's, with hyphens."""

    state: bytes | None = None
    online: bytes | None = None
    script: bytes | None = None
    type: bytes | None = None
    gatewaydev: bytes | None = None
    hotplug_status: bytes | None = None


NAMES = tuple(field.name.replace("_", "-") for field in fields(Keys))


def watched_device(path: str, kinds: tuple[str, ...] = KINDS) -> Device | None:
    """The backend whose ``state`` or ``online`` changed, from a watch event's path."""
    parts = path.split("/")
    if len(parts) < 5 or parts[-1] not in ("state", "online") or parts[-4] not in kinds:
        return None
    if not (parts[-3].isdigit() and parts[-2].isdigit()):
        return None
    return Device(parts[-4], int(parts[-3]), int(parts[-2]))


def event_for(device: Device, keys: Keys, *, is_known: bool = False) -> Event | None:
    """What a backend wants; None if nothing. ``is_known``: something is attached for it."""
    if keys.state == CLOSED and keys.online == b"0":
        arrives = False
    elif is_waiting(device, keys, is_known=is_known):
        arrives = True
    else:
        return None
    script = os.fsdecode(keys.script or b"") or SCRIPTS.get(device.kind, DEFAULT_SCRIPT)
    variables = {
        "XENBUS_PATH": device.path,
        "XENBUS_TYPE": device.kind,
        "XENBUS_BASE_PATH": device.base,
        "script": script,
    }
    if device.kind != "vif":
        action = Action.ADD if arrives else Action.REMOVE
        return Event(action, device, script, (action.value,), variables)
    action = Action.ONLINE if arrives else Action.OFFLINE
    variables |= link_variables(device, keys)
    return Event(action, device, script, (action.value, "type_if=vif"), variables)


def is_waiting(device: Device, keys: Keys, *, is_known: bool) -> bool:
    """Whether a backend has not been given its device."""
    if device.kind != "vif":
        return keys.state == INIT_WAIT  # a disk that has it is looked at all the same
    if keys.state == STARTED:
        return keys.hotplug_status is None and not is_known
    return keys.state == INIT_WAIT and keys.hotplug_status != b"connected"


def link_variables(device: Device, keys: Keys) -> dict[str, str]:
    """What libxl tells the script of a card. Its tap is another domain's: there is none here."""
    vif = f"vif{device.domid}.{device.devid}"
    emulated = {"INTERFACE": f"{vif}-emu"} if keys.type == b"vif_ioemu" else {}
    return {"vif": vif, "netdev": os.fsdecode(keys.gatewaydev or b""), **emulated}


def look(store: Store, device: Device, *, is_known: bool = False) -> Event | None:
    """Read what a backend wants now."""
    values = store.read_many([f"{device.path}/{name}" for name in NAMES])
    return event_for(device, Keys(*values), is_known=is_known)


def delete_backend(store: Store, device: Device) -> None:
    """Delete a backend that was taken back, unless it came to life again.

    What is empty then above it goes too, where it is ours. Usually dom0 has made it, and its libxl
    removes it (since 4.15).
    """

    def body(snapshot: Snapshot) -> bool:
        state, online = snapshot.read_many([f"{device.path}/state", f"{device.path}/online"])
        if state != CLOSED or online != b"0":
            return False
        snapshot.apply([Write(device.path, None)])
        return True

    if not store.transaction(body):
        return
    guest = f"{device.base}/{device.kind}/{device.domid}"
    for path in (guest, f"{device.base}/{device.kind}"):
        try:
            if not store.transaction(functools.partial(prune, path=path)):
                return
        except PermissionError:
            return


def prune(snapshot: Snapshot, path: str) -> bool:
    """Delete a directory without children; False if it has some."""
    names = snapshot.directory(path)
    if names:
        return False
    if names is not None:
        snapshot.apply([Write(path, None)])
    return True
