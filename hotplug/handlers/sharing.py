"""May this disk be opened? Facts in, verdict out.

The rules are the stock scripts', as they were meant: a reader tolerates readers, a writer
tolerates nobody, other vdevs and stubdomains of the same guest count as the same user, and
``w!`` asks nothing. Unlike stock, a holder in ``w!`` is a writer, a file is known by its
filesystem device and inode, backends of every kind count, and two guests whose identity we may
not read are two guests.

A backend that we may not read (only in a driver domain, and put there by hand) cannot be ours to
serve now, but it may have been. Who has a file is known without it: a loop device is bound to
the file, and ours say for whom. So a file that nobody has may be had, and a device, of which only
the store knows, may not until the backend can be read again.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import DeviceBusyError, HotplugError
from hotplug.handlers.disk import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hotplug.events import Device
    from hotplug.ports import Holder, Host, Loop, Mount, Number, Store


class User(enum.Enum):
    """Who holds a disk that we want."""

    LOCAL = "local"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Party:
    """A guest's identity. None: the key is absent; ``readable`` False: we may not see it."""

    domid: int
    vm: bytes | None
    target_vm: bytes | None  # the vm of the guest that this stubdomain serves
    readable: bool = True

    @classmethod
    def read(cls, store: Store, domid: int) -> Party:
        try:
            vm, target = store.read_many(
                [f"/local/domain/{domid}/vm", f"/local/domain/{domid}/target"]
            )
            served = None
            if target and target.isdigit():
                served = store.read(f"/local/domain/{int(target)}/vm")
        except PermissionError:
            return cls(domid, None, None, readable=False)
        return cls(domid, _plain(vm), _plain(served))


def _plain(vm: bytes | None) -> bytes | None:
    """During a local migration ``vm`` may carry a suffix -1: the same VM all the same."""
    return vm.removesuffix(b"-1") if vm is not None else None


def same_vm(me: Party, other: Party) -> bool:
    """Whether two domains are one user: the same guest, or its stubdomains."""
    if me.domid == other.domid:
        return True
    if not (me.readable and other.readable):
        return False
    if other.vm is None and me.vm is not None:
        return True  # the holder is being torn down: xenstore forgets the domain first
    mine = {me.vm, me.target_vm} - {None}
    return bool(mine & {other.vm, other.target_vm})


def user_in_conflict(
    wanted: Mode,
    mounts: Iterable[Mount],
    holders: Iterable[Holder],
    is_same_vm: Callable[[Holder], bool],
) -> User | None:
    """The first user that forbids ``wanted``; mounts on this host come first."""
    if wanted is Mode.FORCED:
        return None
    for mount in mounts:
        if wanted is Mode.WRITE or not mount.read_only:
            return User.LOCAL
    for holder in holders:
        if (wanted is Mode.WRITE or Mode.parse(holder.mode).writes) and not is_same_vm(holder):
            return User.GUEST
    return None


def busy(prefix: str, wanted: Mode, user: User) -> DeviceBusyError:
    """The stock scripts' sentence, to the letter: scripts of others look for it."""
    where = "a guest" if user is User.GUEST else "the privileged"
    when = "now" if user is User.GUEST else "by a guest"
    held, wish = ("", "") if wanted is Mode.WRITE else ("read-write ", "read-only ")
    return DeviceBusyError(
        f"{prefix}{held}in {where} domain,\nand so cannot be mounted {wish}{when}."
    )


def refuse_device(
    host: Host, device: Device, domid: int, path: str, number: Number, wanted: Mode
) -> None:
    """DeviceBusyError if a block device is in use in a way that forbids ``wanted``."""
    holders = host.holders.of(number)
    user = _user(host, device, domid, wanted, host.mounts.of(number), holders)
    if user is not None:
        raise busy(f"Device {path} is mounted ", wanted, user)
    if wanted is not Mode.FORCED:
        refuse_unknown(host, domid, path)


