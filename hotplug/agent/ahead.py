"""The keys of backends, read before anybody asks for their devices.

The toolstack writes a backend, and runs the script once the backend driver is ready, some
milliseconds later. The watch tells us of the backend at once, so by then we have read it, and an
event takes one round trip less. That is exact, not eventual, as with ``holders``: whatever changes
one of these keys is an event that comes before the next answer, and what is known then is not
``is_true`` any more. Who goes by it calls ``confirm`` behind a round trip, before anything is told.

Only for who gets all events in order, and needs no barrier for it: not in a driver domain.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hotplug.agent.holders import is_within
from hotplug.errors import UsageError
from hotplug.events import BASE, Device, Known
from hotplug.handlers import vif
from hotplug.handlers.disk import BEFOREHAND

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

    from hotplug.agent.holders import StoreHolders
    from hotplug.ports import Store

STATUS = "hotplug-status"
GIVEN = (STATUS, "physical-device")  # that change when a backend gets its device
READ = {  # by kind
    "vbd": BEFOREHAND,
    "vif": (*vif.KEYS, *vif.OTHERS_KEYS, *vif.ARRIVAL_KEYS, STATUS),
}
SIGNS = ("params", "mac")  # that a backend was made: one of them is among its keys
NEEDED = {"vbd": ("params", "mode", "frontend-id"), "vif": ("mac",)}  # not to be empty
KEYS = frozenset(key for keys in READ.values() for key in keys if key)
MOST = 1000  # backends; those that nobody asks for go when others come
ROUNDS = 5  # of reading what changed meanwhile, before others have their turn at the store


class Ahead:
    """What is known. ``changed`` is a watch callback; a thread of its own reads."""

    def __init__(self, store: Store, holders: StoreHolders) -> None:
        self._store = store
        self._holders = holders
        self._mutex = threading.Lock()  # of the rest; never held while waiting
        self._known: dict[str, Known] = {}  # by path, of what the next event may make untrue
        self._ready: dict[str, Known] = {}  # those of them that were read, and not handed out
        self._unread: dict[str, None] = {}  # paths, none of which is known
        self._news = threading.Lock()  # held as long as there are none
        self._on_crash: Callable[[BaseException], object] = lambda _: None

    def start(self, on_crash: Callable[[BaseException], object]) -> None:
        """Read from now on whatever comes. ``on_crash``: the store is gone, or we have a bug."""
        self._on_crash = on_crash
        self._news.acquire()
        threading.Thread(target=self._serve, name="ahead", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._news.acquire()
            try:
                self.read()
            except Exception as error:  # noqa: BLE001 - nobody would notice that this one ended
                if not isinstance(error, OSError) or isinstance(error, ConnectionError):
                    self._on_crash(error)
                    return
                # Whatever refuses itself here will refuse itself to the event that needs it.

    def of(self, device: Device) -> Known | None:
        """What is known of a backend that waits for its device. Handed out once."""
        if not self._ready:
            return None
        return self._ready.pop(f"{BASE}/{device.kind}/{device.domid}/{device.devid}", None)

    def changed(self, path: str) -> None:
        """Take note of a watch event."""
        backend, _, key = path.rpartition("/")
        depth = path.count("/")
        if key in KEYS:
            with self._mutex:
                was_known = self._forget(backend)
                if key in SIGNS or (was_known and key not in GIVEN):
                    self._want(backend)
        elif depth == 3:  # it came, or went, or others may read it than before
            with self._mutex:
                if self._forget(path):
                    self._want(path)
        elif depth < 3:
            with self._mutex:
                for known in [name for name in self._known if is_within(name, (path,))]:
                    self._forget(known)
                    self._want(known)

    def _want(self, path: str) -> None:
        """Called with the mutex."""
        self._unread[path] = None
        if self._news.locked():
            self._news.release()

    def _forget(self, path: str) -> bool:
        """Called with the mutex."""
        known = self._known.pop(path, None)
        if known is None:
            return False
        known.is_true = False
        self._ready.pop(path, None)
        return True

    def read(self) -> None:
        """Read what came, and what the index of holders would read with the next event."""
        for _ in range(ROUNDS):
            wanted = self._take()
            if not wanted:
                break
            paths = [f"{path}/{key}".rstrip("/") for path, kind, _ in wanted for key in READ[kind]]
            answers = iter(self._store.survey((), paths)[1])
            for path, kind, known in wanted:
                self._keep(path, known, kind, {key: next(answers) for key in READ[kind]})
        self._holders.catch_up()

    def _take(self) -> list[tuple[str, str, Known]]:
        """The backends that are to be read: their paths and kinds, and where the keys go."""
        wanted = []
        with self._mutex:
            unread, self._unread = self._unread, {}
            for path in unread:
                kind = kind_of(path)
                if kind in READ:
                    if len(self._known) >= MOST:
                        self._forget(next(iter(self._known)))
                    known = self._known[path] = Known({})
                    wanted.append((path, kind, known))
        return wanted

    def _keep(
        self, path: str, known: Known, kind: str, values: dict[str, bytes | PermissionError | None]
    ) -> None:
        with self._mutex:
            if not known.is_true:
                return  # it is among the unread again
            if is_usable(values, kind):
                known.values = values
                self._ready[path] = known
            elif not any(values.values()):  # it is gone; to one that is not complete more may come
                self._forget(path)


def kind_of(path: str) -> str:
    """The kind of a backend, by its path; "" for what is none."""
    try:
        return Device.parse(path).kind
    except UsageError:
        return ""


def is_usable(
    values: dict[str, bytes | PermissionError | None], kind: str
) -> TypeGuard[dict[str, bytes | None]]:
    """Whether all was read, the backend is complete and was not given its device."""
    if any(isinstance(value, PermissionError) for value in values.values()):
        return False
    return all(values[key] for key in NEEDED[kind]) and not any(values.get(key) for key in GIVEN)
