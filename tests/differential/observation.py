"""What can be seen of a host after an operation, in words that hold on either side.

Loop devices have tokens instead of numbers: ``{f#2}`` is the second one that was ever bound to
file f, ``{number f#2}`` its device number. Directories and script paths have placeholders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "/local/domain/0/backend"


@dataclass(frozen=True, slots=True)
class Mentions:
    """Stands for any sentence that has these words in it: where the contract gives no text."""

    words: tuple[bytes, ...]

    def fits(self, text: bytes) -> bool:
        return (
            all(word in text or one_line(word) in text for word in self.words)
            and b"failed; error detected" not in text
            and b"Traceback" not in text
        )


def one_line(text: bytes) -> bytes:
    """A text as a log has it; where its lines end does not matter."""
    return b" ".join(text.split())


def vague(value: bytes) -> bytes:
    """The same for a text, in which a loop device only stands for its file."""
    return re.sub(rb"\{(loop|name|number) (.*?)#\d+\}", rb"{\1 of \2}", value)


Value: TypeAlias = bytes | Mentions


@dataclass(frozen=True, slots=True)
class Bound:
    """A loop device that is bound to a file of the scenario."""

    token: str
    file: str
    read_only: bool
    offset: int
    size_limit: int
    autoclear: bool
    backing: bytes = field(default=b"", compare=False)  # the path that it was bound by, by now


@dataclass(frozen=True, slots=True)
class Observation:
    """A host after an operation. The last fields tell about the side and are not compared."""

    status: int  # exit status of the script, 0 if none was run
    stdout: bytes
    errors: tuple[Value, ...]  # texts of daemon.err
    store: Mapping[str, Value]
    loops: frozenset[Bound]
    litter: frozenset[str]  # in the directory of the lock files
    names: frozenset[bytes]  # in the folder
    users: Mapping[str, tuple[str, ...]] = field(compare=False)  # token -> backends that name it
    made: Mapping[str, int] = field(compare=False)  # file -> number of its loop devices so far

    def key(self, backend: str, name: str) -> bytes | None:
        value = self.store.get(f"{BASE}/{backend}/{name}")
        assert not isinstance(value, Mentions)
        return value

    def has(self, backend: str) -> bool:
        return any(path.startswith(f"{BASE}/{backend}/") for path in self.store)

    def loop(self, token: str) -> Bound | None:
        return next((bound for bound in self.loops if bound.token == token), None)


def differences(expected: Observation, actual: Observation) -> list[str]:
    """One line for everything in which ``actual`` is not as it must be."""
    found = [
        f"{name}: {getattr(expected, name)!r} is {getattr(actual, name)!r}"
        for name in ("status", "stdout", "litter", "names")
        if getattr(expected, name) != getattr(actual, name)
    ]
    if len(expected.errors) != len(actual.errors) or not all(
        map(fits, expected.errors, actual.errors)
    ):
        found.append(f"errors: {expected.errors!r} are {actual.errors!r}")
    for path in sorted(expected.store.keys() | actual.store.keys()):
        before, after = expected.store.get(path), actual.store.get(path)
        if not fits(before, after):
            found.append(f"{path}: {before!r} is {after!r}")
        elif isinstance(before, Mentions) and not is_logged(after, actual.errors):
            found.append(f"{path}: {after!r} is not what the log has: {actual.errors!r}")
    found += [f"missing: {bound}" for bound in expected.loops - actual.loops]
    found += [f"surplus: {bound}" for bound in actual.loops - expected.loops]
    return found


def is_logged(text: Value | None, errors: tuple[Value, ...]) -> bool:
    return isinstance(text, bytes) and errors == (b"{script}: " + one_line(text),)


def fits(expected: Value | None, actual: Value | None) -> bool:
    if isinstance(expected, Mentions) and isinstance(actual, bytes):
        return expected.fits(actual)
    return expected == actual
