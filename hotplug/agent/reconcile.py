"""What the kernel has against what the store wants.

Leaks come from runs that died, from a toolstack that deleted a backend without running its
script, and from a runtime directory that was emptied. The journal knows the first two; the
references on our loop devices know all three.

What xenstore refuses us to know of one device hides none of the others: it is told as ``refused``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hotplug.agent.holders import list_backends
from hotplug.errors import HotplugError
from hotplug.events import Device
from hotplug.handlers.block import is_wanted
from hotplug.handlers.disk import INIT_WAIT
from hotplug.handlers.sharing import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hotplug.ports import Entry, Host, Loop

Refused: TypeAlias = "Callable[[Device, PermissionError], object]"


@dataclass(frozen=True, slots=True)
class Leak:
    """Something attached that no backend wants; ``loop`` is None if only the journal says so."""

    device: Device
    loop: Loop | None
    what: str  # for people


def unwanted_entries(host: Host, refused: Refused) -> Iterator[Leak]:
    """Journal entries whose backend is gone or never got its device.

    Not those of runs at work just now, nor those that say that nothing is attached.
    """
    for device in host.journal.devices():
        claim = host.journal.try_claim(device)
        if claim is None:
            continue
        with claim as entry:
            attachment = entry.attachment
            try:
                is_leak = attachment is not None and is_unwanted(host, device, entry)
            except PermissionError as error:
                refused(device, error)
                continue
        if attachment is not None and is_leak:
            path = attachment.facts.get("path", "")
            yield Leak(device, None, f"{attachment.target} {path}".strip())


def is_unwanted(host: Host, device: Device, entry: Entry) -> bool:
    if device.kind == "vif":
        from hotplug.handlers import vif  # noqa: PLC0415 - who has no cards shall not pay for them

        return bool(vif.unwanted(host, device, entry))
    return not is_wanted(host, device)


def unknown_loops(host: Host, refused: Refused) -> Iterator[Leak]:
    """Loop devices with our reference that neither the journal nor a backend knows."""
    for loop in host.loops.all():
        device = owner(host, loop)
        if device is None or loop.autoclear or host.journal.knows(device):
            continue
        try:
            physical = host.store.read(f"{device.path}/physical-device")
        except PermissionError as error:
            refused(device, error)
            continue
        if physical != str(loop.device_number).encode():
            yield Leak(device, loop, f"{loop.path} {host.loops.backing_name(loop.number) or ''}")


def owner(host: Host, loop: Loop) -> Device | None:
    """The backend that one of our loop devices was made for; None if it is not ours."""
    mark, found, key = loop.reference.decode(errors="replace").rpartition(":")
    parts = key.split(".")
    if not found or mark != host.instance or len(parts) != 3:
        return None
    try:
        return Device(parts[0], int(parts[1]), int(parts[2]))
    except ValueError:
        return None


def detach(host: Host, leak: Leak) -> None:
    """Unbind an unknown loop device, if it still is what it was."""
    unbind(host, leak)


def unbind(host: Host, leak: Leak) -> bool:
    """Unbind an unknown loop device; False if it is not what it was any more."""
    if leak.loop is None:
        raise HotplugError(f"{leak.device}: only a loop device can be detached by itself")
    mine = reference(host, leak.device)
    return host.loops.detach(leak.loop.number, only_if=lambda loop: loop.reference == mine)


def backends(host: Host, kinds: Sequence[str]) -> list[Device]:
    """Every backend of these kinds."""
    return list_backends(host.store, kinds)


def waiting(host: Host) -> list[Device]:
    """Backends in InitWait that nobody has given a device yet; not those that we may not read."""
    devices = backends(host, ("vbd", "vbd3"))
    keys = ("state", "physical-device", "hotplug-status")
    paths = [f"{device.path}/{key}" for device in devices for key in keys]
    values = host.store.read_many(paths, forbidden_is_absent=True)
    found = []
    for index, device in enumerate(devices):
        state, physical, status = values[index * 3 : index * 3 + 3]
        if state == INIT_WAIT and physical is None and not status:
            found.append(device)
    return found
