"""The files of a side: a scenario's entries, made for real in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from differential import scenario as a
from differential.binding import attach
from differential.observer import bound_below, spelled
from harness import loops
from harness.locks import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from differential.observer import Observer

# <linux/fs.h>
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10

# Links may dangle, everything else needs what it is made of.
ORDER = (a.File, a.Odd, a.HardLink, a.Device, a.Link)


@dataclass(frozen=True, slots=True)
class Target:
    """What ``params`` lead to, looked at independently of any script."""

    kind: str  # device, file or none
    path: bytes = b""  # as it was asked for, absolute
    real: bytes = b""  # every link followed
    is_link: bool = False
    token: str = ""  # of the loop device, of the file
    has_write_bit: bool = True
    sealed: bool = False  # it cannot be opened for writing


@dataclass(slots=True)
class Folder:
    """A folder and what was made in it; it undoes all of it."""

    path: Path
    observer: Observer
    template: bytes  # an empty file system
    entries: tuple[a.Entry, ...]
    devices: dict[int, str] = field(default_factory=dict)  # entry -> /dev/loop7
    mounted: dict[str, bool] = field(default_factory=dict)  # token -> read-only
    _mounts: list[bytes] = field(default_factory=list)
    _sealed: list[bytes] = field(default_factory=list)
    _spares: int = 0

    def fill(self) -> None:
        self.path.mkdir()
        for index, entry in sorted(
            enumerate(self.entries), key=lambda pair: ORDER.index(type(pair[1]))
        ):
            self._make(index, entry)
        for entry in self._files:  # last, because a sealed file gets no hard links
            if entry.sealed:
                set_immutable(self.at(entry.name), value=True)
                self._sealed.append(self.at(entry.name))

    def at(self, name: bytes) -> bytes:
        return os.fsencode(self.path) + b"/" + name

    def entry(self, index: int) -> a.Entry:
        return self.entries[index % len(self.entries)]

    def device(self, index: int) -> str | None:
        """The loop device behind an entry, if it is a device."""
        return self.devices.get(index % len(self.entries))

    @property
    def _files(self) -> list[a.File]:
        return [entry for entry in self.entries if isinstance(entry, a.File)]

    def _make(self, index: int, entry: a.Entry) -> None:
        path, files = self.at(entry.name), self._files
        match entry:
            case a.File():
                self.make_file(path, entry.name, entry.size, entry.permissions)
            case a.Device():
                self._make_device(index, entry)
            case a.HardLink() if files:
                os.link(self.at(files[entry.to % len(files)].name), path)
            case a.HardLink():
                self.make_file(path, entry.name)
            case a.Link():
                name = b"nothing" if entry.to is None else self.entry(entry.to).name
                os.symlink(self.at(name) if entry.absolute else name, path)
            case a.Odd(kind="directory"):
                os.mkdir(path)
            case a.Odd(kind="fifo"):
                os.mkfifo(path)
            case a.Odd():
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))

    def make_file(
        self, path: bytes, name: bytes, size: int = 65536, permissions: int = 0o644
    ) -> None:
        """Make a file, and a token for it: a later file of the same name gets another."""
        with open(path, "xb") as file:
            file.truncate(size)
        os.chmod(path, permissions)
        token = name.decode(errors="backslashreplace")
        while token in self.observer.files.values():
            token += "'"
        facts = os.stat(path)
        self.observer.files[facts.st_dev, facts.st_ino] = token

    def make_spare(self, name: str) -> bytes:
        """A file that no entry names; its path."""
        self._spares += 1
        path = self.at(b".%s-%d" % (name.encode(), self._spares))
        self.make_file(path, b"%s %d" % (name.encode(), self._spares))
        return path

    def _make_device(self, index: int, entry: a.Device) -> None:
        files = self._files
        if entry.over is None or not files:
            image = self.at(b".image-" + entry.name)
            self.make_file(image, b"image of " + entry.name)
        else:
            image = self.at(files[entry.over % len(files)].name)
        if entry.mounted:
            with open(image, "r+b") as file:
                file.truncate(entry.offset + len(self.template))
                file.seek(entry.offset)
                file.write(self.template)
        device = self.devices[index] = attach(image, offset=entry.offset)
        os.mknod(self.at(entry.name), stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        self.observer.look_at_loops()
        if entry.mounted:
            self._mount(device, entry)

    def _mount(self, device: str, entry: a.Device) -> None:
        point = self.at(b".mount-" + entry.name)
        os.mkdir(point)
        subprocess.run(["mount", "-o", entry.mounted, device, point], check=True)
        self._mounts.append(point)
        self.mounted[self.observer.live[device].bound.token] = entry.mounted == "ro"

    # What happens to entries

    def unlink(self, index: int) -> None:
        path = self.at(self.entry(index).name)
        if os.path.lexists(path) and not self.is_sealed(path):
            (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)

    def replace(self, index: int, by: str) -> None:
        """Let something else have an entry's name."""
        name = self.entry(index).name
        path, other = self.at(name), next(iter(self.devices.values()), None)
        if self.is_sealed(path):
            return
        with contextlib.suppress(FileNotFoundError):
            self._spares += 1
            os.rename(path, self.at(b".aside-%d" % self._spares))
        match by:
            case "file":
                self.make_file(path, name)
            case "link":
                os.symlink(self.make_spare("elsewhere"), path)
            case "device" if other is not None:
                os.mknod(path, stat.S_IFBLK | 0o600, os.stat(other).st_rdev)
            case _:
                os.mkdir(path)

    def is_sealed(self, path: bytes) -> bool:
        return any(os.path.exists(path) and os.path.samefile(path, one) for one in self._sealed)

    # What params lead to

    def spell(self, params: a.Named) -> bytes:
        """An entry's name, as ``params`` have it."""
        name = self.entry(params.entry).name
        device = self.device(params.entry)
        spellings = {
            "plain": self.at(name),
            "relative": name,
            "slashes": self.at(b"/.//" + name),
            "slash": self.at(name) + b"/",
            "node": os.fsencode(device) if device is not None else self.at(name),
            "dev": os.fsencode(device).removeprefix(b"/dev/") if device is not None else name,
        }
        return spellings[params.spelling]

    def target(self, params: bytes | None, *, inside: bool) -> Target:
        """What params lead to now, by the contract; ``inside``: the caller is in this folder."""
        if not params:
            return Target("none")
        if params.startswith(b"/"):
            return self._target(params)
        here = self._target(self.at(params))
        if inside and here.kind == "file":
            return here
        return self._target(b"/dev/" + params)

    def _target(self, path: bytes) -> Target:
        try:
            facts = os.stat(path)
        except OSError:
            return Target("none", path)
        found = Target("none", path, os.path.realpath(path), os.path.islink(path))
        if stat.S_ISBLK(facts.st_mode):
            number = spelled(facts.st_rdev)
            live = [one for one in self.observer.live.values() if one.number == number]
            token = live[0].bound.token if live else "unknown"
            return Target("device", path, found.real, found.is_link, token)
        if stat.S_ISREG(facts.st_mode):
            token = self.observer.files.get((facts.st_dev, facts.st_ino), "unknown")
            return Target(
                "file",
                path,
                found.real,
                found.is_link,
                token,
                has_write_bit=bool(facts.st_mode & 0o222),
                sealed=self.is_sealed(found.real),
            )
        return found

    def empty(self) -> None:
        """Leave nothing behind, however far filling it got."""
        for point in self._mounts:
            subprocess.run(["umount", point], check=True)
        for path, _ in bound_below(self.path):
            loops.detach(path)
        wait_until(lambda: not bound_below(self.path), "the loop devices are free")
        for file in self._sealed:
            set_immutable(file, value=False)
        if self.path.exists():
            shutil.rmtree(self.path)


def set_immutable(path: bytes, *, value: bool) -> None:
    """``chattr +i`` or ``-i``: then not even root may write to the file, move or link it."""
    with open(path, "rb") as file:
        flags = bytearray(4)
        fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
        number = int.from_bytes(flags, sys.byteorder)
        number = number | FS_IMMUTABLE_FL if value else number & ~FS_IMMUTABLE_FL
        fcntl.ioctl(file, FS_IOC_SETFLAGS, number.to_bytes(4, sys.byteorder))
