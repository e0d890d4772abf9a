"""Scripts of others in a driver domain: run as ``xl devd`` runs them.

A disk may name any program as its script. In dom0 the toolstack runs it; in a driver domain
nobody but us does. It writes its own keys; what it says of a failure is kept.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.events import Action
from hotplug.handlers.disk import CONNECTED

if TYPE_CHECKING:
    from hotplug.events import Event
    from hotplug.ports import Host


def run(host: Host, event: Event) -> None:
    """Run a script with its action as the only argument."""
    from hotplug.handlers.targets import helper, tool  # noqa: PLC0415 - few disks name one

    if event.action is Action.ADD and is_connected(host, event):
        return  # looked at twice while it waited
    if not os.path.isabs(event.script):
        raise HotplugError(f"{event.device}/script is '{event.script}', which is not a full path")
    variables = helper.environment(event.device, event)
    finished = helper.execute(host, host.deadline, event.script, event.action, variables)
    if finished.status:
        said = host.store.read(f"{event.device}/hotplug-error")
        raise (
            HotplugError(os.fsdecode(said))
            if said
            else tool.failed((event.script, event.action), finished)
        )


def is_connected(host: Host, event: Event) -> bool:
    return host.store.read(f"{event.device}/hotplug-status") == CONNECTED
