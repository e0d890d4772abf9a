"""What must be true after whatever fault, as soon as nothing runs any more.

Each function returns one sentence for every promise that is broken, so that a test can ask for
none, now or in the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import TYPE_CHECKING

from harness import loops
from harness.bindings import binding

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from pathlib import Path

    from harness.guests import Backend
    from harness.place import Place

CLOSED = b"6"


def broken(
    place: Place, backends: Iterable[Backend], files: Path, others: Container[str] = ()
) -> list[str]:
    """What is true at every moment, even when somebody was killed and nobody has tidied up.

    ``others`` are loop devices that are none of our business.
    """
    there = [backend for backend in backends if backend.exists]
    return [
        *_devices_that_are_none(there),
        *_torn_entries(place),
        *_lost_loops(place, there, files, others),
    ]


def unsettled(
    place: Place, backends: Iterable[Backend], files: Path, others: Container[str] = ()
) -> list[str]:
    """What is true besides when everybody has tidied up."""
    there = [backend for backend in backends if backend.exists]
    nodes = {_key(b): b.read("node") for b in there if _has_device(b)}
    wanted = {key for key, node in nodes.items() if node is not None}
    left = [
        f"{loop.path} is bound to {loop.backing} and no backend names it"
        for loop in loops.below(files)
        if loop.path.encode() not in nodes.values() and loop.path not in others
    ]
    # An empty entry is nothing attached: somebody was killed who held it, or is at work.
    entries = {key for key, entry in _entries(place).items() if entry is not None}
    left += [f"the journal has {key} for nobody" for key in sorted(entries - wanted)]
    left += [f"the journal has forgotten {key}" for key in sorted(wanted - entries)]
    return [*left, *_stuck_lock(place)]


def _has_device(backend: Backend) -> bool:
    """Whether a guest may use it: after ``remove`` the keys stay until libxl deletes them."""
    return backend.read("hotplug-status") == b"connected" and backend.read("state") != CLOSED


def _key(backend: Backend) -> str:
    return f"{backend.kind}.{backend.domid}.{backend.devid}"


def _devices_that_are_none(backends: Iterable[Backend]) -> Iterator[str]:
    """``connected`` is never written without a device, nor left when it is taken back."""
    users: dict[bytes, str] = {}
    for backend in backends:
        keys = backend.tree()
        physical, node = keys.get("physical-device"), keys.get("node")
        if physical is None:
            if keys.get("hotplug-status") == b"connected":
                yield f"{backend.relative} is connected without physical-device"
            continue
        if node is None or keys.get("state") == CLOSED:
            continue
        bound = binding(node.decode())
        if bound is None:
            yield f"{backend.relative} has {node.decode()}, which is bound to nothing"
        elif not bound.reference.endswith(f":{_key(backend)}"):
            yield f"{backend.relative} has {node.decode()}, which is {bound.reference}"
        if node in users:
            yield f"{backend.relative} and {users[node]} have the same {node.decode()}"
        users[node] = backend.relative


def _stuck_lock(place: Place) -> Iterator[str]:
    """A new claimant gets the lock at once: the file may be there, but nobody holds it."""
    if place.block_lock.exists():
        with open(place.block_lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield "the lock 'block' is held by nobody who works"


def _torn_entries(place: Place) -> Iterator[str]:
    for key, entry in _entries(place).items():
        if entry is not None and not {"target", "facts"} <= entry.keys():
            yield f"the journal has nonsense for {key}: {entry}"


def _lost_loops(
    place: Place, backends: Iterable[Backend], files: Path, others: Container[str]
) -> Iterator[str]:
    """Whoever comes next can tell for whom a loop device was bound."""
    known = {f":{key}" for key in _entries(place)} | {f":{_key(backend)}" for backend in backends}
    for loop in loops.below(files):
        bound = binding(loop.path)
        if bound is None or loop.path in others:
            continue
        if not any(bound.reference.endswith(key) for key in known):
            yield f"{loop.path}, bound to {loop.backing} as {bound.reference!r}, is forgotten"


def _entries(place: Place) -> dict[str, dict[str, object] | None]:
    """The journal: the last whole line of each file, None for an empty file."""
    folder = place.rundir / "journal"
    found: dict[str, dict[str, object] | None] = {}
    for name in sorted(os.listdir(folder)) if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / name).read_bytes().split(b"\n")[:-1]
            found[name] = json.loads(lines[-1]) if lines else None
    return found
