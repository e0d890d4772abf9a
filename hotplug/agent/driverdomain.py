"""The backends of a driver domain, which nobody else serves: in place of ``xl devd``.

A watch event makes us look at a backend, and what it wants is done in the device's turn. The look
itself does not wait for that: while an attach hangs, the toolstack may want the device removed,
and it waits only ten seconds for the backend to disappear. So a removal has less time than other
events. When that is over the backend is deleted, whatever its handler does, as ``xl devd``
deletes it whatever the script said; what is left attached is then taken back like everything
whose backend vanished.

Nothing is remembered here. What there was before the agent started is looked at like the rest.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from hotplug.agent import dispatch, reconcile
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import DONE, Outcome
from hotplug.agent.queues import Job
from hotplug.errors import HotplugError
from hotplug.events import Action
from hotplug.handlers import table
from hotplug.sources import watches

if TYPE_CHECKING:
    from hotplug.agent.main import Agent
    from hotplug.events import Device, Event

REMOVAL = 7.0  # seconds: dom0's libxl waits 10 s after state 6, and then gives up with an error
REMOVALS = (Action.REMOVE, Action.OFFLINE)


class DriverDomain:
    """Serves the agent's own domain."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._arrivals: dict[Device, list[EventDeadline]] = {}  # that wait or are under way
        self._has_told = False

    def look_at_all(self) -> None:
        for device in reconcile.backends(self._agent.host, watches.KINDS):
            self._look(device)
        for device in reconcile.backends(self._agent.host, watches.QEMU_KINDS):
            self._tell(device)

    def changed(self, path: str) -> None:
        """A watch event."""
        device = watches.watched_device(path)
        if device is not None:
            self._look(device)
            return
        device = watches.watched_device(path, watches.QEMU_KINDS)
        if device is not None:
            self._tell(device)

    def _tell(self, device: Device) -> None:
        """``xl devd`` starts a QEMU for some kinds of devices. Once is enough to say this."""
        if not self._has_told:
            self._has_told = True
            self._agent.logs.failure(
                "xen-hotplug",
                f"{device}: devices of the kinds {' and '.join(watches.QEMU_KINDS)} need a QEMU in"
                " this domain, and xen-hotplug starts none; only `xl devd` does",
            )

    def _look(self, device: Device) -> None:
        """Find out what a backend wants, and queue it."""
        agent = self._agent

        def work(_: EventDeadline) -> Outcome:
            return agent.attempt(device, lambda: self._find_out(device))

        agent.queues.submit(
            Job(
                key=f"look {device.key}",
                name=f"look at {device}",
                work=work,
                answer=lambda _: None,
                late=lambda error, _: dispatch.failed(
                    agent.logs, "xen-hotplug", HotplugError(f"{device}: {error}")
                ),
                deadline=EventDeadline(agent.config.deadline),
            )
        )

    def _wish(self, device: Device) -> Event | None:
        host = self._agent.host
        wish = watches.look(host.store, device, is_known=host.journal.knows(device))
        if wish is None or table.is_ours(wish, self._agent.config.scripts):
            return wish
        # A script of others leaves nothing in the journal. That its card connected has to do.
        return watches.look(host.store, device, is_known=True)

    def _find_out(self, device: Device) -> None:
        event = self._wish(device)
        if event is None:
            return
        work = functools.partial(self._act, event)
        key = table.turn(event, self._agent.config.scripts)
        if event.action not in REMOVALS:
            deadline = EventDeadline(self._agent.config.deadline)
            self._arrivals.setdefault(device, []).append(deadline)
            self._agent.queue(event, work, key=key, deadline=deadline)
            return
        for arrival in self._arrivals.pop(device, ()):
            arrival.abandon()  # nobody wants it any more, and it may take long
        late = functools.partial(self._delete_late, event)
        deadline = EventDeadline(min(REMOVAL, self._agent.config.deadline))
        self._agent.queue(event, work, key=key, late=late, deadline=deadline)

    def _act(self, event: Event, deadline: EventDeadline) -> Outcome:
        try:
            return self._agent.attempt(event.device, lambda: self._do(event, deadline))
        finally:
            with contextlib.suppress(KeyError, ValueError):  # a removal has come
                self._arrivals[event.device].remove(deadline)

    def _do(self, event: Event, deadline: EventDeadline) -> Outcome:
        agent = self._agent
        wish = self._wish(event.device)
        if wish is None or wish.action is not event.action:
            return DONE  # it is done, or has changed meanwhile: then it is queued
        handler = table.any_script(wish, agent.config.scripts)
        outcome = agent.done(wish, dispatch.run(agent.host, agent.logs, wish, deadline, handler))
        if wish.action in REMOVALS:
            watches.delete_backend(agent.host.store, wish.device)
        return outcome

    def _delete_late(self, event: Event, error: HotplugError, _: EventDeadline) -> Outcome:
        """A removal takes too long: its backend goes first, which tells the agent to take back."""
        device = event.device
        text = f"{device}: {event.action}: {error}; the backend is deleted all the same"
        outcome = dispatch.failed(self._agent.logs, event.script, HotplugError(text))
        self._agent.attempt(device, lambda: watches.delete_backend(self._agent.host.store, device))
        return outcome
