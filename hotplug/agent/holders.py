"""Which backends hold which disk: an index over the store, kept by a watch.

The stock scripts read every other guest's backends for every disk. Here a watch says which ones
changed, and only those are read again. That is exact, not eventual: xenstored queues the watch
events of a write before it answers any later request, and the client hands them out before that
answer, so after one round trip every write that was committed before is known. (In a driver
domain the kernel is in between and mixes them; the client has a barrier for that.)

Without a watch (a one-shot run) each refresh reads everything, in three round trips.

What could not be read is still to be read: a refresh that fails leaves everything as stale as it
was, so the next one fails as well or knows better. Only a refusal is an answer. In a driver
domain there may be backends that we may not read. They are no reason to refuse every disk for
ever, and no reason to take every disk for free: what was known of them stays, and their paths
are ``hidden``, for the sharing check to weigh. The watch says when they are opened to us.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from hotplug.events import Device
from hotplug.ports import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hotplug.ports import Number, Store

BASE = "backend"
KINDS = ("vbd", "vbd3", "tap")
KEYS = ("physical-device", "mode", "params")
EVERYTHING = None  # among what is stale: read all anew
Guest: TypeAlias = tuple[str, int]  # kind and domid: among what is stale, all that it has
ALONG = 8  # what is read with something else: all of it fits what the client sends at once
MAX_ROUNDS = 1000  # a store that changes under us a thousand times within one refresh is broken


class StoreHolders:
    """The index. ``changed`` is a watch callback, everything else is for workers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched = False
        self._barrier: Callable[[], None] | None = None
        self._mutex = threading.Lock()  # of the index; never held by the callback
        self._stale: deque[Device | Guest | None] = deque([EVERYTHING])  # its operations are atomic
        self._todo: set[Device | Guest | None] = set()  # was in there, and is still to be read
        self._holders: dict[Device, Holder] = {}
        self._by_number: defaultdict[bytes, dict[Device, Holder]] = defaultdict(dict)
        self._hidden: set[str] = set()  # backends, guests or kinds that we may not read

    def watched(self, barrier: Callable[[], None] | None) -> None:
        """From now on ``changed`` is called for every change below ``backend``.

        ``barrier`` returns when it was called for all that happened before; None if every read
        of the store does that.
        """
        self._watched = True
        self._barrier = barrier

    def changed(self, path: str) -> Device | None:
        """Note what a watch event makes stale. Returns the backend that came or went, if any."""
        parts = path.split("/")
        parts = parts[parts.index(BASE) :]
        if len(parts) < 3:
            if len(parts) == 1 or parts[1] in KINDS:
                self._stale.append(EVERYTHING)
            return None
        if not all(part.isdigit() for part in parts[2:4]):
            return None
        if parts[1] not in KINDS:  # it holds nothing, but may leave something behind
            return Device(parts[1], int(parts[2]), int(parts[3])) if len(parts) == 4 else None
        if len(parts) == 3:  # its last device is gone, or another may read it than before
            self._stale.append((parts[1], int(parts[2])))
            return None
        device = Device(parts[1], int(parts[2]), int(parts[3]))
        if len(parts) == 4:
            self._stale.append(device)
            return device
        if parts[4] in KEYS:
            self._stale.append(device)
        return None

    def read_along(self, mine: Device, paths: Sequence[str]) -> list[bytes | None]:
        """The values of nodes; in their round trip comes what a ``refresh`` would read just now."""
        is_stale = self._watched and (self._stale or self._todo)
        if not (is_stale and self._mutex.acquire(blocking=False)):
            return self._store.read_many(paths)
        try:
            self._take_notes()
            wanted = self._todo - {mine}
            if not wanted or EVERYTHING in wanted or len(wanted) > ALONG:
                return self._store.read_many(paths)
            return [allowed(value) for value in self._read(wanted, paths)]
        finally:
            self._mutex.release()

    def refresh(self, mine: Device | None = None, *, asked: bool = False) -> None:
        """Take in everything that was committed before; ``mine`` may be left for the next one.

        With ``asked``: before the last request was made that has been answered.
        """
        with self._mutex:
            if not self._watched:
                self._read_everything()
                return
            if self._barrier is not None:
                self._barrier()
            # One round trip brings the events of all that happened before. Reading what they
            # made stale is a round trip too, and may bring more.
            is_behind = self._barrier is None and not asked
            for _ in range(MAX_ROUNDS):
                self._take_notes()
                wanted = self._todo if mine is None else self._todo - {mine}
                if not (wanted or is_behind):
                    return
                self._read(wanted, () if wanted else [f"{BASE}/vbd"])  # for the events it brings
                is_behind = False
        raise OSError(f"xenstore keeps changing below {BASE}, its backends cannot be read")

    def catch_up(self) -> None:
        """Read what is stale by now, so that the next ``refresh`` need not."""
        with self._mutex:
            self._take_notes()
            if self._todo:
                self._read(self._todo, ())

    def _take_notes(self) -> None:
        while self._stale:
            self._todo.add(self._stale.popleft())

    def _read(
        self, wanted: set[Device | Guest | None], paths: Sequence[str]
    ) -> list[bytes | PermissionError | None]:
        """Read what is wanted, and other nodes, in one round trip; answers the nodes' values."""
        if EVERYTHING in wanted:
            self._read_everything()
            self._todo = self._todo - wanted
            return []
        devices = {item for item in wanted if isinstance(item, Device)}
        guests = {item for item in wanted if isinstance(item, tuple)}
        hidden: set[str] = set()
        seen = look(self._store, guests, devices, hidden, paths=paths)
        more = set(seen.listed) - devices  # to be read next: until then they are what they were
        former, about = set(devices), {device.path for device in devices}
        if guests:
            former.update(d for d in self._holders if (d.kind, d.domid) in guests and d not in more)
            about.update(f"{BASE}/{kind}/{domid}" for kind, domid in guests)
        self._replace(former, seen.holders, hidden)
        if hidden or self._hidden:
            as_before = {device.path for device in more}
            self._hidden = hidden | {
                path for path in self._hidden if path in as_before or not is_within(path, about)
            }
        self._todo = (self._todo - wanted) | more
        return seen.values

    def _read_everything(self) -> None:
        hidden: set[str] = set()
        devices = list_readable(self._store, KINDS, BASE, hidden)
        holders = look(self._store, (), devices, hidden).holders
        self._replace(list(self._holders), holders, hidden)
        self._hidden = hidden

    def _replace(
        self, former: Iterable[Device], holders: Iterable[Holder], hidden: set[str]
    ) -> None:
        """Forget what was known of ``former``, unless it is hidden by now, for what was read."""
        for device in former:
            if not (hidden and is_within(device.path, hidden)):
                self._drop(device)
        for holder in holders:
            self._drop(holder.device)
            if holder.number or holder.params:
                self._holders[holder.device] = holder
                self._by_number[holder.number][holder.device] = holder

    def _drop(self, device: Device) -> None:
        holder = self._holders.pop(device, None)
        if holder is None:
            return
        users = self._by_number[holder.number]
        del users[device]
        if not users:
            del self._by_number[holder.number]

    def of(self, number: Number) -> Sequence[Holder]:
        with self._mutex:
            users = self._by_number.get(str(number).encode())
            return list(users.values()) if users else []

    def hidden(self) -> Sequence[str]:
        with self._mutex:
            return sorted(self._hidden)

    def with_params(self, kind: str, matches: Callable[[bytes], bool]) -> Sequence[Holder]:
        with self._mutex:
            return [
                holder
                for holder in self._holders.values()
                if holder.device.kind == kind and matches(holder.params)
            ]


