"""All disks of all guests, put together from the store, the journal and the kernel: for people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug import config
from hotplug.agent import host, reconcile
from hotplug.errors import UsageError
from hotplug.kernel import loop_sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hotplug.events import Device
    from hotplug.ports import Host, Loop, Loops

KINDS = ("vbd", "vbd3", "qdisk", "tap")
KEYS = (
    "params",
    "mode",
    "dev",
    "state",
    "hotplug-status",
    "physical-device-path",
    "node",
    "physical-device",
    "hotplug-error",
)
STATES = {
    b"1": "initialising",
    b"2": "waiting",
    b"3": "initialised",
    b"4": "connected",
    b"5": "closing",
    b"6": "closed",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One disk."""

    backend: str
    domid: int
    devid: int
    guest: str
    vdev: str
    mode: str
    state: str  # a word of STATES, or the hotplug-status error/busy, or "lost", or "silent"
    device: str | None  # what the guest's disk is on this host
    file: str
    error: str | None


def all_disks(built: Host | None = None) -> list[Row]:
    """Every disk whose backend is in this domain, by domid and devid."""
    built = built or host.build(config.load())
    loops = bound_loops(built.loops)
    devices = reconcile.backends(built, KINDS)
    paths = [f"{device.path}/{key}" for device in devices for key in KEYS]
    values = built.store.read_many(paths, forbidden_is_absent=True)
    domids = sorted({device.domid for device in devices})
    names = built.store.read_many(
        [f"/local/domain/{domid}/name" for domid in domids], forbidden_is_absent=True
    )
    guests = {
        domid: os.fsdecode(name) if name else f"domain {domid}"
        for domid, name in zip(domids, names, strict=True)
    }
    rows = []
    for index, device in enumerate(devices):
        found = values[index * len(KEYS) : (index + 1) * len(KEYS)]
        keys = dict(zip(KEYS, found, strict=True))
        rows.append(row(device, keys, guests, fate(built, loops, device, keys)))
    return sorted(rows, key=lambda r: (r.domid, r.devid))


def row(
    device: Device, keys: dict[str, bytes | None], guests: dict[int, str], fate: str | None
) -> Row:
    status = keys["hotplug-status"]
    state = STATES.get(keys["state"] or b"", "unknown")
    if status in (b"error", b"busy"):
        state = status.decode()
    elif fate is not None:
        state = fate
    path = keys["physical-device-path"] or keys["node"]
    error = keys["hotplug-error"]
    return Row(
        backend=device.path,
        domid=device.domid,
        devid=device.devid,
        guest=guests[device.domid],
        vdev=os.fsdecode(keys["dev"] or b"-"),
        mode=os.fsdecode(keys["mode"] or b"-"),
        state=state,
        device=os.fsdecode(path) if path else None,
        file=os.fsdecode(keys["params"] or b"-"),
        error=os.fsdecode(error) if error else None,
    )


def bound_loops(loops: Loops) -> dict[int, Loop | None]:
    """Every bound loop device; None for those whose file system does not answer."""
    bound = [number for number in loop_sysfs.numbers() if loop_sysfs.is_bound(number)]
    found: dict[int, Loop | None] = {loop.number: loop for loop in loops.all()}
    return dict.fromkeys(filter(loop_sysfs.is_bound, bound)) | found


def fate(
    built: Host, loops: Mapping[int, Loop | None], device: Device, keys: dict[str, bytes | None]
) -> str | None:
    """What became of the guest's loop device.

    "lost": it was unbound under the guest, and perhaps given to another; "silent": nobody knows.
    """
    node = (keys["node"] or b"").removeprefix(b"/dev/loop")
    if not node.isdigit() or keys["physical-device"] is None:
        return None
    if int(node) not in loops:
        return "lost"
    loop = loops[int(node)]
    if loop is None:
        return "silent"
    attachment = built.journal.peek(device)
    if attachment is None:
        return None
    known = attachment.facts.get("device"), attachment.facts.get("inode")
    return None if (loop.backing.device, loop.backing.inode) == known else "lost"


def find(guest: str, vdev: str) -> Device:
    """A disk by its guest's name and its name in the guest."""
    built = host.build(config.load())
    devices = reconcile.backends(built, ("vbd", "vbd3"))
    paths = [f"{device.path}/dev" for device in devices]
    devs = built.store.read_many(paths, forbidden_is_absent=True)
    names = built.store.read_many(
        [f"/local/domain/{device.domid}/name" for device in devices], forbidden_is_absent=True
    )
    mine = [
        (device, os.fsdecode(dev or b""))
        for device, dev, name in zip(devices, devs, names, strict=True)
        if os.fsdecode(name or b"") == guest
    ]
    for device, dev in mine:
        if dev == vdev:
            return device
    if mine:
        has = ", ".join(dev for _, dev in mine)
        raise UsageError(f"guest '{guest}' has no disk {vdev}; it has {has}")
    raise UsageError(f"there is no guest '{guest}' with a disk here; see `xen-hotplug block list`")


def lock_holders(rundir: str) -> Iterator[tuple[str, int]]:
    """Lock files of the scripts that somebody holds just now, with the holder's pid."""
    held = {}
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if "FLOCK" in words and "->" not in words:
                held[words[5].rpartition(":")[2]] = int(words[4])
    for name in sorted(os.listdir(rundir)) if os.path.isdir(rundir) else ():
        path = os.path.join(rundir, name)
        try:
            pid = held.get(str(os.lstat(path).st_ino))
        except FileNotFoundError:
            continue  # its holder has just let go of it
        if pid is not None and name not in ("agent.pid", "control", "journal"):
            yield path, pid