def refuse_file(host: Host, device: Device, domid: int, path: str, own: Loop, wanted: Mode) -> None:
    """DeviceBusyError if any loop device over this file forbids ``wanted``; mounts come first.

    ``own`` is the one that the guest shall have. Whether it still is what it was is asked later.
    """
    if wanted is Mode.FORCED:
        return
    loops = [own, *host.loops.bound_to(own.backing, but=own.number)]
    prefix = f"File {path} is loopback-mounted through "
    _refuse_loops(host, device, domid, loops, prefix, wanted)
    for loop in loops:
        if loop.reference != reference(host, device):
            refuse_unknown(host, domid, path, owner_path(host, loop))


def refuse_other_loops(
    host: Host, device: Device, domid: int, path: str, loop: Loop, wanted: Mode
) -> None:
    """DeviceBusyError if a loop device's file is in use through others that overlap with it."""
    if wanted is Mode.FORCED:
        return
    others = [
        other
        for other in host.loops.bound_to(loop.backing)
        if other.number != loop.number and overlap(loop, other)
    ]
    prefix = f"Device {path} is on a file that is loopback-mounted through "
    _refuse_loops(host, device, domid, others, prefix, wanted)


def overlap(one: Loop, other: Loop) -> bool:
    """Whether two loop devices on one file have bytes of it in common."""
    first, second = sorted((one, other), key=lambda loop: loop.offset)
    return not first.size_limit or first.offset + first.size_limit > second.offset


def _refuse_loops(
    host: Host, device: Device, domid: int, loops: Sequence[Loop], prefix: str, wanted: Mode
) -> None:
    uses: list[tuple[Loop, Sequence[Mount], Sequence[Holder]]]
    uses = [(loop, host.mounts.of(loop.device_number), ()) for loop in loops]
    uses += [(loop, (), _holders(host, loop)) for loop in loops]
    for loop, mounts, holders in uses:
        user = _user(host, device, domid, wanted, mounts, holders)
        if user is not None:
            raise busy(f"{prefix}{loop.device_number},\nwhich is mounted ", wanted, user)


def refuse_unknown(host: Host, domid: int, path: str, owner: str | None = None) -> None:
    """HotplugError if a backend of another guest may have this and we may not read it.

    ``owner`` is the backend that has it if anybody has.
    """
    for hidden in host.holders.hidden():
        if hidden.split("/")[2:3] == [str(domid)]:
            continue  # our guest's own
        if owner is None or f"{owner}/".startswith(f"{hidden}/"):
            raise HotplugError(
                f"{hidden} in xenstore may not be read by this domain, so nobody knows whether"
                f" it has {path}; remove it or make it readable"
            )


def owner_path(host: Host, loop: Loop) -> str | None:
    """The backend for which we bound a loop device; None if it is not ours."""
    if not loop.reference.startswith(mark(host)):
        return None
    return "backend/" + os.fsdecode(loop.reference.removeprefix(mark(host))).replace(".", "/")


def _holders(host: Host, loop: Loop) -> Sequence[Holder]:
    """The backends that hold a loop device.

    One that carries the reference of another backend of ours was given on since: an old backend
    of a file that still names its number is not a user any more. Who asked for the device is.
    """
    holders = host.holders.of(loop.device_number)
    if loop.reference.startswith(mark(host)):
        return [
            holder
            for holder in holders
            if reference(host, holder.device) == loop.reference or may_be_device(holder.params)
        ]
    return holders


def may_be_device(params: bytes) -> bool:
    """Whether ``params`` may name a block device; a relative name may, it is one of /dev."""
    return not params.startswith(b"/") or params.startswith(b"/dev/")


def reference(host: Host, device: Device) -> bytes:
    """What a loop device of ours carries in lo_file_name, to be known again after a crash."""
    return mark(host) + device.key.encode()


def mark(host: Host) -> bytes:
    """What the reference of every loop device of ours begins with."""
    return f"{host.instance}:".encode()


def _user(
    host: Host,
    device: Device,
    domid: int,
    wanted: Mode,
    mounts: Sequence[Mount],
    holders: Sequence[Holder],
) -> User | None:
    others = [holder for holder in holders if holder.device != device]
    me: Party | None = None

    def is_same_vm(holder: Holder) -> bool:
        nonlocal me
        if me is None:
            me = Party.read(host.store, domid)
        return same_vm(me, Party.read(host.store, holder.device.domid))

    return user_in_conflict(wanted, mounts, others, is_same_vm)
