"""From an event to its outcome: the one place that catches.

A failure that we expect is a sentence: it goes to the store as ``hotplug-error`` with the word
for ``hotplug-status``, to the log, and back to whoever asked. Anything else is a bug and says so,
with a traceback in the log. A backend that is gone gets no keys: they would bring it back.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from hotplug.errors import HotplugError, UsageError
from hotplug.events import BASE, Action, Device, Event
from hotplug.handlers import table
from hotplug.handlers.disk import retraction
from hotplug.ports import Write

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.agent.deadline import EventDeadline
    from hotplug.agent.logs import Logs
    from hotplug.config import Config
    from hotplug.invocation import Invocation
    from hotplug.ports import Host, Snapshot

MAX_TEXT = 2000  # bytes; a xenstore message holds 4,096 with the path, and people read this


class Outcome(NamedTuple):
    """What the caller gets: an exit status, and text for stderr."""

    status: int
    text: str = ""


DONE = Outcome(0)


def resolve(config: Config, invocation: Invocation) -> Invocation:
    """What vif-setup stands for, if that is a script of ours."""
    if not invocation.is_setup:
        return invocation
    meant = invocation.behind_setup()
    folder, name = os.path.split(os.path.normpath(meant.script))
    ours = {os.path.normpath(config.scripts), os.path.dirname(os.path.normpath(invocation.script))}
    return meant if name in table.CARD_SCRIPTS and folder in ours else invocation


def event_of(invocation: Invocation, pid: int) -> Event | None:
    """What to queue it as. What is about no backend waits for nobody but its caller."""
    if invocation.knows_no_backend:
        return Event(Action.ADD, Device("run", 0, pid), invocation.script)
    return invocation.event()


def invoke(
    host: Host,
    logs: Logs,
    invocation: Invocation,
    deadline: EventDeadline,
    known: Event | None = None,
) -> Outcome:
    """Do what a script was run for; ``known`` is what that is, if it was found out before."""
    if invocation.knows_no_backend:
        return without_backend(host, logs, invocation, deadline)
    try:
        event = known or invocation.event()
    except HotplugError as error:
        return failed(logs, invocation.script, error)
    if event is None:
        return DONE

    def work() -> Outcome:
        if invocation.from_udev and host.store.read("libxl/disable_udev") is not None:
            return DONE  # the toolstack of this host runs the scripts itself
        return run(host, logs, event, deadline)

    return attempt(logs, event.script, event.device, work)


def attempt(
    logs: Logs, script: str, subject: object, work: Callable[[], Outcome | None]
) -> Outcome:
    """Do what belongs to one device, or to the look for devices, and let no other suffer from it.

    What one backend's keys refuse us is that backend's failure. Only the loss of the store is
    everybody's, and a bug.
    """
    try:
        return work() or DONE
    except HotplugError as error:
        return failed(logs, script, HotplugError(f"{subject}: {error}"))
    except OSError as error:
        if is_store_lost(error):
            raise
        return failed(logs, script, HotplugError(f"{subject}: {problem_of(error)}"))


def is_store_lost(error: OSError) -> bool:
    """Whether the store is gone, and with it all we know: start again.

    A file's own file system may have lost its connection too (FUSE: ECONNABORTED).
    """
    return isinstance(error, ConnectionError) and error.filename is None


def run(
    host: Host,
    logs: Logs,
    event: Event,
    deadline: EventDeadline,
    handler: table.Handler | None = None,
) -> Outcome:
    """Handle an event, whatever happens."""
    own = dataclasses.replace(
        host,
        deadline=deadline,
        note=functools.partial(note, logs, event),
        known=host.ahead(event.device) if is_arrival(event) else None,
    )
    try:
        refuse_elsewhere(host, event.device)
        handle(own, event, deadline, handler or table.handler(event))
    except HotplugError as error:
        if deadline.was_taken:
            return Outcome(error.exit_code)  # whoever took it has answered
        return fail(host, logs, event, error, deadline)
    except OSError as error:
        if is_store_lost(error):
            raise
        if deadline.was_taken:
            return Outcome(1)
        return fail(host, logs, event, HotplugError(sentence(event, error)), deadline)
    except Exception as error:  # noqa: BLE001 - whatever it is, the toolstack gets an answer
        logs.traceback(event.script)
        bug = HotplugError(f"{event.action} failed: {type(error).__name__}: {error}")
        return fail(host, logs, event, bug, deadline)
    # If it was taken, whoever took it has reported a failure: what is there now is to go again.
    return DONE if deadline.finish() else Outcome(1)


def is_arrival(event: Event) -> bool:
    """Whether a backend is to get its device. A tap is an addition to a card's."""
    return event.action is (Action.ONLINE if event.device.kind == "vif" else Action.ADD)


def handle(own: Host, event: Event, deadline: EventDeadline, handler: table.Handler) -> None:
    """Do it; once more if what had been read before the event came was not true any more.

    Nothing is left of the first time then, as of everything that fails.
    """
    try:
        handler(own, event)
    except (HotplugError, OSError):
        if not is_misled(own, event, deadline):
            raise
        deadline.check()
        handler(dataclasses.replace(own, known=None), event)


