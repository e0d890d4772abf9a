"""What events of disks and cards do with the store alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Device
    from hotplug.ports import Begun, Host


def begin(host: Host, resources: ExitStack, *, with_next: bool = False) -> Begun:
    """Ask for a transaction. If a worker of the agent hangs, it ends when its time is up.

    Other events must not wait for it.
    """
    begun = resources.enter_context(host.store.begin(with_next=with_next))
    host.deadline.hold(begun.give_up)
    return begun


def confirm(host: Host, device: Device) -> None:
    """See that what was read ahead is true, before a program of others is run, which is not undone.

    OutdatedError if it is not; then the event is begun once more.
    """
    if host.known is not None and host.known.in_use:
        host.store.read(device.path)  # for the events that come before the answer
        host.known.confirm()
