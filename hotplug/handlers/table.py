"""Which function does what: the whole dispatch, as a literal.

The key is the family of the script that was asked for (``block`` of ``block-iscsi``) and the
action. What is not in here is an unknown action.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import UsageError
from hotplug.events import Action
from hotplug.handlers import block

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.events import Event
    from hotplug.ports import Host

HANDLERS: dict[tuple[str, Action], Callable[[Host, Event], None]] = {
    ("block", Action.ADD): block.add,
    ("block", Action.REMOVE): block.remove,
    ("block", Action.RECLAIM): block.reclaim,
}

# Scripts that we stand in for; block.py and its targets know the suffixes.
SCRIPTS = frozenset(
    {
        "block",
        "block-dummy",
        "block-enbd",
        "block-iscsi",
        "block-nbd",
        "block-tap",
    }
)


def handler(event: Event) -> Callable[[Host, Event], None]:
    """The function for an event; UsageError if nobody does this."""
    name = os.path.basename(event.script)
    found = HANDLERS.get((name.partition("-")[0], event.action))
    if name not in SCRIPTS or found is None:
        raise UsageError(f"{event.script} does not know '{event.action}'")
    return found
