"""Which function does what: the whole dispatch, as a literal.

The key is the family of the script that was asked for (``block`` of ``block-iscsi``) and the
action. What is not in here is an unknown action.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from hotplug.errors import HotplugError, UsageError
from hotplug.events import Action, Event
from hotplug.handlers import block, foreign
from hotplug.ports import Host

if TYPE_CHECKING:
    from collections.abc import Mapping

Handler: TypeAlias = Callable[[Host, Event], None]

HANDLERS: Mapping[tuple[str, Action], Handler] = {
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


def handler(event: Event) -> Handler:
    """The function for an event; UsageError if the script does not know the action."""
    name = os.path.basename(event.script)
    if name not in SCRIPTS:
        raise HotplugError(f"{event.script}: xen-hotplug stands in for no script of this name")
    found = HANDLERS.get((name.partition("-")[0], event.action))
    if found is None:
        raise UsageError(f"{event.script} does not know '{event.action}'")
    return found


def any_script(event: Event) -> Handler:
    """For a driver domain, where no toolstack runs the scripts that are not ours."""
    return handler(event) if os.path.basename(event.script) in SCRIPTS else foreign.run
