"""Whose a link's name is now.

Filters, a switch's ports and the DHCP server's files know a link by its name. That of the kernel
has the numbers of the card. But ``vifname`` may give the next guest the name that a former one had:
as soon as it has a link of that name, what is known under it is the next guest's, or was replaced
when it came. So that this is not found out just before, a lock is held while something is known, or
forgotten, by a name of this kind; and a link has its name before anything is known by it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hotplug.handlers import vif

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hotplug.handlers.vif import Vif
    from hotplug.ports import Deadline, Entry, Host

LOCK = "vifname"


def held(
    host: Host, deadline: Deadline, *, given: bool
) -> AbstractContextManager[None, bool | None]:
    """Keep a name that ``vifname`` has given; the kernel's need no lock."""
    return host.locks.hold(LOCK, deadline) if given else contextlib.nullcontext()


def was_given(entry: Entry, role: str) -> bool:
    """Whether the journal has a link by a name of ``vifname``'s."""
    return bool(vif.remembered(entry, role, "original"))


def own(host: Host, entry: Entry, role: str) -> str:
    """The name under which the journal has a link; "" if it is another card's by now."""
    name = vif.remembered(entry, role)
    if name and was_given(entry, role):
        link = host.links.find(name)
        if link is not None and str(link.index) != vif.remembered(entry, role, "index"):
            return ""
    return name


def is_taken(host: Host, card: Vif, entry: Entry) -> bool:
    """Whether the name that a card should have is another card's; the journal need not know it."""
    if card.name == card.original:
        return False
    link = host.links.find(card.name)
    return link is not None and not vif.is_same(card, link, entry)
