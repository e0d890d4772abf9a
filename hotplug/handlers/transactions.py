"""A transaction of the store for an event, of a disk or a card, that others must not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.ports import Begun, Host


def begin(host: Host, resources: ExitStack, *, with_next: bool = False) -> Begun:
    """Ask for a transaction. If a worker of the agent hangs, it ends when its time is up."""
    begun = resources.enter_context(host.store.begin(with_next=with_next))
    host.deadline.hold(begun.give_up)
    return begun
