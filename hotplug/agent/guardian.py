"""Brings back what others delete: the packet filters that hold guests to their addresses.

``nft flush ruleset`` deletes all tables of the host, and so do programs that begin with it, such
as the service nftables when it starts. From then on every guest could forge what it likes. The
kernel tells of it, and each card that is in the journal is looked at in its turn. What happened
while no agent ran is found at its start.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from hotplug.agent import dispatch
from hotplug.events import Action, Event

if TYPE_CHECKING:
    from hotplug.agent.deadline import EventDeadline
    from hotplug.agent.dispatch import Outcome
    from hotplug.agent.main import Agent
    from hotplug.events import Device
    from hotplug.kernel.nft_monitor import Monitor


class Guardian:
    """Listens to the firewall, from its creation until it is closed."""

    def __init__(self, agent: Agent, monitor: Monitor) -> None:
        self._agent = agent
        self._monitor = monitor
        self._waiting: set[Device] = set()  # those that are to be looked at anyway
        agent.poll.register(monitor.fileno(), select.EPOLLIN)
        self._look_at_all()

    def fileno(self) -> int:
        return self._monitor.fileno()

    def close(self) -> None:
        self._agent.poll.unregister(self._monitor.fileno())
        self._monitor.close()

    def take(self) -> None:
        """The kernel has told something."""
        if self._monitor.others_came(self._agent.host.firewall.port):
            self._look_at_all()

    def _look_at_all(self) -> None:
        for device in self._agent.host.journal.devices():
            if device.kind == "vif" and device not in self._waiting:
                self._waiting.add(device)
                self._queue(device)

    def _queue(self, device: Device) -> None:
        agent = self._agent
        script = os.path.join(agent.config.scripts, "vif-bridge")
        event = Event(Action.GUARD, device, script)

        def work(deadline: EventDeadline) -> Outcome:
            self._waiting.discard(device)
            return dispatch.run(agent.host, agent.logs, event, deadline)

        def answer(_: Outcome) -> None:
            self._waiting.discard(device)  # its time may be up before its turn

        agent.queue(event, work, answer=answer)
