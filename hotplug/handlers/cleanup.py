"""What is left of a device in the store once the kernel has let go of it: ``xen-hotplug-cleanup``.

For toolstacks that wait for it, as xend did: it took a device for gone when the backend's
``hotplug-status`` was. libxl deletes these nodes itself, and everything here may be gone already.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.ports import Write

if TYPE_CHECKING:
    from hotplug.events import Device, Event
    from hotplug.ports import Host, Snapshot


def run(host: Host, event: Event) -> None:
    """Delete a device's nodes, with what is empty then above them."""
    host.deadline.stage("waiting for the lock 'block'")
    with host.locks.hold("block", host.deadline):  # scripts of others look at backends under it
        host.deadline.stage("deleting what xenstore has of the device")
        host.store.transaction(lambda store: delete(store, event.device))


def delete(store: Snapshot, device: Device) -> None:
    """All in one transaction, so that nobody sees half of it."""
    guest = f"/local/domain/{device.domid}"
    keys = [f"{device.path}/frontend", f"{device.path}/online", f"{guest}/vm"]
    frontend, online, vm = (os.fsdecode(value or b"") for value in store.read_many(keys))
    if not frontend.startswith(f"{guest}/"):
        frontend = ""
    if online == "1" and frontend and exists(store, frontend):
        return  # of the same name, and new: the kernel gives up a backend whose frontend is gone
    paths = [frontend, device.path, f"error/{device.path}", vm and record(store, vm, device)]
    for path in filter(None, paths):
        delete_tidily(store, path)


def record(store: Snapshot, vm: str, device: Device) -> str:
    """Where xend has the device once more; its blktap disks were vbds to the kernel."""
    usual = f"{vm}/device/{device.kind}/{device.devid}"
    if device.kind == "vbd" and not exists(store, usual):
        return f"{vm}/device/tap2/{device.devid}"
    return usual


def exists(store: Snapshot, path: str) -> bool:
    return store.read_many([path]) != [None]


def delete_tidily(store: Snapshot, path: str) -> None:
    """As ``xenstore-rm -t`` does it: parents too that have no value and no children then."""
    if not exists(store, path):
        return
    store.apply([Write(path, None)])
    while path := path.rpartition("/")[0]:
        if store.directory(path) or store.read_many([path]) != [b""]:
            return
        store.apply([Write(path, None)])
