"""Who may have a disk that others have: the truth table of the contract (3.4), told once more.

Independent of the code under test, and about files only: what mounts do is not in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

READ, WRITE, FORCED = "r", "w", "w!"
MODES = (READ, WRITE, FORCED)


@dataclass(frozen=True, slots=True)
class Holder:
    """A guest that has a file."""

    who: str  # the device, for people
    user: int  # equal for domains that count as one: a guest, its stubdomain, its migrated self
    file: tuple[int, int]
    mode: str
    since: int  # the burst of operations in which it got it


def is_free(user: int, file: tuple[int, int], mode: str, holders: Iterable[Holder]) -> bool:
    """Whether one more may have it."""
    others = [other.mode for other in holders if other.file == file and other.user != user]
    if mode == WRITE:
        return not others
    return mode == FORCED or all(other == READ for other in others)


def violations(holders: Iterable[Holder]) -> list[str]:
    """Pairs that may not be: who came later should have been refused."""
    found = []
    for first, second in combinations(sorted(holders, key=lambda holder: holder.since), 2):
        if first.file != second.file or first.user == second.user:
            continue
        late = [second] if first.since < second.since else [first, second]  # or nobody knows
        if {first.mode, second.mode} != {READ} and all(holder.mode != FORCED for holder in late):
            found.append(f"{first.who} ({first.mode}) and {second.who} ({second.mode})")
    return found
