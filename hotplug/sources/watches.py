"""A driver domain's source: xenstore watches, in place of ``xl devd``.

What libxl's devd does, without its memory: it reacts to ``state`` and ``online`` of backends. A
backend in InitWait (2) wants its device; one that is Closed (6) and no longer ``online`` is to be
taken back, and then its directory deleted, which the toolstack waits for. A closed backend that
is still online only reconnects. Handlers are idempotent, so nothing needs to be remembered, and
what was there before the agent started is handled alike.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.events import Action, Device, Event
from hotplug.ports import Write

if TYPE_CHECKING:
    from hotplug.ports import Snapshot, Store

KEYS = ("state", "online", "script")
INIT_WAIT, CLOSED = b"2", b"6"
KINDS = ("vbd", "vbd3")
DEFAULT_SCRIPT = "/etc/xen/scripts/block"


def watched_device(path: str) -> Device | None:
    """The backend whose ``state`` or ``online`` changed, from a watch event's path."""
    parts = path.split("/")
    if len(parts) < 5 or parts[-1] not in ("state", "online") or parts[-4] not in KINDS:
        return None
    if not (parts[-3].isdigit() and parts[-2].isdigit()):
        return None
    return Device(parts[-4], int(parts[-3]), int(parts[-2]))


def event_for(
    device: Device, state: bytes | None, online: bytes | None, script: bytes | None
) -> Event | None:
    """What a backend in this state wants; None if nothing."""
    if state == INIT_WAIT:
        action = Action.ADD
    elif state == CLOSED and online == b"0":
        action = Action.REMOVE
    else:
        return None
    name = os.fsdecode(script) if script else DEFAULT_SCRIPT
    variables = {
        "XENBUS_PATH": device.path,
        "XENBUS_TYPE": device.kind,
        "XENBUS_BASE_PATH": device.base,
        "script": name,
    }
    return Event(action, device, name, (action.value,), variables)


def look(store: Store, device: Device) -> Event | None:
    """Read what a backend wants now."""
    state, online, script = store.read_many([f"{device.path}/{key}" for key in KEYS])
    return event_for(device, state, online, script)


def delete_backend(store: Store, device: Device) -> None:
    """Delete a backend that was taken back, unless it came to life again."""

    def body(snapshot: Snapshot) -> None:
        state, online = snapshot.read_many([f"{device.path}/state", f"{device.path}/online"])
        if state == CLOSED and online == b"0":
            snapshot.apply([Write(device.path, None)])

    store.transaction(body)
