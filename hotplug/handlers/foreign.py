"""Scripts of others where no toolstack runs them: run as ``xl devd`` and udev run them.

A device may name any program as its script. In dom0 the toolstack runs it; in a driver domain
nobody but us does. It writes its own keys; what it says of a failure is kept.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.events import Action
from hotplug.handlers.disk import CONNECTED

if TYPE_CHECKING:
    from hotplug.events import Event
    from hotplug.ports import Host


def run(host: Host, event: Event) -> None:
    """Run a script with the event's arguments."""
    from hotplug.handlers.targets import helper, tool  # noqa: PLC0415 - few devices name one

    if event.action in (Action.ADD, Action.ONLINE) and is_connected(host, event):
        return  # looked at twice while it waited
    if not os.path.isabs(event.script):
        raise HotplugError(f"{event.device}/script is '{event.script}', which is not a full path")
    if event.action is Action.ONLINE:
        wait_for_link(host, event)
    command = (event.script, *event.arguments)
    missing = f"{event.script} cannot be run: it is gone, or the interpreter that it names"
    variables = helper.environment(event.device, event)
    finished = tool.run(host, host.deadline, command, missing=missing, variables=variables)
    if finished.status:
        said = host.store.read(f"{event.device}/hotplug-error")
        raise HotplugError(os.fsdecode(said)) if said else tool.failed(command, finished)


def is_connected(host: Host, event: Event) -> bool:
    return host.store.read(f"{event.device}/hotplug-status") == CONNECTED


def wait_for_link(host: Host, event: Event) -> None:
    """A backend waits for its script a moment before its link is there; we are faster than xl."""
    with contextlib.suppress(OSError):  # no link comes: the script says it in its own words
        host.links.wait_for(event.variables["vif"], host.deadline)
