"""Disks behind a tapdisk (blktap): ``<type>:<file>``, for instance ``vhd:/srv/disk.vhd``.

For kind vbd3 the toolstack's tapback finds the tapdisk by the keys ``pid``, ``minor`` and
``physical-device-path``; for vbd the kernel's blktap driver offers a block device. ``tap-ctl`` is
used step by step (allocate, spawn, attach, open), which every generation of it knows: ``create``
is the same in one, and a run that is killed inside it leaves what nobody knows of.

One tapdisk serves an image for all who may share it: a guest and its stubdomain would corrupt it
with two. So looking for one and starting one is done under a lock for this image, and it is taken
down by the last backend that needs it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.targets import Attached, tapdisk, tool, users
from hotplug.handlers.targets.phy import device_keys
from hotplug.ports import Attachment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Deadline, Entry, Host

IN_FLIGHT = "tap"  # lock: held while there may be a number or a tapdisk that serves nothing yet
KERNELLESS = "vbd3"  # the kind whose backend is tapback, not blkback


@dataclass(frozen=True, slots=True)
class Image:
    """What a tapdisk is to open."""

    type: str
    file: str

    @classmethod
    def parse(cls, params: str) -> Image:
        kind, _, file = params.partition(":")
        if not kind or not file:
            raise HotplugError("Cannot parse required parameters")
        return cls(kind, file)

    def __str__(self) -> str:
        return f"{self.type}:{self.file}"

    @property
    def lock(self) -> str:
        """Held while a tapdisk for this image is looked for, started or taken down."""
        return tool.lock_name("tap", str(self))

    def is_it(self, params: bytes) -> bool:
        return params == os.fsencode(str(self))

    def is_same_file(self, params: bytes) -> bool:
        """The same file under whatever type is the same disk to the sharing check."""
        return params.partition(b":")[2] == os.fsencode(self.file)


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:  # noqa: ARG001 - the table's shape
    """Check the words and, where the kernel's driver is needed, that it is there."""
    image = Image.parse(disk.params)
    if disk.device.kind != KERNELLESS:
        tapdisk.refuse_without_driver(host)

    def refuse_sharing() -> None:
        prefix = f"tap {image.type} file {image.file} in use "
        users.refuse(host, disk, prefix, image.is_same_file)

    def attach(entry: Entry, undo: ExitStack) -> Attached:
        grace = tool.Grace(host.deadline)
        undo.callback(tool.undo_quietly, lambda: give_up(host, disk.device, entry, grace))
        with host.locks.hold(image.lock, host.deadline):
            pid, minor = reuse(host, image, entry) or start(host, image, entry)
        keys = {"pid": b"%d" % pid, "minor": b"%d" % minor}
        if disk.device.kind == KERNELLESS:
            # A socket has no device number, so there is no physical-device: tapback would use it.
            keys["physical-device-path"] = b"/run/blktap-control/nbd%d.%d" % (pid, minor)
            return Attached(keys, refuse_sharing)
        return offer(host, f"/dev/xen/blktap-2/tapdev{minor}", keys, refuse_sharing, resources)

    return attach


def reuse(host: Host, image: Image, entry: Entry) -> tuple[int, int] | None:
    """The tapdisk that has this image open already, and its number."""
    rows = tapdisk.rows(host, host.deadline)
    for row in rows:
        if row.params == str(image) and row.pid is not None and row.minor is not None:
            record(entry, image, pid=row.pid, minor=row.minor)
            return row.pid, row.minor
    # Should we die before we can note which number or process we were given, these were not it.
    numbers = " ".join(str(row.minor) for row in rows if row.pid is None)
    idle = " ".join(str(row.pid) for row in rows if row.minor is None)
    record(entry, image, other_minors=numbers, other_pids=idle)
    return None


def start(host: Host, image: Image, entry: Entry) -> tuple[int, int]:
    """A tapdisk of our own; the journal knows each part as soon as it is there."""
    with host.locks.hold(IN_FLIGHT, host.deadline):
        minor = tapdisk.allocate(host)
        record(entry, image, minor=minor)
        pid = tapdisk.spawn(host, minor)
        record(entry, image, pid=pid)
        tapdisk.attach(host, pid, minor)
    tapdisk.open_image(host, pid, minor, str(image))
    return pid, minor


