"""A card that arrives: what every script for them does before and after its own work.

The transaction that tells of success is asked for along with the card's keys, so that it costs no
round trip of its own.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import BackendGoneError
from hotplug.handlers import vif
from hotplug.handlers.vif import CONNECTED, Vif
from hotplug.ports import Write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hotplug.events import Event
    from hotplug.ports import Begun, Entry, Host, Snapshot


@dataclass(frozen=True, slots=True)
class Arrival:
    """A card whose link is being set up."""

    card: Vif
    entry: Entry
    undo: contextlib.ExitStack  # left, if it does not come to ``tell``
    _host: Host
    _begun: Begun | None

    def tell(self, mtu: int | None = None) -> None:
        """Set up: tell the guest's driver, if it is to know; ``mtu`` goes to the guest itself."""
        if self._begun is not None:
            connected(self._host, self.card, self._begun, mtu)
        else:
            refuse_removed(self.card, self._host.store.read(self.card.device.path))
        self.undo.pop_all()
        vif.finished(self.entry, self.card.role)


@contextlib.contextmanager
def of(host: Host, event: Event) -> Iterator[Arrival]:
    """Read a card's keys and claim it. A tap is an addition to its vif: of it, nobody is told."""
    with contextlib.ExitStack() as resources:
        begun = None
        if not vif.is_tap(event):
            begun = resources.enter_context(host.store.begin(with_next=True))
            host.deadline.hold(begun.give_up)
        card = Vif.read(host, event)
        if not card.exists:
            raise BackendGoneError(f"there is no backend {card.device}; was the device removed?")
        entry = resources.enter_context(host.journal.claim(card.device, host.deadline))
        undo = resources.enter_context(contextlib.ExitStack())
        yield Arrival(card, entry, undo, host, begun)


def connected(host: Host, card: Vif, begun: Begun, mtu: int | None) -> None:
    """Once the backend driver has seen ``connected`` it goes on. So all is written at once."""
    host.deadline.stage("writing to xenstore")
    status, error = f"{card.device}/hotplug-status", f"{card.device}/hotplug-error"
    changes = [Write(status, CONNECTED), Write(error, None)]

    def body(store: Snapshot, *told: Write) -> None:
        paths = [card.device.path, *([card.frontend] if told else ())]
        backend, *frontend = store.read_and_apply(paths, [*told, *changes])
        refuse_removed(card, backend)
        if None in frontend:
            raise NobodyToTellError

    with host.deadline.committing():
        if mtu is None:
            begun.run(body)
            return
        told = Write(f"{card.frontend}/mtu", b"%d" % mtu)
        try:
            begun.run(lambda store: body(store, told))
        except (NobodyToTellError, PermissionError):
            # A driver domain may write it only where the toolstack made it for us (Xen 4.17).
            host.store.transaction(body)


class NobodyToTellError(Exception):
    """There is no frontend, and to write would make one."""


def refuse_removed(card: Vif, backend: bytes | None) -> None:
    """Nothing is told to a backend that is gone, as that would bring it back, nor done for it."""
    if backend is None:
        raise BackendGoneError(f"{card.device} was removed while its card was being set up")
