"""May a disk be opened? The contract's truth tables (3.3 and 3.4), as stock and as we read them.

Written from the contract alone, to judge both sides. ``Reading`` says in which ways stock's
scripts miss what was meant; with all of them true it is what ours must do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from differential.observation import Observation
    from differential.world import Target


@dataclass(frozen=True, slots=True)
class Reading:
    """What the sharing check gets right."""

    files: bool = False  # D02: it finds the loop devices of a file
    offsets: bool = False  # D03: those with an offset as well
    absent: bool = False  # D10: two domains without a vm are two
    forced: bool = False  # D11: who has w! writes
    suffix: bool = False  # D12: -1 at the end of a vm is ignored on both sides
    environment: bool = False  # D13: it needs no variables to find the backends
    kinds: bool = False  # 3.4, not seen by stock: backends of another kind
    beneath: bool = False  # not seen by stock: who else has the file of a loop device


def canonical(mode: bytes) -> str:
    if b"w" not in mode:
        return "r"
    return "!" if b"!" in mode else "w"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the check has to go by."""

    host: Observation
    backend: str
    target: Target
    mounted: Mapping[str, bool]  # loop device -> read-only
    users: Mapping[str, Iterable[str]]  # loop device -> the backends that name it
    owners: Mapping[str, str]  # loop device -> the one for which ours attached it
    bare: bool  # whether the caller left out a variable

    @property
    def wanted(self) -> str:
        return canonical(self.host.key(self.backend, "mode") or b"")


def verdict(facts: Facts, reading: Reading) -> str | None:
    """Who has the disk in a way that forbids ours: local, guest, or nobody."""
    if facts.wanted == "!":
        return None
    candidates = [facts.target.token]
    if facts.target.kind == "file":
        candidates = [
            bound.token
            for bound in facts.host.loops
            if bound.file == facts.target.token
            and (reading.offsets if bound.offset else reading.files)
        ]
    return verdict_on(facts, candidates, reading)


def verdict_beneath(facts: Facts, reading: Reading) -> str | None:
    """The same for the other loop devices on the file of one that we want."""
    device = facts.host.loop(facts.target.token)
    if facts.wanted == "!" or not reading.beneath or device is None:
        return None
    others = [bound.token for bound in facts.host.loops if bound.file == device.file]
    return verdict_on(facts, [token for token in others if token != device.token], reading)


def verdict_on(facts: Facts, candidates: list[str], reading: Reading) -> str | None:
    mounts = [facts.mounted[token] for token in candidates if token in facts.mounted]
    if any(facts.wanted == "w" or not read_only for read_only in mounts):
        return "local"
    if facts.bare and not reading.environment:
        return None
    users = [user for token in candidates for user in users_of(facts, token, reading)]
    return "guest" if any(forbids(facts, user, reading) for user in users) else None


def users_of(facts: Facts, token: str, reading: Reading) -> list[str]:
    """The backends that have a loop device: others of ours that still name it do not."""
    owner = facts.owners.get(token) if facts.target.token != token else None
    kind = facts.backend.partition("/")[0]
    return [
        user
        for user in facts.users.get(token, ())
        if user != facts.backend
        and (reading.kinds or user.startswith(f"{kind}/"))
        and owner in {None, user}
    ]


def forbids(facts: Facts, user: str, reading: Reading) -> bool:
    held = canonical(facts.host.key(user, "mode") or b"")
    writes = held == "w" or (held == "!" and reading.forced)
    return (facts.wanted == "w" or writes) and not same_vm(facts.host, facts.backend, user, reading)


def same_vm(host: Observation, mine: str, others: str, reading: Reading) -> bool:
    """Whether the domains of two backends are one user."""
    me, other = mine.split("/")[1], others.split("/")[1]
    if reading.suffix and me == other:
        return True
    own, held = vm(host, me), vm(host, other)
    if held is None:
        nobody = own is None and reading.absent and me != other
        held = b"nobody" if nobody else own
    values = {
        "F": plain(own if own is not None else b"unknown"),
        "O": held if held is not None else b"unknown",
        "T": served(host, me, b"no target"),
        "U": served(host, other, b"no other target"),
    }
    if reading.suffix:
        values = {name: value if name == "F" else plain(value) for name, value in values.items()}
    return bool({values["F"], values["T"]} & {values["O"], values["U"]})


def vm(host: Observation, domid: str) -> bytes | None:
    value = host.store.get(f"/local/domain/{domid}/vm")
    return value if isinstance(value, bytes) else None


def served(host: Observation, domid: str, default: bytes) -> bytes:
    """The vm of the domain that this one is a stubdomain of."""
    target = host.store.get(f"/local/domain/{domid}/target")
    value = vm(host, target.decode()) if isinstance(target, bytes) else None
    return value if value is not None else default


def plain(value: bytes) -> bytes:
    return value.removesuffix(b"-1")


STOCK = Reading()
OURS = Reading(*[True] * 8)

BUSY = {
    ("w", "guest"): b"in a guest domain,\nand so cannot be mounted now.",
    ("w", "local"): b"in the privileged domain,\nand so cannot be mounted by a guest.",
    ("r", "guest"): b"read-write in a guest domain,\nand so cannot be mounted read-only now.",
    ("r", "local"): (
        b"read-write in the privileged domain,\nand so cannot be mounted read-only by a guest."
    ),
}
