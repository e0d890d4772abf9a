"""One side: a scenario's host, built for real, and what is done on it.

The names, domids and device ids are the same on both sides; the folder, the store and the
numbers of the loop devices are each side's own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from differential import scenario as a
from differential.binding import attach, attach_to
from differential.folder import Folder
from differential.observer import Observer, spelled
from harness import guests
from harness.locks import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from differential.folder import Target
    from differential.observation import Observation
    from harness.guests import Backend, Guest
    from harness.run import Result, Runner


@dataclass(slots=True)
class World:
    """A side, for one scenario."""

    runner: Runner
    path: Path  # of the folder
    template: bytes  # an empty file system
    scenario: a.Scenario
    observer: Observer = field(init=False)
    folder: Folder = field(init=False)
    guests: list[Guest] = field(default_factory=list)
    disks: list[Backend] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.observer = Observer(self.runner.place, self.path, self.runner.script("block"))
        self.folder = Folder(self.path, self.observer, self.template, self.scenario.entries)

    # Building

    def build(self) -> None:
        self.folder.fill()
        for index, guest in enumerate(self.scenario.guests):
            self._make_guest(index + 1, guest)
        for index in range(len(self.scenario.disks)):
            self.disks.append(self._make_disk(index))

    def _make_guest(self, domid: int, guest: a.Guest) -> None:
        store = self.runner.place.store
        made = guests.Guest(
            store, domid=domid, vm=guest.vm or None, target=guest.target, name=f"guest-{domid}"
        )
        self.guests.append(made)
        if guest.vm == "":  # to the harness this means: make one up
            store.write(f"{made.home}/vm", b"")

    def _make_disk(self, index: int) -> Backend:
        disk = self.scenario.disks[index]
        number = None
        if disk.holding is not None:
            device = self.folder.device(disk.holding.entry)
            name = self.observer.live[device].number if device is not None else "fe:1"
            number = disk.holding.prefix + name.encode() + disk.holding.suffix
        literal = isinstance(disk.params, a.Literal)
        keys = {
            "type": disk.type,
            "physical-device": number,
            "hotplug-status": disk.status,
            "hotplug-error": disk.error,
            **({} if disk.frontend else {"frontend-id": None}),
        }
        return self.guests[disk.guest % len(self.guests)].disk(
            disk.params.value if literal else self.folder.spell(disk.params),
            disk.mode,
            devid=guests.XVDA + 16 * index,
            dev="xvd" + "abcdefgh"[index],
            state=disk.state,
            kind=disk.kind,
            script=self.runner.script("block"),
            keys=keys,
        )

    # Doing

    def disk(self, operation: a.Operation) -> Backend | None:
        """The backend that an operation is about."""
        number = getattr(operation, "disk", None)
        return None if number is None else self.disks[number % len(self.disks)]

    def close(self, operation: a.Remove) -> None:
        """What libxl does before it runs the script for ``remove``."""
        disk = self.disk(operation)
        if disk.exists:
            disk.close()

    def perform(self, operation: a.Operation) -> Observation:
        """Do it, and look. What cannot be done any more is left out."""
        disk = self.disk(operation)
        if disk is not None:
            result = self._perform_on(disk, operation)
            return self.observer.observe(result, disk.relative.removeprefix("backend/"))
        match operation:
            case a.Unlink():
                self.folder.unlink(operation.entry)
            case a.Replace():
                self.folder.replace(operation.entry, operation.by)
            case a.SetVm():
                self._set_vm(operation)
        return self.observer.observe()

    def _perform_on(self, disk: Backend, operation: a.Operation) -> Result | None:
        match operation:
            case a.Add():
                return self.runner.run(
                    disk,
                    "add",
                    cwd=self.path if operation.inside else "/",
                    variables={operation.bare: None} if operation.bare else {},
                )
            case a.Remove():
                return self.runner.run(disk, "remove")
            case a.Inherit():
                self._inherit(disk)
            case a.Delete():
                self._delete(disk)
            case a.Create():
                self._delete(disk)
                index = self.disks.index(disk)
                self.disks[index] = self._make_disk(index)
            case a.Write(key=key, value=None):
                disk.drop(key)
            case a.Write(key=key, value=value) if disk.exists:
                disk.write(key, value)
            case a.Reuse():
                self._reuse(disk)
        return None

    def _inherit(self, disk: Backend) -> None:
        if not disk.exists or disk.read("physical-device") is not None:
            return
        target = self.target(disk, inside=False)
        if target.kind == "none":
            return
        keys = {"physical-device-path": target.real if target.is_link else target.path}
        if target.kind == "file":
            mode = disk.read("mode") or b""
            node = attach(target.real, read_only=b"w" not in mode or target.sealed)
            self.observer.look_at_loops()
            keys = {"node": node, "physical-device-path": node}
            keys["physical-device"] = self.observer.live[node].number
        else:
            keys["physical-device"] = spelled(os.stat(target.real).st_rdev)
        for key, value in {**keys, "hotplug-status": "connected"}.items():
            disk.write(key, value)

    def _delete(self, disk: Backend) -> None:
        disk.delete()
        self.settle()

    def settle(self) -> None:
        """Wait until an agent has seen to the backends that are gone."""
        store, journal = self.runner.place.store, self.runner.place.rundir / "journal"

        def is_seen_to() -> bool:
            names = os.listdir(journal) if journal.exists() else []
            return all(
                store.exists(f"/local/domain/0/backend/{name.replace('.', '/')}") for name in names
            )

        if self.runner.agent is not None:
            wait_until(is_seen_to, "the agent has reclaimed what backends left behind")

    def _reuse(self, disk: Backend) -> None:
        node = (disk.read("node") or b"").decode()
        self.observer.look_at_loops()
        if node and node not in self.observer.live:
            attach_to(node, self.folder.make_spare("spare"))

    def _set_vm(self, operation: a.SetVm) -> None:
        guest = self.guests[operation.guest % len(self.guests)]
        if operation.vm is None:
            guest.store.remove(f"{guest.home}/vm")
        else:
            guest.store.write(f"{guest.home}/vm", operation.vm)

    # Looking

    def target(self, disk: Backend, *, inside: bool) -> Target:
        return self.folder.target(disk.read("params"), inside=inside)

    def tear_down(self) -> None:
        """Leave nothing behind, however far this got."""
        self.folder.empty()
        for path in ("/local/domain", "/vm", "/libxl"):
            self.runner.place.store.remove(path)
        self.settle()
        for left in self.runner.place.rundir.glob("journal/*"):
            left.unlink()
        self.runner.place.block_lock.unlink(missing_ok=True)
        self.runner.place.syslog.take()
