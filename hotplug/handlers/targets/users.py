"""Backends that ask for the same thing: an image behind a tapdisk, an export of a server.

Such a thing is known by what ``params`` says, not by a device number. Whether two may have it is
decided by the same rules as for devices; whether anybody still needs it, by the backends' states.
Where a backend may not be read, nobody knows: then it is neither given nor taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.events import Device
from hotplug.handlers.disk import CONNECTED, Mode
from hotplug.handlers.sharing import Party, busy, refuse_unknown, same_vm, user_in_conflict

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.handlers.disk import Disk
    from hotplug.ports import Holder, Host

CLOSING = (b"5", b"6")  # XenbusStateClosing, XenbusStateClosed
REFUSED = (b"busy", b"error")  # hotplug-status of a backend that was not given its device


def others(
    host: Host, device: Device, matches: Callable[[bytes], bool]
) -> list[tuple[Holder, bytes | None, bytes | None]]:
    """The other backends whose ``params`` match, each with its state and hotplug-status.

    Not those that we might read before and may not now.
    """
    hidden = host.holders.hidden()
    holders = [
        holder
        for holder in host.holders.with_params(device.kind, matches)
        if holder.device != device
        and not any(f"{holder.device.path}/".startswith(f"{path}/") for path in hidden)
    ]
    if not holders:
        return []
    keys = [f"{h.device.path}/{key}" for h in holders for key in ("state", "hotplug-status")]
    values = host.store.read_many(keys)
    return list(zip(holders, values[::2], values[1::2], strict=True))


def refuse(host: Host, disk: Disk, prefix: str, matches: Callable[[bytes], bool]) -> None:
    """DeviceBusyError if a backend that has it forbids that we have it too.

    Called under the lock, so that of two that ask at once one is connected when the other looks.
    """
    holders = [
        holder for holder, _, status in others(host, disk.device, matches) if status == CONNECTED
    ]
    if disk.mode is not Mode.FORCED:
        refuse_unknown(host, disk.frontend, disk.params)
    if not holders:
        return
    me = Party.read(host.store, disk.frontend)
    user = user_in_conflict(
        disk.mode,
        (),
        holders,
        lambda holder: same_vm(me, Party.read(host.store, holder.device.domid)),
    )
    if user is not None:
        raise busy(prefix, disk.mode, user)


def is_needed(host: Host, device: Device, what: str, matches: Callable[[bytes], bool]) -> bool:
    """Whether another backend has it, or is just being given it. HotplugError if nobody knows.

    A guest and its stubdomain share one and are removed at the same time: one that is closing
    does not count, or neither would take it down.
    """
    if any(
        state is not None and state not in CLOSING and status not in REFUSED
        for _, state, status in others(host, device, matches)
    ):
        return True
    own = Device(device.kind, device.domid, device.devid).path
    for hidden in host.holders.hidden():
        if hidden.split("/")[1] == device.kind and hidden != own:
            raise HotplugError(
                f"{hidden} in xenstore may not be read by this domain, so nobody knows whether"
                f" it still needs {what}; remove it or make it readable"
            )
    return False
