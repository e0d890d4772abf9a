"""All network cards of all guests, and what a command is to do to one: for people."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug import config
from hotplug.agent import host, reconcile
from hotplug.disks import STATES
from hotplug.errors import UsageError
from hotplug.events import Device
from hotplug.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hotplug.network import Link
    from hotplug.ports import Host

KEYS = ("mac", "ip", "bridge", "vifname", "script", "state", "hotplug-status", "hotplug-error")
OF_TAP = ("add", "remove")


@dataclass(frozen=True, slots=True)
class Row:
    """One card."""

    backend: str
    domid: int
    devid: int
    guest: str
    link: str | None  # of the vif on this host, under the name that it has now
    bridge: str | None  # that it is a port of; before it has a link, the one that is asked for
    mac: str
    addresses: list[str]  # that it is configured for
    script: str
    state: str  # a word of STATES, or the hotplug-status error, or "lost"
    error: str | None


def all_cards(built: Host | None = None) -> list[Row]:
    """Every card whose backend is in this domain, by domid and devid."""
    built = built or host.build(config.load())
    devices = reconcile.backends(built, ("vif",))
    values = built.store.read_many(
        [f"{device.path}/{key}" for device in devices for key in KEYS], forbidden_is_absent=True
    )
    guests = names_of(built, devices)
    rows = []
    for index, device in enumerate(devices):
        found = values[index * len(KEYS) : (index + 1) * len(KEYS)]
        keys = {key: os.fsdecode(value or b"") for key, value in zip(KEYS, found, strict=True)}
        rows.append(row(built, device, keys, guests[device.domid]))
    return sorted(rows, key=lambda r: (r.domid, r.devid))


def names_of(built: Host, devices: Sequence[Device]) -> dict[int, str]:
    domids = sorted({device.domid for device in devices})
    names = built.store.read_many(
        [f"/local/domain/{domid}/name" for domid in domids], forbidden_is_absent=True
    )
    return {
        domid: os.fsdecode(name) if name else f"domain {domid}"
        for domid, name in zip(domids, names, strict=True)
    }


def row(built: Host, device: Device, keys: Mapping[str, str], guest: str) -> Row:
    link = built.links.find(keys["vifname"]) or built.links.find(link_name(device))
    state = STATES.get(os.fsencode(keys["state"]), "unknown")
    status = keys["hotplug-status"]
    if status == "error":
        state = status
    elif status == "connected" and link is None:
        state = "lost"
    return Row(
        backend=device.path,
        domid=device.domid,
        devid=device.devid,
        guest=guest,
        link=link.name if link else None,
        bridge=master_of(built, link) if link else keys["bridge"] or None,
        mac=keys["mac"] or "-",
        addresses=keys["ip"].split(),
        script=keys["script"] or "-",
        state=state,
        error=keys["hotplug-error"] or None,
    )


def link_name(device: Device) -> str:
    """As the backend driver makes it."""
    return f"vif{device.domid}.{device.devid}"


def master_of(built: Host, link: Link) -> str | None:
    master = built.links.get(link.master) if link.master else None
    return master.name if master else None


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The listing, a head line first."""
    return [
        ("CARD", "GUEST", "LINK", "BRIDGE", "MAC", "STATE", "ADDRESSES"),
        *(
            (
                f"{r.domid}/{r.devid}",
                r.guest,
                r.link or "-",
                r.bridge or "-",
                r.mac,
                r.state,
                " ".join(r.addresses) or "-",
            )
            for r in rows
        ),
    ]


def find(name: str) -> Device:
    """Turn what an administrator types into a card."""
    by_number = re.fullmatch(r"([0-9]{1,5})[/:]([0-9]{1,10})", name)
    if by_number is not None:
        return Device("vif", int(by_number[1]), int(by_number[2]))
    if name.count("/") >= 2:
        device = Device.parse(name)
        if device.kind != "vif":
            raise UsageError(f"'{name}' is no network card; its backend is like backend/vif/5/0")
        return device
    guest, _, number = name.rpartition(":")
    if not guest or not number.isdecimal():
        raise UsageError(f"'{name}' names no card; say backend/vif/5/0, 5/0 or myguest:0")
    return of_guest(guest, int(number))


def of_guest(guest: str, number: int) -> Device:
    built = host.build(config.load())
    devices = reconcile.backends(built, ("vif",))
    names = names_of(built, devices)
    mine = [device for device in devices if names[device.domid] == guest]
    for device in mine:
        if device.devid == number:
            return device
    if mine:
        has = ", ".join(str(device.devid) for device in mine)
        raise UsageError(f"guest '{guest}' has no card {number}; it has {has}")
    raise UsageError(f"there is no guest '{guest}' with a card here; see `xen-hotplug vif list`")


def invocation(
    script: str, action: str, device: Device, parameters: Sequence[str], cwd: str
) -> Invocation:
    """The toolstack's call, with what was typed behind it."""
    role = "tap" if action in OF_TAP else "vif"
    refuse_other(role, action, parameters)
    name = link_name(device)
    variables = {
        "XENBUS_PATH": device.path,
        "XENBUS_TYPE": device.kind,
        "XENBUS_BASE_PATH": device.base,
        "script": script,
        **({"INTERFACE": f"{name}-emu"} if role == "tap" else {"vif": name}),
    }
    return Invocation((script, action, f"type_if={role}", *parameters), variables, cwd)


def refuse_other(role: str, action: str, parameters: Sequence[str]) -> None:
    """A script does nothing for a link that it was not called for, which nobody types in vain."""
    for word in parameters:
        name, _, value = word.partition("=")
        if name == "type_if" and value != role:
            raise UsageError(
                f"{word} makes no sense with '{action}', which is for the card's {role}; online and"
                " offline are for the vif, add and remove for the tap"
            )
