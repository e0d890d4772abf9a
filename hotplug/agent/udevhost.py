"""Hosts whose toolstack runs no scripts: the kernel's events tell what to do.

A uevent may come before its backend is ready, so what is asked for waits for that in the device's
turn. While we listen there is a file that says so, and the udev rules do nothing then. What
happened while nobody listened is found in the store, and among the links.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from hotplug.agent import dispatch, reconcile
from hotplug.agent.dispatch import DONE, Outcome
from hotplug.events import Action
from hotplug.handlers import table
from hotplug.sources import udev, watches

if TYPE_CHECKING:
    from hotplug.agent.deadline import EventDeadline
    from hotplug.agent.main import Agent
    from hotplug.events import Event

SETTLE = 10.0  # seconds a backend has to reach InitWait, as libxl has it
POLL_STATE = 0.02  # seconds
FLAG = "udev"  # below the runtime directory; see udev-rules/xen-hotplug.rules


class UdevHost:
    """Listens to uevents, from its creation until it is closed."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._flag = os.path.join(agent.config.rundir, FLAG)
        self._source = udev.UdevSource()
        agent.poll.register(self._source.fileno(), select.EPOLLIN)
        with open(self._flag, "wb"):
            pass
        agent.attempt("looking for backends that wait", self._look_at_all)

    def fileno(self) -> int:
        return self._source.fileno()

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._flag)
        self._agent.poll.unregister(self._source.fileno())

    def take(self) -> None:
        """Queue what the events ask for."""
        try:
            for properties in self._source.receive():
                for event in udev.events_for(properties):
                    self._queue(event)
        except udev.OverflowedError:
            self._start_again()

    def _start_again(self) -> None:
        agent = self._agent
        agent.logs.failure("xen-hotplug", "uevents were lost, every backend is looked at again")
        agent.poll.unregister(self._source.fileno())
        self._source = udev.UdevSource()
        agent.poll.register(self._source.fileno(), select.EPOLLIN)
        agent.leftovers.take_back_all()
        agent.attempt("looking for backends that wait", self._look_at_all)

    def _look_at_all(self) -> None:
        """What the store shows is told again, in the kernel's words."""
        host = self._agent.host
        for device in reconcile.backends(host, watches.KINDS):
            wish = watches.look(host.store, device, is_known=host.journal.knows(device))
            if wish is None:
                continue
            last = {Action.OFFLINE: [Action.REMOVE]}.get(wish.action, [])
            for action in (wish.action, *last):
                for event in udev.events_for({**wish.variables, "ACTION": action.value}):
                    self._queue(event)
        for _, name in socket.if_nameindex():
            self._look_at_link(name)

    def _look_at_link(self, name: str) -> None:
        """The store does not know of the taps of emulated cards: those that are no ports yet."""
        event = {"SUBSYSTEM": udev.LINKS, "INTERFACE": name, "ACTION": Action.ADD.value}
        for found in udev.events_for(event):
            link = self._agent.host.links.find(name)
            if link is not None and not link.master:
                self._queue(found)

    def _queue(self, event: Event) -> None:
        agent = self._agent

        def work(deadline: EventDeadline) -> Outcome:
            return agent.attempt(event.device, lambda: self._do(event, deadline))

        # A card's script may be somebody's own and run ours for it. That must not wait for its end;
        # and what is left of the card is deleted after either.
        key = f"udev {event.device.key}" if event.device.kind == "vif" else None
        agent.queue(event, work, key=key)

    def _do(self, event: Event, deadline: EventDeadline) -> Outcome:
        agent = self._agent
        store = agent.host.store
        if store.read("libxl/disable_udev") is not None:
            return DONE
        if event.action is Action.ADD and event.device.kind != "vif":  # or else it is a tap
            end = time.monotonic() + SETTLE
            deadline.stage("waiting for the backend to reach state 2")
            while store.read(f"{event.device.path}/state") == b"1" and time.monotonic() < end:
                time.sleep(POLL_STATE)
        handler = table.any_script(event, agent.config.scripts)
        return agent.done(event, dispatch.run(agent.host, agent.logs, event, deadline, handler))
