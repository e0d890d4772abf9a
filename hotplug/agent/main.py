"""The agent: builds the Host and the sources, runs the loop, reloads by rebuilding.

One thread waits for everything (clients, the store's watch, uevents, signals, the clock) and
never does anything that can take long; workers do. If the store goes away the agent ends, is
started again, and the cold start repairs: what every backend wants is in the store, and what was
attached is in the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import select
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from hotplug import __version__, config
from hotplug.agent import dispatch, host, notify, status
from hotplug.agent.ahead import Ahead
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import DONE, Outcome
from hotplug.agent.driverdomain import DriverDomain
from hotplug.agent.leftovers import Leftovers
from hotplug.agent.logs import Logs
from hotplug.agent.queues import Job, Queues
from hotplug.agent.restorer import Restorer
from hotplug.agent.retries import Retries
from hotplug.agent.rundir import lock_rundir
from hotplug.client import wire
from hotplug.errors import HotplugError
from hotplug.events import BASE, Action, Event
from hotplug.invocation import Invocation
from hotplug.kernel import devd
from hotplug.listening import listen
from hotplug.sources import control

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.agent.guardian import Guardian
    from hotplug.agent.udevhost import UdevHost
    from hotplug.config import Config
    from hotplug.ports import Host

TOKEN = "xen-hotplug"  # noqa: S105 - a watch's name, not a secret
BURST = 0.001  # seconds that the events of a toolstack's transaction take to come
LAST_LOOK = 1.0  # seconds for the store to tell us
DRAIN = 38.0  # seconds: an event's deadline, and its answer


class Agent:
    """Everything that lives as long as the process."""

    def __init__(self, settings: Config, *, driver_domain: bool = False) -> None:
        self.config = settings
        self.started = time.monotonic()
        self.failed = 0
        self.logs = Logs(settings, stderr=True)
        self._lock = lock_rundir(settings.rundir)
        parts = host.assemble(settings, watch=True)
        self.host: Host = parts.host
        self._store = parts.store
        self._holders = parts.holders
        self._late = parts.late
        self._ahead: Ahead | None = None
        self.queues = Queues(self._crash)
        self.leftovers = Leftovers(self)
        self._retries = Retries(self.leftovers.take_back)
        self._changes: deque[str] = deque()  # paths of watch events; its operations are atomic
        self._signals: deque[int] = deque()
        self._crashed: BaseException | None = None
        self.poll = select.epoll()
        self._wake_end, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self._wake_end, select.EPOLLIN)
        self.control: control.ControlSource | None = None
        self._made_socket = False
        self.driver_domain = DriverDomain(self) if driver_domain else None
        self.udev: UdevHost | None = None
        self._restorer: Restorer | None = None
        self._guardian: Guardian | None = None
        self._has_cards = any(device.kind == "vif" for device in self.host.journal.devices())

    # The life of the process

    def run(self) -> int:
        """Serve until SIGTERM. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _: self._signal(received))
        signal.set_wakeup_fd(self._wake_fd, warn_on_full_buffer=False)
        self._watch_store()
        self.leftovers.take_back_all()
        if self.driver_domain is not None:
            self.attempt("looking for backends", self.driver_domain.look_at_all)
        self._listen()
        self._follow_udev()
        if self.driver_domain is None:  # guests are restored elsewhere
            self._restorer = Restorer(self.config.rundir, self.poll, self.logs)
        self._follow_filters()
        notify.ready(f"{__version__}, waiting for devices")
        warm = (self.host, self._late)
        threading.Thread(target=host.warm_up, args=warm, name="warm-up", daemon=True).start()
        try:
            return self._loop()
        finally:
            self._close()

    def _loop(self) -> int:
        watchdog = notify.watchdog_interval()
        next_alive = 0.0
        self.queues.tick_from_here()
        while self._crashed is None:
            waits = [None if self._restorer is None else self._restorer.tick()]
            if watchdog is not None:
                now = time.monotonic()
                if now >= next_alive:
                    notify.alive()
                    next_alive = now + watchdog
                waits.append(next_alive - now)
            waits.append(self.queues.tick())  # the last, for it wakes workers up
            timeout = min((wait for wait in waits if wait is not None), default=None)
            for descriptor, events in self.poll.poll(timeout):
                self._ready(descriptor, events)
            if not self._handle_signals():
                return 0
        self.logs.failure("xen-hotplug", f"the agent ends: {self._crashed}")
        return 1

    def _ready(self, descriptor: int, events: int) -> None:
        if self.control is not None and descriptor == self.control.fileno():
            self.control.accept()
        elif self.udev is not None and descriptor == self.udev.fileno():
            self.udev.take()
        elif self._restorer is not None and descriptor == self._restorer.fileno():
            self._restorer.ended()
        elif self._guardian is not None and descriptor == self._guardian.fileno():
            self._guardian.take()
        elif descriptor == self._wake_end:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_end, 65536)
            self._take_changes()
            self._follow_filters()
        elif self.control is not None:
            self.control.ready(descriptor, events)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._wake_fd, b"\0")

    def _crash(self, error: BaseException) -> None:
        """A worker met something that we do not survive, above all the loss of the store."""
        self._crashed = error
        self._wake()

    def _signal(self, number: int) -> None:
        self._signals.append(number)

    def _handle_signals(self) -> bool:
        while self._signals:
            if self._signals.popleft() == signal.SIGHUP:
                self._reload()
            else:
                return self._drain()
        return True

    def _drain(self) -> bool:
        self.queues.tick()  # what was asked for a moment ago does not wait for the rest of this
        notify.stopping()
        self._stop_listening()
        # What was removed by now is known after a round trip, if the store has not gone before us.
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        looking.join(LAST_LOOK)
        self._take_changes()
        self._close_restorer()
        if not self.queues.drain(DRAIN):
            left = ", ".join(job.name for job in self.queues.snapshot())
            self.logs.failure("xen-hotplug", f"the agent ends while these still hang: {left}")
        return False

    def _reload(self) -> None:
        self.queues.tick()
        notify.reloading()
        try:
            self.config = config.load()
        except HotplugError as error:
            self.logs.failure("xen-hotplug", f"not reloaded, the old settings stay: {error}")
        else:
            self.logs = Logs(self.config, stderr=True)
            self.host = dataclasses.replace(self.host, config=self.config)
            self._follow_udev()
            self._follow_filters()
        notify.ready("reloaded")

    def _close(self) -> None:
        if self.control is not None:
            self._stop_listening()
            self.control.close()
        if self.udev is not None:
            self.udev.close()
        self._close_restorer()
        if self._guardian is not None:
            self._guardian.close()
        os.close(self._lock)

    def _close_restorer(self) -> None:
        if self._restorer is not None:
            self._restorer.close()
            self._restorer = None

    # Sources

    def _listen(self) -> None:
        passed = notify.listen_sockets()
        self._made_socket = not passed
        listener = passed[0] if passed else listen(self._socket_path())
        self.control = control.ControlSource(listener, self.poll, self._serve)

    def _socket_path(self) -> str:
        return os.path.join(self.config.rundir, wire.SOCKET)

    def _stop_listening(self) -> None:
        """Clients that come from now on do their work themselves."""
        if self.control is not None and self.control.stop() and self._made_socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket_path())

    def _follow_udev(self) -> None:
        """Begin or stop to listen to uevents, as the configuration says."""
        wanted = self.config.udev and self.driver_domain is None  # which has the store's watches
        if wanted and self.udev is None:
            from hotplug.agent.udevhost import UdevHost  # noqa: PLC0415 - few hosts need it

            self.udev = UdevHost(self)
        elif not wanted and self.udev is not None:
            self.udev.close()
            self.udev = None

    def _follow_filters(self) -> None:
        """Begin to listen to the firewall, on hosts with cards; what came before is looked at."""
        if self._guardian is not None or not self._has_cards or self.config.antispoof == "never":
            return
        from hotplug.agent.guardian import Guardian  # noqa: PLC0415 - who has no cards
        from hotplug.kernel.guards import TABLE  # noqa: PLC0415 - shall not
        from hotplug.kernel.nft_monitor import Monitor  # noqa: PLC0415 - pay for them

        try:
            monitor = Monitor(TABLE)
        except OSError:
            return  # a kernel without nf_tables has no filters that could go
        self._guardian = Guardian(self, monitor)

    def _watch_store(self) -> None:
        store = self._store
        if store.reads_are_barriers and self.driver_domain is None:
            self._ahead = Ahead(store, self._holders)
            self._ahead.start(self._crash)
            self.host = dataclasses.replace(self.host, ahead=self._ahead.of)
        store.watch(BASE, TOKEN, self._changed)
        self._holders.watched(None if store.reads_are_barriers else store.barrier)
        # Where the toolstack asks us for devices, what the events tell is not urgent.
        store.start_pump(self._crash, 0.0 if self.driver_domain else BURST)

    def _changed(self, path: str, _token: str) -> None:
        """A watch event: runs in the store's reader, so it only takes note."""
        came_or_went = self._holders.changed(path)
        if self._ahead is not None:
            self._ahead.changed(path)
        if came_or_went is not None or self.driver_domain or path.count("/") < 4:
            self._changes.append(path)
            self._wake()

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self._store.barrier()

    def _take_changes(self) -> None:
        while self._changes:
            path = self._changes.popleft()
            self.leftovers.changed(path)
            if self.driver_domain is not None:
                self.driver_domain.changed(path)

    # Work

    def attempt(self, subject: object, work: Callable[[], Outcome | None]) -> Outcome:
        """What one device refuses us shall not end the agent."""
        return dispatch.attempt(self.logs, "xen-hotplug", subject, work)

    def queue(
        self,
        event: Event,
        work: Callable[[EventDeadline], Outcome],
        *,
        key: str | None = None,
        answer: Callable[[Outcome], None] = lambda _: None,
        late: Callable[[HotplugError, EventDeadline], Outcome] | None = None,
        deadline: EventDeadline | None = None,
    ) -> Job:
        """Do something in its device's turn. Whatever thread this is, the loop sees to the time."""
        name = os.path.basename(event.script)
        job = Job(
            key=key or event.device.key,
            name=f"{name} {event.action} {event.device}",
            work=work,
            answer=answer,
            late=late or (lambda error, taken: self._fail(event, error, taken)),
            deadline=deadline or EventDeadline(self.config.deadline),
        )
        self.queues.submit(job)
        if threading.current_thread() is not threading.main_thread():
            self._wake()
        return job

    def _fail(self, event: Event, error: HotplugError, deadline: EventDeadline) -> Outcome:
        return dispatch.fail(self.host, self.logs, event, error, deadline)

    def done(self, event: Event, outcome: Outcome) -> Outcome:
        """Count failures. What one could not take back just then is tried again."""
        if event.device.kind == "vif" and not self._has_cards:
            self._has_cards = True
            self._wake()
        if outcome.status:
            self.failed += 1
        if outcome.status and self.host.journal.knows(event.device):
            self._retries.failed(event.device)
        else:
            self._retries.settled(event.device)
        return outcome

    def _serve(self, client: control.Connection, request: wire.Request) -> None:
        """A client asks for something."""
        if request.verb == b"status":
            client.answer(0, status.describe(self).encode())
            return
        asked = Invocation.decode(request.argv, request.variables, request.cwd)
        invocation = dispatch.resolve(self.config, asked)

        def answer(outcome: Outcome) -> None:
            client.answer(outcome.status, os.fsencode(outcome.text))

        try:
            event = dispatch.event_of(invocation, client.pid)
        except HotplugError as error:
            answer(dispatch.failed(self.logs, invocation.script, error))
            return
        if event is None:
            answer(DONE)
            return
        job = self.queue(event, functools.partial(self._invoke, invocation, event), answer=answer)
        if event.action in (Action.ADD, Action.ONLINE):
            client.abandon = job.deadline.abandon

    def _invoke(self, invocation: Invocation, event: Event, deadline: EventDeadline) -> Outcome:
        outcome = dispatch.invoke(self.host, self.logs, invocation, deadline, event)
        return self.done(event, outcome)


def run(settings: Config, *, driver_domain: bool) -> int:
    """``xen-hotplug agent``."""
    threading.stack_size(256 * 1024)  # bytes; handlers are shallow and there may be many workers
    if driver_domain:
        devd.refuse()
    return Agent(settings, driver_domain=driver_domain).run()
