"""What is left of backends that went without anybody asking us for their removal.

The watch tells which backends went; what they left behind is taken back in their devices' turns.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from hotplug.agent import dispatch, reconcile
from hotplug.events import BASE, Action, Device, Event

if TYPE_CHECKING:
    from hotplug.agent.deadline import EventDeadline
    from hotplug.agent.dispatch import Outcome
    from hotplug.agent.main import Agent

LOCKS = ("block", "iptables", "vif-nat-dhcp", "vif-route-proxies", "vifname")  # our handlers'


class Leftovers:
    """Of all devices that the journal knows, and of our loop devices that it does not know."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def take_back(self, device: Device) -> None:
        """Have a device looked at in its turn; nothing happens if its backend wants it."""
        agent = self._agent
        event = Event(Action.RECLAIM, device, os.path.join(agent.config.scripts, "block"))

        def work(deadline: EventDeadline) -> Outcome:
            return agent.done(event, dispatch.run(agent.host, agent.logs, event, deadline))

        agent.queue(event, work)

    def take_back_all(self) -> None:
        """What went while nobody looked, and what runs before us left behind."""
        host = self._agent.host
        host.locks.sweep(LOCKS)
        for device in host.journal.devices():
            self.take_back(device)
        self._agent.attempt("looking for loop devices that nobody wants", self._detach_unknown)

    def _detach_unknown(self) -> None:
        agent = self._agent
        for leak in reconcile.unknown_loops(agent.host, self._refused):
            agent.logs.note(f"xen-hotplug: {leak.device}: no backend wants {leak.what}: detached")
            agent.attempt(leak.device, functools.partial(reconcile.detach, agent.host, leak))

    def _refused(self, device: Device, error: PermissionError) -> None:
        self._agent.logs.failure("xen-hotplug", f"{device}: {dispatch.problem_of(error)}")

    def changed(self, path: str) -> None:
        """A watch event; it may be that a backend went, or all of a guest or of a kind."""
        parts = path[path.index(BASE) :].split("/")
        journal = self._agent.host.journal
        if len(parts) == 4 and parts[2].isdigit() and parts[3].isdigit():
            device = Device(parts[1], int(parts[2]), int(parts[3]))
            if journal.knows(device):
                self.take_back(device)
        elif len(parts) < 4:
            for device in journal.devices():
                if [BASE, device.kind, str(device.domid)][: len(parts)] == parts:
                    self.take_back(device)
