"""Looks at one side: its store, its loop devices, its log, its directories.

Loop devices are asked for their file's identity (LOOP_GET_STATUS64), because a path in /sys says
little once files were moved or deleted. Only devices of the scenario's folder are opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from differential.observation import BASE, Bound, Observation, one_line
from harness.locks import wait_until
from harness.store import DIRECTORY, READ

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.place import Place
    from harness.run import Result
    from harness.store import Store

ROOT = "/local/domain"
DEPTH = 7  # slashes in the path of a backend; an empty node above means nothing
# <linux/loop.h>: struct loop_info64
LOOP_GET_STATUS64 = 0x4C05
INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")
READ_ONLY, AUTOCLEAR = 1, 4
PATH = re.compile(rb"/dev/loop\d+")
NAME = re.compile(rb"loop\d+")
NUMBER = re.compile(rb"7:[0-9a-f]+")
OF_THE_AGENT = {"agent.pid", "control", "journal"}
TEXTS = {"hotplug-error"}


@dataclass(frozen=True, slots=True)
class Live:
    """A loop device of the folder, with what it is called on this side."""

    path: str
    number: str  # as physical-device spells it
    identity: tuple[int, int]  # of its file
    sequence: str  # tells two bindings of one device apart
    bound: Bound


class Observer:
    """The eyes on a side. It remembers what a number meant when it was first seen."""

    def __init__(self, place: Place, folder: Path, script: str) -> None:
        self.place = place
        self.folder = folder
        self.script = script
        self.files: dict[tuple[int, int], str] = {}  # (device, inode) -> token of the file
        self.made: dict[str, int] = {}  # token of a file -> ordinal of its newest loop device
        self.live: dict[str, Live] = {}  # by path
        self._fresh: set[bytes] = set()  # paths and numbers that got a new meaning just now
        self._meaning: dict[bytes, tuple[bytes, bytes]] = {}  # path or number -> exact, vague
        self._known: dict[str, tuple[bytes, bytes]] = {}  # node -> its value, in placeholders

    def observe(self, result: Result | None = None, subject: str = "") -> Observation:
        """Look at everything; ``subject`` is the backend that the script was run for."""
        self.wait_for_detached()
        self.look_at_loops()
        raw = dump(self.place.store, ROOT)
        self._known = {
            path: (value, self._placed(path, value, subject)) for path, value in raw.items()
        }
        errors = result.errors if result is not None else []
        return Observation(
            status=result.status if result is not None else 0,
            stdout=result.stdout if result is not None else b"",
            errors=tuple(one_line(self.vague(os.fsencode(text))) for text in errors),
            store={path: placed for path, (_, placed) in self._known.items()},
            loops=frozenset(live.bound for live in self.live.values()),
            litter=frozenset(set(os.listdir(self.place.rundir)) - OF_THE_AGENT),
            names=frozenset(os.listdir(os.fsencode(self.folder))),
            users=self._users(raw),
            made=dict(self.made),
        )

    def look_at_loops(self) -> None:
        """Give every new binding below the folder a token, lowest number first."""
        before, self.live = self.live, {}
        self._fresh = set()
        for path, backing in bound_below(self.folder):
            status = status_of(path)
            if status is None:
                continue
            identity, sequence = status[:2], disk_sequence(path)
            offset, size_limit, flags = status[3], status[4], status[8]
            file = self.files.get(identity, "unknown")
            known = before.get(path)
            number = spelled(os.stat(path).st_rdev)
            if known is not None and (known.identity, known.sequence) == (identity, sequence):
                token = known.bound.token
            else:
                self.made[file] = self.made.get(file, 0) + 1
                token = f"{file}#{self.made[file]}"
                self._mean(path, number, token, file)
            bound = Bound(
                token,
                file,
                read_only=bool(flags & READ_ONLY),
                offset=offset,
                size_limit=size_limit,
                autoclear=bool(flags & AUTOCLEAR),
                backing=self.exact(backing.removesuffix(b" (deleted)")),
            )
            self.live[path] = Live(path, number, identity, sequence, bound)

    def wait_for_detached(self) -> None:
        """A loop device that others look into just now is unbound when they close it."""

        def is_going(path: str) -> bool:
            status = status_of(path)
            return status is not None and bool(status[8] & AUTOCLEAR)

        wait_until(
            lambda: not any(is_going(path) for path, _ in bound_below(self.folder)),
            "what was detached is unbound",
        )

    def _mean(self, path: str, number: str, token: str, file: str) -> None:
        name = path.removeprefix("/dev/")
        for text, before in ((path, "loop "), (name, "name "), (number, "number ")):
            exact, vague = f"{{{before}{token}}}", f"{{{before}of {file}}}"
            self._meaning[text.encode()] = (exact.encode(), vague.encode())
            self._fresh.add(text.encode())

    def find(self, token: str) -> Live | None:
        """The loop device that has a token now."""
        return next((live for live in self.live.values() if live.bound.token == token), None)

    def learn(self, path: str, value: bytes, placed: bytes) -> None:
        """A node was written to mean what ``placed`` says."""
        self._known[path] = (value, placed)

    def concrete(self, value: bytes) -> bytes:
        """What stands for placeholders on this side; one that means nothing here stays."""
        value = value.replace(b"{folder}", os.fsencode(self.folder))
        value = value.replace(b"{script}", self.script.encode())
        for raw, (exact, vague) in self._meaning.items():
            value = value.replace(exact, raw).replace(vague, raw)
        return value

    def _users(self, raw: Mapping[str, bytes]) -> dict[str, tuple[str, ...]]:
        """Which backends name a loop device by what is its number now, as raw text."""
        return {
            live.bound.token: tuple(
                path.removeprefix(f"{BASE}/").removesuffix("/physical-device")
                for path, value in raw.items()
                if path.endswith("/physical-device") and value == live.number.encode()
            )
            for live in self.live.values()
        }

    def _placed(self, path: str, value: bytes, subject: str) -> bytes:
        """In placeholders, as it was when it was written: a number may mean another file later."""
        if path.rpartition("/")[2] in TEXTS:
            return self.vague(value)
        rewritten = path.startswith(f"{BASE}/{subject}/") and value in self._fresh
        known = self._known.get(path)
        if known is not None and known[0] == value and not rewritten:
            return known[1]
        return self.exact(value)

    def exact(self, value: bytes) -> bytes:
        """Placeholders for what is of this side only, loop devices by their tokens."""
        return self._replaced(value, 0)

    def vague(self, text: bytes) -> bytes:
        """The same for sentences, where a loop device only stands for its file."""
        return self._replaced(text, 1)

    def _replaced(self, value: bytes, which: int) -> bytes:
        def meaning(match: re.Match[bytes]) -> bytes:
            known = self._meaning.get(match[0])
            return match[0] if known is None else known[which]

        if NAME.fullmatch(value):
            return NAME.sub(meaning, value)
        value = value.replace(os.fsencode(self.folder), b"{folder}")
        value = value.replace(self.script.encode(), b"{script}")
        return NUMBER.sub(meaning, PATH.sub(meaning, value))


def bound_below(folder: Path) -> list[tuple[str, bytes]]:
    """The loop devices whose files are, or were, in a folder: (path, name of the file).

    Of devices of others only the file's name is read: there may be thousands.
    """
    found = []
    start = os.fsencode(folder) + b"/"
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            with contextlib.suppress(OSError):  # most are not bound
                with open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
                    backing = file.read().removesuffix(b"\n")
                if backing.startswith(start):
                    found.append((f"/dev/{name}", backing))
    return sorted(found, key=lambda each: (len(each[0]), each[0]))


def disk_sequence(path: str) -> str:
    """A number that every binding changes; Linux 5.15."""
    with contextlib.suppress(OSError), open(f"/sys/block/{path[5:]}/diskseq") as file:
        return file.read().strip()
    return ""


def spelled(number: int) -> str:
    """A device number as physical-device has it."""
    return f"{os.major(number):x}:{os.minor(number):x}"


def status_of(path: str) -> tuple | None:
    """What a loop device is bound to; None if to nothing."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as device:
        buffer = bytearray(INFO.size)
        fcntl.ioctl(device, LOOP_GET_STATUS64, buffer)
        return INFO.unpack(buffer)
    return None


def dump(store: Store, root: str) -> dict[str, bytes]:
    """Every node below ``root`` that has a value or no children, a level at a time."""
    found: dict[str, bytes] = {}
    level = [root] if store.exists(root) else []
    while level:
        for path in level:
            store._send(DIRECTORY, (path.encode() + b"\0",), 0)
            store._send(READ, (path.encode() + b"\0",), 0)
        below = []
        for path in level:
            names = store._answer(path.encode()).split(b"\0")[:-1]
            value = store._answer(path.encode())
            is_branch = f"{path}/".startswith(f"{ROOT}/0/") and path.count("/") < DEPTH
            if value or not (names or is_branch):
                found[path] = value
            below += [f"{path}/{name.decode()}" for name in names]
        level = below
    return found