def list_backends(store: Store, kinds: Sequence[str], base: str = BASE) -> list[Device]:
    """Every backend of these kinds that we may read, in two round trips."""
    return list_readable(store, kinds, base, set())


def list_readable(store: Store, kinds: Sequence[str], base: str, hidden: set[str]) -> list[Device]:
    """The same; what we may not read is added to ``hidden``."""
    roots = {f"{base}/{kind}": kind for kind in kinds}
    listings, _ = store.survey(list(roots), ())
    guests = [
        (roots[root], domid)
        for root, listing in zip(roots, listings, strict=True)
        for domid in numbers(root, listing, hidden)
    ]
    return look(store, guests, (), hidden, base).listed


class Seen(NamedTuple):
    """What came of one look."""

    listed: list[Device]  # of guests
    holders: list[Holder]
    values: list[bytes | PermissionError | None]  # of other nodes


def look(
    store: Store,
    guests: Iterable[Guest],
    devices: Iterable[Device],
    hidden: set[str],
    base: str = BASE,
    paths: Sequence[str] = (),
) -> Seen:
    """Which backends guests have, what other backends hold, and other nodes: in one round trip."""
    roots = {f"{base}/{kind}/{domid}": (kind, domid) for kind, domid in guests}
    asked = list(devices)
    keys = [f"{device.path}/{key}" for device in asked for key in KEYS]
    listings, values = store.survey(list(roots), [*keys, *paths])
    found = [
        Device(*roots[root], devid, base)
        for root, listing in zip(roots, listings, strict=True)
        for devid in numbers(root, listing, hidden)
    ]
    holders = []
    for index, device in enumerate(asked):
        answers = values[index * len(KEYS) : (index + 1) * len(KEYS)]
        known = [value or b"" for value in answers if not isinstance(value, PermissionError)]
        if len(known) == len(KEYS):
            holders.append(Holder(device, *known))
        else:
            hidden.add(device.path)
    return Seen(found, holders, values[len(keys) :])


def allowed(value: bytes | PermissionError | None) -> bytes | None:
    """A value, if we may read it."""
    if isinstance(value, PermissionError):
        raise value
    return value


def numbers(path: str, listing: list[str] | PermissionError | None, hidden: set[str]) -> list[int]:
    """The children of a node that are numbers. One that may not be read is ``hidden``."""
    if isinstance(listing, PermissionError):
        hidden.add(path)
        return []
    return [int(name) for name in listing or () if name.isdigit()]


def is_within(path: str, subtrees: Iterable[str]) -> bool:
    """Whether a path is one of these or below one."""
    return any(path == top or path.startswith(f"{top}/") for top in subtrees)
