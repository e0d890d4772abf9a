"""Which backends hold which disk: an index over the store, kept by a watch.

The stock scripts read every other guest's backends for every disk. Here a watch says which ones
changed, and only those are read again. That is exact, not eventual: xenstored queues the watch
events of a write before it answers any later request, and the client hands them out before that
answer, so after one round trip every write that was committed before is known. (In a driver
domain the kernel is in between and mixes them; the client has a barrier for that.)

Without a watch (a one-shot run) each refresh reads everything, in three round trips.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, TypeAlias

from hotplug.events import Device
from hotplug.ports import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hotplug.ports import Number, Store

BASE = "backend"
KINDS = ("vbd", "vbd3", "tap")
KEYS = ("physical-device", "mode", "params")
EVERYTHING = None  # among what is stale: read all anew
Guest: TypeAlias = tuple[str, int]  # kind and domid: among what is stale, all that we know of it
MAX_ROUNDS = 1000  # a store that changes under us a thousand times within one refresh is broken


class StoreHolders:
    """The index. ``changed`` is a watch callback, everything else is for workers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched = False
        self._barrier: Callable[[], None] | None = None
        self._mutex = threading.Lock()  # of the index; never held by the callback
        self._stale: deque[Device | Guest | None] = deque([EVERYTHING])  # its operations are atomic
        self._holders: dict[Device, Holder] = {}
        self._by_number: defaultdict[tuple[str, bytes], dict[Device, Holder]] = defaultdict(dict)

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
        if parts[1] not in KINDS or not all(part.isdigit() for part in parts[2:4]):
            return None
        if len(parts) == 3:  # a guest's last device is gone; what is written has its own events
            self._stale.append((parts[1], int(parts[2])))
            return None
        device = Device(parts[1], int(parts[2]), int(parts[3]))
        if len(parts) == 4:
            self._stale.append(device)
            return device
        if parts[4] in KEYS:
            self._stale.append(device)
        return None

    def refresh(self) -> None:
        with self._mutex:
            if not self._watched:
                self._read_everything()
                return
            if self._barrier is not None:
                self._barrier()
            # One round trip brings the events of all that happened before. Reading what they
            # made stale is a round trip too, and may bring more.
            for _ in range(MAX_ROUNDS):
                stale = self._take_stale()
                if stale is EVERYTHING:
                    self._read_everything()
                elif stale or self._barrier is None:
                    self._read(stale)
                if not self._stale:
                    return
        raise OSError(f"xenstore keeps changing below {BASE}, its backends cannot be read")

    def _take_stale(self) -> set[Device] | None:
        """The devices to be read again; None (EVERYTHING) for all there are."""
        stale: set[Device] = set()
        everything = False
        while self._stale:
            item = self._stale.popleft()
            if isinstance(item, Device):
                stale.add(item)
            elif item is EVERYTHING:
                everything = True
            else:
                stale.update(d for d in self._holders if (d.kind, d.domid) == item)
        return EVERYTHING if everything else stale

    def _read_everything(self) -> None:
        self._holders.clear()
        self._by_number.clear()
        self._read(list_backends(self._store, KINDS))

    def _read(self, devices: Iterable[Device]) -> None:
        ordered = list(devices)
        paths = [f"{device.path}/{key}" for device in ordered for key in KEYS]
        values = self._store.read_many(paths or [f"{BASE}/vbd"])
        for index, device in enumerate(ordered):
            number, mode, params = values[index * len(KEYS) : (index + 1) * len(KEYS)]
            self._set(device, Holder(device, number or b"", mode or b"", params or b""))

    def _set(self, device: Device, holder: Holder) -> None:
        before = self._holders.pop(device, None)
        if before is not None:
            users = self._by_number[device.kind, before.number]
            users.pop(device, None)
            if not users:
                del self._by_number[device.kind, before.number]
        if holder.number or holder.params:
            self._holders[device] = holder
            self._by_number[device.kind, holder.number][device] = holder

    def of(self, kind: str, number: Number) -> Sequence[Holder]:
        with self._mutex:
            users = self._by_number.get((kind, str(number).encode()))
            return list(users.values()) if users else []

    def with_params(self, kind: str, matches: Callable[[bytes], bool]) -> Sequence[Holder]:
        with self._mutex:
            return [
                holder
                for holder in self._holders.values()
                if holder.device.kind == kind and matches(holder.params)
            ]


def list_backends(store: Store, kinds: Sequence[str], base: str = BASE) -> list[Device]:
    """Every backend of these kinds, in two round trips."""
    roots = [f"{base}/{kind}" for kind in kinds]
    domains = [
        (kind, domid)
        for kind, listing in zip(kinds, store.directory_many(roots), strict=True)
        for domid in listing or ()
        if domid.isdigit()
    ]
    listings = store.directory_many([f"{base}/{kind}/{domid}" for kind, domid in domains])
    return [
        Device(kind, int(domid), int(devid), base)
        for (kind, domid), listing in zip(domains, listings, strict=True)
        for devid in listing or ()
        if devid.isdigit()
    ]