def record(entry: Entry, image: Image, **facts: str | int) -> None:
    """Note more about what is being attached."""
    known = entry.attachment.facts if entry.attachment is not None else {}
    first = {"path": image.file, "params": str(image)}
    entry.record(Attachment("tap", {**first, **known, **facts}))


def offer(
    host: Host,
    path: str,
    keys: Mapping[str, bytes],
    refuse_sharing: Callable[[], None],
    resources: ExitStack,
) -> Attached:
    """The block device of the kernel's driver."""
    try:
        located = resources.enter_context(host.paths.locate(path))
    except OSError:
        located = None
    if located is None or not located.is_block_device:
        raise HotplugError(f'blktap "{path}" is not a block dev')

    def verify() -> None:
        if not located.still_there():
            raise HotplugError(f"{path} was replaced while it was being attached")

    return Attached({**keys, **device_keys(path, str(located.number))}, refuse_sharing, verify)


def give_up(host: Host, device: Device, entry: Entry, deadline: Deadline) -> None:
    """Undo. What others need by now stays in the journal until our backend is removed."""
    if entry.attachment is not None and release(host, device, entry.attachment.facts, deadline):
        entry.clear()


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Take the tapdisk down, unless another backend needs it: then that one will."""
    release(host, device, attachment.facts, host.deadline)


def release(host: Host, device: Device, facts: Mapping[str, str | int], deadline: Deadline) -> bool:
    """Take down what the journal says; False if another backend needs it."""
    image = Image.parse(str(facts["params"]))
    pid, minor = facts.get("pid"), facts.get("minor")
    with host.locks.hold(image.lock, deadline):
        rows = tapdisk.rows(host, deadline)
        if any((row.pid, row.minor, row.params) == (pid, minor, str(image)) for row in rows):
            host.holders.refresh()
            if users.is_needed(host, device, str(image), image.is_it):
                return False
            tapdisk.destroy(host, deadline, int(pid or 0), int(minor or 0))
            return True
        with host.locks.hold(IN_FLIGHT, deadline):
            clean(host, facts, deadline)
    return True


def clean(host: Host, facts: Mapping[str, str | int], deadline: Deadline) -> None:
    """Take down a tapdisk that was not finished, by a run that may not have noted all of it.

    Nothing of ours is in flight while we hold the lock. So a number or a tapdisk that serves
    nothing, and was not there before, is what such a run left.
    """
    rows = tapdisk.rows(host, deadline)
    minors = [row.minor for row in rows if row.minor is not None and row.pid is None]
    pids = [row.pid for row in rows if row.pid is not None and row.minor is None]
    if "minor" in facts:
        minors = [int(facts["minor"])]
    else:
        minors = [minor for minor in minors if str(minor) not in words(facts, "other_minors")]
        pids = []  # a tapdisk is started for a number that is known
    if "pid" in facts:
        pids = [int(facts["pid"])]
    else:
        pids = [pid for pid in pids if str(pid) not in words(facts, "other_pids")]
    for minor in minors:
        tapdisk.clean(host, deadline, minor, pids)


def words(facts: Mapping[str, str | int], name: str) -> list[str]:
    return str(facts.get(name, "")).split()


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:  # noqa: ARG001 - the table's shape
    """Take down a tapdisk that the stock script started for this backend.

    Since Xen 4.19 it wrote which one; before, there is only the image to know it by.
    """
    base = disk.device.path
    pid, minor = host.store.read_many([f"{base}/pid", f"{base}/minor"])
    if minor is None and disk.physical_device is None:
        return  # nothing was attached
    image = Image.parse(disk.params)
    for row in tapdisk.rows(host, host.deadline):
        if row.params != str(image) or row.pid is None or row.minor is None:
            continue
        if minor is None or (pid, minor) == (b"%d" % row.pid, b"%d" % row.minor):
            facts: dict[str, str | int] = {"params": str(image)}
            facts |= {"pid": row.pid, "minor": row.minor}
            release(host, disk.device, facts, host.deadline)
            return
