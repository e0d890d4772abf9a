"""The kernel's ports without a kernel, for unit tests. Held to the same tests as the real ones.

Each can be told to fail: ``fake.fail("attach", OSError(...))`` lets the next call of that name
raise, and ``fake.calls`` says what was called.

    paths = FakePaths()
    paths.add_file("/srv/a.img")
    loops = FakeLoops()
    with paths.locate("/srv/a.img") as located, located.open(writable=True) as backing:
        loop = loops.attach(backing, LoopOptions(), b"reference")
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
from dataclasses import dataclass, field

from hotplug.errors import LockTimeoutError
from hotplug.ports import FileId, Finished, Loop, Mount, Number

DEVICE = 65024  # st_dev of all fake files
LOOP_MAJOR = 7
MAX_LINKS = 40


class FakeDeadline:
    """A clock that only moves when it is told to; ``patience`` checks, then it is abandoned."""

    def __init__(self, seconds=10.0, abandoned=None):
        self.seconds = seconds
        self.abandoned = abandoned
        self.stages = []

    def check(self):
        if self.abandoned is not None:
            raise self.abandoned

    def remaining(self):
        return self.seconds

    def stage(self, what):
        self.stages.append(what)

    def hold(self, let_go):
        self.let_go = let_go

    @contextlib.contextmanager
    def committing(self):
        self.check()
        yield


class Failing:
    """What all fakes have in common: calls are noted, and may fail on demand."""

    def __init__(self):
        self.calls = []
        self._failures = {}

    def fail(self, call, error):
        """Let the next call of that name raise."""
        self._failures.setdefault(call, []).append(error)

    def _called(self, call, *arguments):
        self.calls.append((call, *arguments))
        if self._failures.get(call):
            raise self._failures[call].pop(0)


class FakeFile(io.BytesIO):
    """An open file, as Located.open gives it."""

    def __init__(self, name, file_id, *, writable):
        super().__init__()
        self.name = name
        self.file_id = file_id
        self.is_writable = writable


def identity(backing):
    """Which file a file object is: a fake one or a real one."""
    if isinstance(backing, FakeFile):
        return backing.file_id, backing.is_writable
    status = os.fstat(backing.fileno())
    return FileId(status.st_dev, status.st_ino), backing.writable()


class FakeLoops(Failing):
    """Loop devices. ``open_elsewhere`` holds the numbers that somebody else has open."""

    def __init__(self):
        super().__init__()
        self.devices = {}
        self.names = {}
        self.open_elsewhere = set()

    def attach(self, backing, options, reference):
        self._called("attach", reference)
        if len(reference) > 63 or b"\0" in reference:
            raise ValueError(f"{reference!r} is no reference: 63 bytes, none of them NUL")
        file_id, writable = identity(backing)
        if not (writable or options.read_only):
            raise OSError(errno.EROFS, "a loop device on it cannot be written", backing.name)
        loop = self.bind(file_id, reference=reference, read_only=options.read_only)
        self.names[loop.number] = str(backing.name)
        return loop

    def bind(self, backing, *, reference=b"", read_only=False, offset=0):
        """Bind a device, as somebody else might."""
        number = next(n for n in range(1 << 20) if n not in self.devices)
        device_number = Number(LOOP_MAJOR, number)
        loop = Loop(number, device_number, backing, offset, 0, read_only, False, reference)
        self.devices[number] = loop
        return loop

    def get(self, number):
        self._called("get", number)
        return self.devices.get(number)

    def is_still(self, loop):
        self._called("is_still", loop)
        now = self.devices.get(loop.number)
        return now is not None and (now.backing, now.reference) == (loop.backing, loop.reference)

    def below(self, device):
        self._called("below", device)
        return self.devices.get(device.minor) if device.major == LOOP_MAJOR else None

    def detach(self, number, *, only_if):
        self._called("detach", number)
        loop = self.devices.get(number)
        if loop is None or not only_if(loop):
            return False
        if number in self.open_elsewhere:
            self.devices[number] = dataclasses.replace(loop, autoclear=True)
        else:
            del self.devices[number]
            self.names.pop(number, None)
        return True

    def close_elsewhere(self, number):
        """The last close of a device that somebody else had open."""
        self.open_elsewhere.remove(number)
        if self.devices[number].autoclear:
            del self.devices[number]

    def all(self):
        self._called("all")
        return list(self.devices.values())

    def backing_name(self, number):
        self._called("backing_name", number)
        return self.names.get(number)

    def bound_to(self, backing, *, but=None):
        self._called("bound_to", backing)
        others = (loop for number, loop in self.devices.items() if number != but)
        return [loop for loop in others if loop.backing == backing]


@dataclass
class FakeNode:
    """What a name stands for."""

    file_id: FileId
    kind: str = "file"  # file, device, directory, other, link
    number: Number | None = None
    mode: int = 0o644
    target: str = ""
    refuses: dict = field(default_factory=dict)  # writable: the error of opening it so


class FakePaths(Failing):
    """Names. Absolute ones only, and links only as the last component."""

    def __init__(self):
        super().__init__()
        self.nodes = {}
        self._inode = 0

    def _add(self, path, **facts):
        self._inode += 1
        self.nodes[path] = node = FakeNode(FileId(DEVICE, self._inode), **facts)
        return node

    def add_file(self, path, mode=0o644):
        return self._add(path, mode=mode)

    def add_directory(self, path):
        return self._add(path, kind="directory")

    def add_fifo(self, path):
        return self._add(path, kind="other")

    def add_device(self, path, number):
        return self._add(path, kind="device", number=number)

    def add_link(self, path, target):
        return self._add(path, kind="link", target=target)

    def add_name(self, path, other):
        """A hard link."""
        self.nodes[path] = self.nodes[other]

    def remove(self, path):
        del self.nodes[path]

    def rename(self, old, new):
        self.nodes[new] = self.nodes.pop(old)

    def follow(self, path):
        """The last name of a chain of links, and what it stands for."""
        for _ in range(MAX_LINKS):
            node = self.nodes.get(path)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if node.kind != "link":
                return path, node
            path = os.path.normpath(os.path.join(os.path.dirname(path), node.target))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    @contextlib.contextmanager
    def locate(self, path):
        self._called("locate", path)
        yield FakeLocated(self, path, *self.follow(path))


class FakeLocated:
    """A name as it was when it was looked up."""

    def __init__(self, paths, path, real_path, node):
        self._paths = paths
        self._node = node
        self.path = path
        self.real_path = real_path

    @property
    def is_link(self):
        node = self._paths.nodes.get(self.path)
        return node is not None and node.kind == "link"

    @property
    def is_file(self):
        return self._node.kind == "file"

    @property
    def is_block_device(self):
        return self._node.kind == "device"

    @property
    def number(self):
        if self._node.number is None:
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), self.path)
        return self._node.number

    @property
    def file_id(self):
        return self._node.file_id

    @property
    def has_write_bit(self):
        return bool(self._node.mode & 0o222)

    def open(self, *, writable):
        self._paths._called("open", self.path, writable)
        if not self.is_file:
            raise OSError(errno.EINVAL, "is not a regular file", self.path)
        if writable in self._node.refuses:
            raise self._node.refuses[writable]
        return FakeFile(self.real_path, self.file_id, writable=writable)

    def still_there(self):
        self._paths._called("still_there", self.path)
        try:
            _, now = self._paths.follow(self.path)
        except OSError:
            return False
        if self.is_block_device:
            return now.number == self._node.number
        return now.file_id == self.file_id


class FakeMounts(Failing):
    """What is mounted: ``mount(number, read_only=True)``."""

    def __init__(self):
        super().__init__()
        self.mounts = []

    def mount(self, number, *, read_only=False):
        self.mounts.append(Mount(number, read_only))

    def of(self, number):
        self._called("of", number)
        return [mount for mount in self.mounts if mount.number == number]


class FakeLocks(Failing):
    """Locks that nobody waits for: what is held stays held, so a wait is a timeout at once.

    Two of them on the same ``held`` are two processes.
    """

    def __init__(self, directory="/run/fake", held=None):
        super().__init__()
        self.directory = directory
        self.held = held if held is not None else {}

    @contextlib.contextmanager
    def hold(self, name, deadline):
        self._called("hold", name)
        path = f"{self.directory}/{name}"
        if path in self.held:
            deadline.check()
            raise LockTimeoutError(
                f"the lock {path} was not free within {deadline.remaining():.0f} s;"
                f" it is held by {self.held[path]}"
            )
        self.held[path] = "this process"
        try:
            yield
        finally:
            del self.held[path]


class FakePrograms(Failing):
    """Programs by name: a function of (argv, variables), or what it finished with."""

    def __init__(self, **programs):
        super().__init__()
        self.programs = programs

    def run(self, argv, deadline, variables=None):
        self._called("run", tuple(argv), dict(variables or {}))
        deadline.check()
        program = self.programs.get(os.path.basename(argv[0]))
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
        return program if isinstance(program, Finished) else program(argv, variables)
