"""Random operations on the disks of several guests, and what must be true after each burst.

The draws depend on the seed alone, so that a run can be played again; what an operation does
depends on what it finds (a disk that is there is removed, one that is not is added). Operations of
a burst run at once. Where an operation meets no other one of its burst, its outcome is known
beforehand; of the rest it is only known what may never be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness import control, loops, promises
from harness.bindings import binding, identity
from harness.guests import XVDA, Guest
from harness.locks import wait_until
from harness.sharing_model import MODES, Holder, is_free, violations

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from harness.guests import Backend
    from harness.run import Result, Runner, Running

NAMES = ("a", "b", "b-link", "c", "c-symlink", "d", "e", "f")
DISKS_PER_GUEST = 3
LARGEST_BURST = 24
ONE_EVENT = 0.008  # seconds that one takes, about, when many run
UNTIL_TIDY = 30.0  # seconds; the agent tries again after 10 what it could not take back
KINDS = {"disk": 80, "twice": 6, "image": 6, "foreign": 3, "agent": 5}


@dataclass(frozen=True, slots=True)
class Draw:
    """What the dice say of one operation."""

    kind: str
    disk: int
    name: str
    mode: str
    what: float  # which of the things that can be done
    dies: float  # seconds until the client is killed; 0: it is not


@dataclass(slots=True)
class Disk:
    """A place for a disk; ``backend`` is None while nobody has it."""

    guest: Guest
    user: int
    devid: int
    backend: Backend | None = None
    name: str = ""
    mode: str = ""
    holder: Holder | None = None
    goes: bool = False  # libxl will delete the backend when the script is done


@dataclass(slots=True)
class Operation:
    """A run that was begun, and what must come of it."""

    draw: Draw
    disk: Disk
    action: str
    run: Running
    files: set[tuple[int, int] | None]
    expected: str  # connected, busy, error, removed; "" where that is open


@dataclass(slots=True)
class Chaos:
    """A place full of guests, images and others who use them."""

    runner: Runner
    files: Path
    dice: random.Random
    disks: list[Disk] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)  # name to loop device
    number: int = 0  # of the burst
    done: int = 0
    touched: set[tuple[int, int] | None] = field(default_factory=set)  # images that changed

    def begin(self) -> None:
        for name in NAMES:
            self.make_image(name)
        store = self.runner.place.store
        first, second = Guest(store), Guest(store)
        guests = [
            (first, 1),
            (second, 2),
            (Guest(store, target=first.domid), 1),  # a stubdomain
            (Guest(store, vm=second.vm), 2),  # the same guest, being migrated to this host
            (Guest(store), 3),
            (Guest(store), 4),
        ]
        for guest, user in guests:
            for number in range(DISKS_PER_GUEST):
                self.disks.append(Disk(guest, user, XVDA + 16 * number))

    # The dice.

    def draw(self) -> Draw:
        dice = self.dice
        return Draw(
            kind=dice.choices(list(KINDS), list(KINDS.values()))[0],
            disk=dice.randrange(len(NAMES) * DISKS_PER_GUEST - 6),
            name=dice.choice(NAMES),
            mode=dice.choices(MODES, (5, 5, 1))[0],
            what=dice.random(),
            dies=dice.choices((0.0, dice.uniform(0, ONE_EVENT)), (6, 1))[0],
        )

    def burst(self) -> None:
        """Some operations at once, and the question whether all is well."""
        self.number += 1
        self.touched.clear()
        draws = [self.draw() for _ in range(self.dice.randint(1, LARGEST_BURST))]
        operations: list[Operation] = []
        for draw in draws:
            print(f"burst {self.number}: {draw}")
            operations += getattr(self, f"do_{draw.kind}")(draw, operations)
        results = [operation.run.wait() for operation in operations]
        self.done += len(draws)
        self.delete_removed()
        self.settle()
        for operation, result in zip(operations, results, strict=True):
            self.refuse_surprise(operation, result, operations)
        self.runner.faults.clear()

    # Operations; each returns the runs that it began.

    def do_disk(self, draw: Draw, before: list[Operation]) -> list[Operation]:
        disk = self.disks[draw.disk]
        if self.is_busy(disk, before):
            return []
        if disk.backend is None:
            return [self.add(draw, disk)]
        if draw.what < 0.55:
            return [self.remove(draw, disk)]
        if draw.what < 0.75:
            return [self.start(draw, disk, "add", "connected" if disk.holder else "")]
        self.forget(disk)  # a forced removal that takes too long: no script is run
        return []

    def do_twice(self, draw: Draw, before: list[Operation]) -> list[Operation]:
        """Two runs for one disk at once; afterwards libxl gives it up."""
        disk = self.disks[draw.disk]
        if self.is_busy(disk, before):
            return []
        if disk.backend is None:
            self.make_backend(draw, disk)
            actions = ("add", "add") if draw.what < 0.5 else ("add", "remove")
        else:
            disk.backend.close()
            actions = ("remove", "remove")
        disk.goes = True
        return [self.start(draw, disk, action, "") for action in actions]

    def do_image(self, draw: Draw, _: list[Operation]) -> list[Operation]:
        """An image is deleted, or there is another file of its name."""
        path = self.files / draw.name
        self.touched |= {self.identity(draw.name), None}
        if draw.what < 0.3:
            path.unlink(missing_ok=True)
        else:
            self.make_image(draw.name)
        self.touched.add(self.identity(draw.name))
        return []

    def do_foreign(self, draw: Draw, _: list[Operation]) -> list[Operation]:
        """Somebody binds a loop device to an image, and lets it go another time.

        It may be one that a disk had until a moment ago, whose backend names it as long as libxl
        has not deleted it: then the image is that guest's, for all that the store tells.
        """
        if draw.name in self.foreign:
            self.let_go(draw.name)
        elif (file := self.identity(draw.name)) is not None:
            self.foreign[draw.name] = loops.attach(self.files / draw.name)
            self.touched.add(file)
        return []

    def let_go(self, name: str) -> None:
        """Nobody has taken it away meanwhile, or else it may be anybody's by now."""
        path = self.foreign.pop(name)
        bound = binding(path)
        assert bound is not None, path
        assert not bound.reference.startswith("xen-hotplug"), (path, bound)
        loops.detach(path)

    def do_agent(self, draw: Draw, _: list[Operation]) -> list[Operation]:
        agent = self.runner.agent
        if agent.process.poll() is not None:
            self.runner.start_agent()
        elif draw.what < 0.5:
            agent.kill()
            if draw.what < 0.3:
                self.runner.start_agent()
        elif draw.what < 0.7:
            agent.process.send_signal(signal.SIGHUP)
        else:
            agent.process.send_signal(signal.SIGTERM)
            assert agent.process.wait(20) == 0
        return []

    # What they are made of.

    def is_busy(self, disk: Disk, before: list[Operation]) -> bool:
        """Whether this burst has one for the disk already; then this one does not count."""
        busy = disk.goes or any(other.disk is disk for other in before)
        self.done -= busy
        return busy

    def make_image(self, name: str) -> None:
        """A new file, or a new name of the one that it leads to."""
        path, temporary = self.files / name, self.files / f".{name}"
        target = self.files / name.partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            if name.endswith("-link"):
                os.link(target, temporary)
            elif name.endswith("-symlink"):
                temporary.symlink_to(target.name)
            else:
                loops.make_file(temporary)
            temporary.rename(path)
            temporary.unlink(missing_ok=True)  # rename() of two names of one file does nothing

    def identity(self, name: str) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            return identity(self.files / name)
        return None

    def make_backend(self, draw: Draw, disk: Disk) -> None:
        path = str(self.files / draw.name)
        disk.backend = disk.guest.disk(path, draw.mode, devid=disk.devid)
        disk.name, disk.mode = draw.name, draw.mode

    def add(self, draw: Draw, disk: Disk) -> Operation:
        self.make_backend(draw, disk)
        file = self.identity(draw.name)
        expected = "error"
        if file is not None:
            free = is_free(disk.user, file, draw.mode, self.holders())
            expected = "connected" if free else "busy"
        return self.start(draw, disk, "add", expected)

    def remove(self, draw: Draw, disk: Disk) -> Operation:
        disk.backend.close()
        disk.goes = True
        return self.start(draw, disk, "remove", "removed")

    def start(self, draw: Draw, disk: Disk, action: str, expected: str) -> Operation:
        files = {self.identity(disk.name), disk.holder.file if disk.holder else None}
        run = self.runner.start(disk.backend, action)
        if draw.dies:
            threading.Timer(draw.dies, run.process.kill).start()
            expected = ""
        return Operation(draw, disk, action, run, files, expected)

    def forget(self, disk: Disk) -> None:
        """Delete a backend."""
        if disk.holder is not None:
            self.touched.add(disk.holder.file)
        disk.backend.delete()
        disk.guest.backends.remove(disk.backend)
        disk.backend = disk.holder = None
        disk.goes = False

    def delete_removed(self) -> None:
        for disk in self.disks:
            if disk.goes:
                self.forget(disk)

    # What must be.

    def holders(self) -> list[Holder]:
        return [disk.holder for disk in self.disks if disk.holder is not None]

    def backends(self) -> list[Backend]:
        return [disk.backend for disk in self.disks if disk.backend is not None]

    def settle(self) -> None:
        """Wait until nothing runs, see who has what, and refuse what may not be."""
        place, ours = self.runner.place, set(self.foreign.values())
        agent = self.runner.agent
        control.wait_until_idle(place)
        assert promises.broken(place, self.backends(), self.files, ours) == []
        for disk in self.disks:
            disk.holder = self.holder(disk)
        assert violations(self.holders()) == []
        if agent.process.poll() is None:

            def left() -> list[str]:
                return promises.unsettled(place, self.backends(), self.files, ours)

            wait_until(lambda: not left(), "all is tidy", UNTIL_TIDY, lambda: "; ".join(left()))
        assert "Traceback" not in agent.log.read_text(errors="replace")

    def holder(self, disk: Disk) -> Holder | None:
        if disk.backend is None or disk.backend.read("hotplug-status") != b"connected":
            return None
        bound = binding(disk.backend.read("node").decode())
        assert bound.read_only == (disk.mode == "r"), disk
        if disk.holder is not None:
            assert bound.file == disk.holder.file, f"{disk} has another file than before"
            return disk.holder
        known = {self.identity(disk.name), *self.touched}
        assert bound.file in known, f"{disk} has {bound.file}, not one of {known}"
        return Holder(disk.backend.relative, disk.user, bound.file, disk.mode, self.number)

    def refuse_surprise(
        self, operation: Operation, result: Result, operations: list[Operation]
    ) -> None:
        """Where nobody else meant the same file, what came of it is what was to be expected."""
        users = Counter(file for other in operations for file in other.files)
        crowded = any(users[file] > 1 or file in self.touched for file in operation.files - {None})
        moved = None in operation.files and None in self.touched
        if not operation.expected or crowded or moved:
            assert result.status in (0, 1, -signal.SIGKILL), (operation, result)
            return
        if operation.expected in ("connected", "removed"):
            assert result.status == 0, (operation, result)
        else:
            status = operation.disk.backend.read("hotplug-status")
            assert (result.status, status) == (1, operation.expected.encode()), (operation, result)
            assert operation.disk.backend.read("hotplug-error"), operation

    # The end.

    def finish(self) -> None:
        """Everything is removed; then nothing is there."""
        if self.runner.agent.process.poll() is not None:
            self.runner.start_agent()
        for name in tuple(self.foreign):
            self.let_go(name)
        for disk in self.disks:
            if disk.backend is not None:
                result = self.runner.remove(disk.backend)
                assert result.status == 0, result
                self.forget(disk)
        self.settle()
