"""A Host without a host: for unit tests of what attaches disks.

Store, index of holders and journal are the real ones or held to the same tests; programs are the
fakes of ``tests/data/bin``, called in this process. A test can let any step be the last: from
then on nothing happens any more, as if the process had been killed.

Parts of the Host that a test gives are used instead: ``World(tmp_path, paths=LocalPaths())``.

    world = World(tmp_path)
    world.disk(5, "aio:/srv/a.img", kind="vbd3")
    world.add(5, script="block-tap")
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fakes_network import FakeFirewall
from fakes_store import FakeStore

from hotplug.agent.deadline import EventDeadline
from hotplug.agent.holders import StoreHolders
from hotplug.agent.journal import FileJournal
from hotplug.config import Config
from hotplug.errors import AbandonedError, DeadlineError, LockTimeoutError
from hotplug.events import Action, Device, Event
from hotplug.handlers import block
from hotplug.ports import FileId, Finished, Host, Number

BIN = Path(__file__).parent / "data" / "bin"
DEVID = 51712


class Killed(BaseException):
    """kill -9 came just now. Nothing catches it."""


def load_tool(name):
    """A fake tool as a module."""
    if str(BIN) not in sys.path:
        sys.path.append(str(BIN))
    loader = importlib.machinery.SourceFileLoader(f"fake_{name.replace('-', '_')}", str(BIN / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def is_tool(path):
    """Python leaves a folder beside them."""
    return path.is_file() and not path.suffix


TOOLS = {path.name: load_tool(path.name) for path in sorted(BIN.iterdir()) if is_tool(path)}
FAKETOOL = sys.modules["faketool"]


@dataclass
class Life:
    """How many more steps a process lives; None is for ever."""

    steps: int | None = None

    def step(self):
        if self.steps is not None:
            self.alive()
            self.steps -= 1

    def alive(self):
        if self.steps is not None and self.steps <= 0:
            raise Killed


@dataclass
class FakePrograms:
    """Runs the fake tools. A program of ``others`` is a function of (argument, variables)."""

    folder: Path
    life: Life = field(default_factory=Life)
    absent: set = field(default_factory=set)
    others: dict = field(default_factory=dict)

    def run(self, argv, deadline, variables=None):
        self.life.alive()
        deadline.check()
        name = os.path.basename(argv[0])
        if name in self.absent or (name not in TOOLS and argv[0] not in self.others):
            raise FileNotFoundError(2, "No such file or directory", argv[0])
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            if argv[0] in self.others:
                status = self.others[argv[0]](argv[1], variables)
            else:
                status = self._tool(name, argv)
        self.life.step()
        self.life.alive()
        return Finished(status, output.getvalue().encode(), errors.getvalue().encode())

    def _tool(self, name, argv):
        try:
            return FAKETOOL.call(TOOLS[name].main, name, list(argv[1:]), self.folder)
        except FAKETOOL.HangError:
            raise DeadlineError(f"gave up after 35 s while running {' '.join(argv)}") from None


@dataclass
class FakeLocks:
    """Knows a deadlock when it sees one."""

    life: Life = field(default_factory=Life)
    held: list = field(default_factory=list)

    @contextlib.contextmanager
    def hold(self, name, deadline):
        self.life.alive()
        deadline.check()
        if name in self.held:
            raise LockTimeoutError(f"the lock '{name}' is held by ourselves")
        self.held.append(name)
        try:
            yield
        finally:
            self.held.remove(name)


@dataclass
class FakeLocated:
    """Something that a path leads to: a block device if it has a number."""

    path: str
    real_path: str
    number: Number | None
    is_link: bool = False
    there: bool = True
    has_write_bit: bool = True

    @property
    def is_block_device(self):
        return self.number is not None

    @property
    def is_file(self):
        return self.number is None

    @property
    def file_id(self):
        return FileId(1, 2)

    def still_there(self):
        return self.there


@dataclass
class FakePaths:
    """``devices`` maps a path to (real path, number), or to a function that returns that."""

    devices: dict = field(default_factory=dict)

    @contextlib.contextmanager
    def locate(self, path):
        found = self.devices.get(path)
        if callable(found):
            found = found()
        if found is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        real_path, number = found
        yield FakeLocated(path, real_path, number, is_link=real_path != path)


class FakeMounts:
    """Nothing is mounted."""

    def of(self, _number):
        return ()


class World:
    """A host that can be killed and started again; what the tools made of it stays."""

    def __init__(self, tmp_path, *, store=None, **parts):
        self.folder = tmp_path / "tools"
        self.folder.mkdir()
        self.store = store or FakeStore()
        self.paths = FakePaths()
        self.life = Life()
        self.absent = set()
        self.others = {}
        self.config = Config(rundir=str(tmp_path), scripts=str(tmp_path / "scripts"))
        self.parts = parts
        self.notes = []

    def tell(self, name, value):
        """Put something into the state of the fake tools."""
        FAKETOOL.write(self.folder, f"{name}.json", value)

    def state(self, name, default=None):
        return FAKETOOL.read(self.folder, f"{name}.json", default)

    @property
    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def host(self, deadline=None):
        parts = {
            "loops": None,
            "nbd": None,
            "links": None,
            "firewall": FakeFirewall(),
            "switch": None,
            "paths": self.paths,
            "locks": FakeLocks(self.life),
            "programs": FakePrograms(self.folder, self.life, self.absent, self.others),
            **self.parts,
        }
        return Host(
            store=self.store,
            mounts=FakeMounts(),
            holders=StoreHolders(self.store),
            journal=FileJournal(self.config.rundir),
            config=self.config,
            deadline=deadline or EventDeadline(35.0),
            instance="test",
            note=self.notes.append,
            **parts,
        )

    def device(self, domid, kind="vbd", devid=DEVID):
        return Device(kind, domid, devid)

    def disk(self, domid, params, *, mode="w", kind="vbd", vm=None, devid=DEVID, **keys):
        """A backend as libxl writes it, of a guest of its own."""
        device = self.device(domid, kind, devid)
        known = {"frontend-id": str(domid), "params": params, "mode": mode, "state": "2"}
        for name, value in {"type": "phy", **known, **keys}.items():
            self.store.write(f"{device.path}/{name}", value.encode())
        self.store.write(f"/local/domain/{domid}/vm", (vm or f"/vm/{domid}").encode())
        return device

    def keys(self, device):
        """The keys of a backend that the toolstack did not write."""
        written = ("frontend-id", "params", "mode", "state", "type")
        names = [name for name in self.store.directory(device.path) or () if name not in written]
        values = self.store.read_many([f"{device.path}/{name}" for name in names])
        return dict(zip(names, values, strict=True))

    def set(self, device, **keys):
        for name, value in keys.items():
            self.store.write(f"{device.path}/{name.replace('_', '-')}", value.encode())

    def add(self, device, script="block", deadline=None):
        self.run(Action.ADD, device, script, deadline)

    def remove(self, device, script="block", deadline=None):
        self.run(Action.REMOVE, device, script, deadline)

    def reclaim(self, device):
        self.run(Action.RECLAIM, device, "block", None)

    def run(self, action, device, script, deadline):
        variables = {"XENBUS_PATH": device.path, "XENBUS_TYPE": device.kind}
        event = Event(action, device, f"/etc/xen/scripts/{script}", (action,), variables)
        getattr(block, action)(self.host(deadline), event)

    def journal(self, device):
        return FileJournal(self.config.rundir).peek(device)

    def add_and_die(self, steps, device, script="block"):
        """Add, and be killed after so many programs. Returns whether it came to that."""
        self.life.steps = steps
        try:
            self.add(device, script)
        except Killed:
            return True
        finally:
            self.life.steps = None
        return False


def abandoned():
    """The deadline of an event that nobody waits for any more."""
    deadline = EventDeadline(35.0)
    deadline.abandon()
    return deadline


__all__ = ["AbandonedError", "DeadlineError", "Killed", "World", "abandoned"]
