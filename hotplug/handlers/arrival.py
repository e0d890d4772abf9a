"""A card that arrives: what every script for them does before and after its own work.

The transaction that tells of success is asked for along with the card's keys, or before all else if
these are known, so that it costs no round trip of its own, unless something that may take long lies
between.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import BackendGoneError
from hotplug.handlers import hooks, vif
from hotplug.handlers.transactions import begin, confirm
from hotplug.handlers.vif import CONNECTED, Vif
from hotplug.ports import Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hotplug.events import Event
    from hotplug.ports import Begun, Entry, Host, Snapshot


@dataclass(slots=True)
class Arrival:
    """A card whose link is being set up, once it is claimed."""

    card: Vif
    undo: contextlib.ExitStack  # left, if it does not come to ``tell``
    _host: Host
    _resources: contextlib.ExitStack
    _begun: Begun | None
    _entry: Entry | None = None

    def claim(self) -> Entry:
        """Keep every other run from this card until the end."""
        entry = self._resources.enter_context(
            self._host.journal.claim(self.card.device, self._host.deadline)
        )
        self._resources.enter_context(self.undo)
        self._entry = entry
        return entry

    def run_hooks(self, variables: Mapping[str, str]) -> None:
        hooks.run(self._host, self.card, variables, self._take_time)

    def _take_time(self) -> None:
        """What comes now may take long: the store is not to hold a transaction meanwhile."""
        if self._begun is not None:
            self._begun.give_up()
            self._begun = None
        confirm(self._host, self.card.device)

    def tell(self, mtu: int | None = None) -> None:
        """Set up: tell the guest's driver, if it is to know; ``mtu`` goes to the guest itself."""
        if self.card.is_tap:
            refuse_removed(self.card, self._host.store.read(self.card.device.path))
        else:
            connected(self._host, self.card, self._begun, mtu)
        self.undo.pop_all()
        if self._entry is not None:
            vif.finished(self._entry, self.card.role)


@contextlib.contextmanager
def of(host: Host, event: Event, *, takes_time: bool = False) -> Iterator[Arrival]:
    """Read a card's keys. A tap is an addition to its vif: of it, nobody is told."""
    with contextlib.ExitStack() as resources:
        begun = None
        if not vif.is_tap(event) and not takes_time:
            begun = begin(host, resources, with_next=host.known is None)
        card = Vif.read(host, event)
        if not card.exists:
            raise BackendGoneError(f"there is no backend {card.device}; was the device removed?")
        yield Arrival(card, contextlib.ExitStack(), host, resources, begun)


def connected(host: Host, card: Vif, begun: Begun | None, mtu: int | None) -> None:
    """Once the backend driver has seen ``connected`` it goes on. So all is written at once."""
    run = begun.run if begun is not None else host.store.transaction
    host.deadline.stage("writing to xenstore")
    status, error = f"{card.device}/hotplug-status", f"{card.device}/hotplug-error"
    changes = [Write(status, CONNECTED), Write(error, None)]

    def body(store: Snapshot, *told: Write) -> None:
        paths = [card.device.path, *([card.frontend] if told else ())]
        backend, *frontend = store.read_and_apply(paths, [*told, *changes])
        if host.known is not None:
            host.known.confirm()
        refuse_removed(card, backend)
        if None in frontend:
            raise NobodyToTellError

    with host.deadline.committing():
        if mtu is None:
            run(body)
            return
        told = Write(f"{card.frontend}/mtu", b"%d" % mtu)
        # A driver domain may write it only where the toolstack made it for us (Xen 4.17).
        with contextlib.suppress(PermissionError):
            for transaction in (run, host.store.transaction):
                # The first one may see the store as it was when the card's keys were read.
                with contextlib.suppress(NobodyToTellError):
                    transaction(lambda store: body(store, told))
                    return
        host.store.transaction(body)


class NobodyToTellError(Exception):
    """There is no frontend, and to write would make one."""


def refuse_removed(card: Vif, backend: bytes | None) -> None:
    """Nothing is told to a backend that is gone, as that would bring it back, nor done for it."""
    if backend is None:
        raise BackendGoneError(f"{card.device} was removed while its card was being set up")
