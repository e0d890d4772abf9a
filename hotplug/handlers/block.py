"""Disks: give a vbd its device, and take it back.

What the toolstack's ``block`` script does, with the guarantees that it lacks: two runs never
both pass the sharing check, nothing that was attached is forgotten, a backend that was deleted
meanwhile is not brought back, and ``connected`` is never written without a device.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

from hotplug.errors import AbandonedError, BackendGoneError, DeadlineError, HotplugError
from hotplug.handlers.disk import CONNECTED, INIT_WAIT, Disk, refuse_state, retraction
from hotplug.handlers.targets import table
from hotplug.handlers.transactions import begin
from hotplug.ports import Write

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.events import Device, Event
    from hotplug.handlers.targets import Attached
    from hotplug.ports import Begun, Entry, Host, Snapshot

# Kinds of disks for which nobody but us writes to the store as a rule, so that the transaction for
# what we write may have been asked for before: some daemons' transactions see the store as of then.
SOON = ("file", "phy")

# A program of others writes physical-device itself, and blkback may connect there and then.
STARTED = (b"3", b"4")  # XenbusStateInitialised, XenbusStateConnected


class ConnectedMeanwhileError(HotplugError):
    """Another run (a one-shot beside the agent) was faster; ours takes its own back."""


def add(host: Host, event: Event) -> None:
    """Attach the disk of a backend and write where it is."""
    try:
        give(host, event)
    except (DeadlineError, AbandonedError):
        raise
    except (HotplugError, OSError):
        if host.known is not None and host.known.in_use:  # what comes first is to be told
            refuse_state(event.device, host.store.read(f"{event.device}/state"))
        raise


def give(host: Host, event: Event) -> None:
    """Do it, or leave nothing.

    Attaching comes before the sharing check: binding a loop device is harmless, may hang, and
    so must not happen under a lock that every other disk waits for.
    """
    device = event.device
    with contextlib.suppress(ConnectedMeanwhileError), contextlib.ExitStack() as resources:
        known = known_beforehand(host, event)
        begun = begin(host, resources, with_next=known is None)
        disk = known or Disk.read(host, device)
        if is_done(disk):
            if disk.state != INIT_WAIT or table.is_in_place(host, disk, event):
                return
            disk = repair(host, event)
            if is_done(disk):
                return
            begun = another(begun, host, resources, with_next=True)  # it is not used soon
        if known is None:  # or else it is asked for with the rest, in the transaction
            refuse_state(device, disk.state)
        attach = table.prepare(host, disk, event, resources)
        entry = resources.enter_context(host.journal.claim(device, host.deadline))
        if entry.attachment is not None:
            if is_done(Disk.read(host, device)):
                return  # by the run that held the claim while we waited
            take_back(host, device, entry)
        undo = resources.enter_context(contextlib.ExitStack())
        host.deadline.check()
        attached = attach(entry, undo)
        host.deadline.stage("waiting for the lock 'block'")
        with host.locks.hold("block", host.deadline):
            host.deadline.stage("asking xenstore who else uses the disk")
            if disk.type not in SOON or attached.written is not None:
                begun = another(begun, host, resources)
            begun.stage(tell := partial(connect, host, disk, attached))
            host.holders.refresh(device, asked=True)
            attached.refuse_sharing()
            commit(host, device, begun, tell, undo)
        attached.verify()
        undo.pop_all()


def known_beforehand(host: Host, event: Event) -> Disk | None:
    """A backend as it was read ahead.

    Not for what takes a program or a server: that is for a backend of which it is known that it
    waits. And then there is a round trip more or less to the store.
    """
    known = host.known
    if known is None or table.script_suffix(event):
        return None
    if os.fsdecode(known.values["type"] or b"") not in SOON:
        return None
    return Disk.parse(event.device, {**known.use(), "state": None})


def another(
    begun: Begun, host: Host, resources: contextlib.ExitStack, *, with_next: bool = False
) -> Begun:
    """In place of one that began too early."""
    begun.give_up()
    return begin(host, resources, with_next=with_next)


def is_done(disk: Disk) -> bool:
    """Whether an earlier run gave this backend its device; the toolstack may ask twice.

    A device without ``connected`` is half of what a run wrote that died (stock's writes are not
    atomic): it is done again, as long as the backend still waits. A vbd3 has no device number.
    """
    if disk.device.kind == "vbd3":
        return disk.status == CONNECTED
    return bool(disk.physical_device) and (disk.status == CONNECTED or disk.state != INIT_WAIT)


def repair(host: Host, event: Event) -> Disk:
    """Take the keys from a backend whose loop device is gone, or another's by now.

    Only while it waits: a guest that has been connected keeps what it has.
    """
    device = event.device
    with host.journal.claim(device, host.deadline) as entry:
        disk = Disk.read(host, device)
        if is_done(disk) and not table.is_in_place(host, disk, event):
            host.store.transaction(lambda store: store.apply(retraction(device)))
            take_back(host, device, entry)
            disk = Disk.read(host, device)
    return disk


def commit(
    host: Host,
    device: Device,
    begun: Begun,
    tell: Callable[[Snapshot], None],
    undo: contextlib.ExitStack,
) -> None:
    """Let the guest know where its disk is.

    If the store breaks off or falls silent in the commit, nobody knows whether the guest was told:
    the disk stays, the journal has it, and whoever comes next for this device asks the store.
    """
    host.deadline.stage("writing to xenstore")
    try:
        with host.deadline.committing():
            begun.run(tell)
    except (ConnectionError, TimeoutError):
        undo.pop_all()
        raise
    undo.callback(retract, host, device, undo)


def retract(host: Host, device: Device, undo: contextlib.ExitStack) -> None:
    """The guest's keys go before the device does, which may be another guest's at once.

    If the store does not let us, the disk stays as well.
    """
    try:
        host.store.transaction(lambda store: store.apply(retraction(device)))
    except OSError:
        undo.pop_all()
        raise


def connect(host: Host, disk: Disk, attached: Attached, store: Snapshot) -> None:
    """Write the device and ``connected``, if the backend still waits for it.

    Whether it is there is asked outside: in here, our own changes have made it by then.
    """
    base = disk.device.path
    guards = [f"{base}/state", f"{base}/physical-device"]
    changes = [Write(f"{base}/{key}", value) for key, value in attached.keys.items()]
    changes += [Write(f"{base}/hotplug-status", CONNECTED), Write(f"{base}/hotplug-error", None)]
    state, physical = store.read_and_apply(guards, changes)
    if host.known is not None:
        host.known.confirm()
    if state is None and host.store.read(base) is None:
        raise BackendGoneError(f"{base} was removed while its disk was being attached")
    if attached.written is None or state not in STARTED:
        refuse_state(disk.device, state)
    if physical != (attached.written or disk.physical_device):
        raise ConnectedMeanwhileError(f"{base} was given its device by another run")


def remove(host: Host, event: Event) -> None:
    """Take back what was attached; what the path is by now does not matter.

    Nothing is written: the toolstack deletes the backend next.
    """
    device = event.device
    with host.journal.claim(device, host.deadline) as entry:
        if entry.attachment is not None:
            take_back(host, device, entry)
            return
        disk = Disk.read_rest(host.store, device)
        if disk.params:
            table.detach_unrecorded(host, disk, event)


def reclaim(host: Host, event: Event) -> None:
    """Take back what a backend left behind that vanished without a ``remove``.

    libxl deletes the backend of a forced removal that takes too long, and runs no script then.
    """
    with host.journal.claim(event.device, host.deadline) as entry:
        if entry.attachment is not None and not is_wanted(host, event.device):
            take_back(host, event.device, entry)


def is_wanted(host: Host, device: Device) -> bool:
    """Whether a backend is there and was given its device."""
    keys = ("physical-device", "hotplug-status")
    physical, status = host.store.read_many([f"{device.path}/{key}" for key in keys])
    return physical is not None or status == CONNECTED


def take_back(host: Host, device: Device, entry: Entry) -> None:
    """Detach what the journal has for this device, and forget it."""
    attachment = entry.attachment
    if attachment is not None:
        table.detach(host, device, attachment)
        entry.clear()