def is_misled(own: Host, event: Event, deadline: EventDeadline) -> bool:
    """Whether an event failed that went by what is not true."""
    known = own.known
    if known is None or not known.in_use or not deadline.remaining():
        return False
    if known.is_true:
        try:
            own.store.read(event.device.path)  # for the events that come before the answer
        except OSError as error:
            if is_store_lost(error):
                raise
    return not known.is_true


def note(logs: Logs, event: Event, text: str) -> None:
    """A handler went on all the same: for the log only."""
    logs.note(f"{event.script}: {event.device}: {' '.join(text.split())}")


def refuse_elsewhere(host: Host, device: Device) -> None:
    """UsageError for another domain's backend.

    It has the numbers of one of ours, and with them its loop device and its line in the journal.
    libxl too takes its own number from ``domid``; a domain 0 without a toolstack has none.
    """
    if device.base == BASE:
        return
    own = os.fsdecode(host.store.read("domid") or b"0")
    if device.base != f"/local/domain/{own}/{BASE}":
        raise UsageError(f"{device} belongs to another domain than ours, which is domain {own}")


def sentence(event: Event, error: OSError) -> str:
    """What the system refused, for people: the object and the problem, no errno."""
    return f"{event.action} failed: {problem_of(error)}"


def problem_of(error: OSError) -> str:
    problem = error.strerror or str(error)
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{problem}"


def fail(
    host: Host, logs: Logs, event: Event, error: HotplugError, deadline: EventDeadline
) -> Outcome:
    """Leave the failure where people and toolstacks look for it."""
    if error.status is not None and not event.action.is_ours:
        try:
            host.store.transaction(
                lambda store: report(store, event, error, retract=deadline.committed)
            )
        except ConnectionError:
            raise
        except OSError as problem:
            logs.failure(event.script, f"{event.device}: hotplug-error not written: {problem}")
    return failed(logs, event.script, error)


def report(store: Snapshot, event: Event, error: HotplugError, *, retract: bool) -> None:
    """Write a failure, unless the backend is gone."""
    base = event.device.path
    if store.read_many([base]) == [None]:
        return
    text = os.fsencode(str(error))[:MAX_TEXT]
    changes = [
        *(retraction(event.device) if retract else ()),
        Write(f"{base}/hotplug-error", text),
        Write(f"{base}/hotplug-status", (error.status or "error").encode()),
    ]
    store.apply(changes)


def failed(logs: Logs, script: str, error: HotplugError) -> Outcome:
    text = str(error)
    logs.failure(script, text)
    return Outcome(error.exit_code, text)


# Runs that are about no backend, or for somebody else's script.


def without_backend(
    host: Host, logs: Logs, invocation: Invocation, deadline: EventDeadline
) -> Outcome:
    """There is an exit status, and perhaps a text."""
    own = dataclasses.replace(host, deadline=deadline)
    try:
        if invocation.is_probe:
            return probe(own, invocation)
        if invocation.is_setup:
            return run_foreign(own, logs, invocation, deadline)
        return bridge_tap(own, invocation)
    except HotplugError as error:
        return failed(logs, invocation.script, error)
    except OSError as error:
        if is_store_lost(error):
            raise
        return failed(logs, invocation.script, HotplugError(problem_of(error)))


def probe(host: Host, invocation: Invocation) -> Outcome:
    """block-drbd-probe: the state of a DRBD device."""
    from hotplug.handlers.targets import drbd  # noqa: PLC0415 - only Remus asks

    if len(invocation.argv) < 2:
        return Outcome(2, f"{invocation.script}: the device to look at is missing")
    device = invocation.argv[1]
    status = drbd.probe(host.programs, host.deadline, device)
    return Outcome(status, drbd.explain(device, status))


def bridge_tap(host: Host, invocation: Invocation) -> Outcome:
    """qemu-ifup: a tap becomes a port of a bridge."""
    from hotplug.handlers import ifup  # noqa: PLC0415 - only a few old device models ask

    ifup.run(host, invocation.argv[1:])
    return DONE


def run_foreign(host: Host, logs: Logs, invocation: Invocation, deadline: EventDeadline) -> Outcome:
    """vif-setup, and the card's script is none of ours."""
    from hotplug.handlers import setup  # noqa: PLC0415 - few hosts have such scripts

    if invocation.from_udev and host.store.read("libxl/disable_udev") is not None:
        return DONE  # the toolstack of this host runs the scripts itself
    event = card_event(invocation)
    if event is not None:
        refuse_elsewhere(host, event.device)
        host.store.remove(f"{event.device}/hotplug-error")  # what is there afterwards is its own
    argv = invocation.behind_setup().argv
    try:
        finished = setup.run(host, argv, invocation.variables)
    except HotplugError as error:
        if event is None:
            raise
        return fail(host, logs, event, error, deadline)
    said = os.fsdecode(finished.stdout + finished.stderr).removesuffix("\n")
    if not finished.status:
        return Outcome(0, said)
    if event is not None and not host.store.read(f"{event.device}/hotplug-error"):
        fail(host, logs, event, setup.problem(argv, finished), deadline)
    return Outcome(setup.exit_status(finished), said)


def card_event(invocation: Invocation) -> Event | None:
    """The card that a run of vif-setup is about, if it makes sense."""
    try:
        return invocation.event()
    except UsageError:
        return None
