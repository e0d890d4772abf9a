"""The work of one script run, in this process: for hosts where no agent answers.

Same handlers, same outcome, no indexes: sharing is looked up by reading the store through. The
thin client execs this, so what is imported here is paid for by every disk; a test holds the list.
A child does the work while this process watches the clock, because what hangs in the kernel
cannot be interrupted, and the toolstack's SIGKILL would leave no text.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from hotplug import config
from hotplug.agent import dispatch, host
from hotplug.agent.deadline import GRACE, EventDeadline
from hotplug.agent.dispatch import Outcome
from hotplug.agent.logs import Logs, to_stderr
from hotplug.client import child, wire
from hotplug.errors import HotplugError
from hotplug.events import Action, Event
from hotplug.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.client.child import Tell
    from hotplug.config import Config
    from hotplug.ports import Host

LAST_WORDS = 1.0  # seconds to end the work, and to report the failure; the 40 s are near


def main(argv: Sequence[str]) -> int:
    """Do what the script ``argv[0]`` was run for; the exit status."""
    encoded = [os.fsencode(name) for name in wire.VARIABLES]
    variables = {name: os.environb[name] for name in encoded if name in os.environb}
    try:
        cwd = os.getcwdb()
    except OSError:
        cwd = b"/"  # it was deleted under us
    outcome = invoke(Invocation.decode([os.fsencode(a) for a in argv], variables, cwd))
    to_stderr(outcome.text)
    return outcome.status


def invoke(invocation: Invocation) -> Outcome:
    """The same for words that are at hand already."""
    try:
        settings = config.load()
    except HotplugError as error:
        return dispatch.failed(Logs(config.Config(), stderr=False), invocation.script, error)
    logs = Logs(settings, stderr=False)
    if not invocation.is_probe:
        try:
            invocation.event()  # a wrong call is refused before anything is opened
        except HotplugError as error:
            return dispatch.failed(logs, invocation.script, error)
    deadline = EventDeadline(settings.deadline)
    deadline.started_before(process_age())
    worker = child.start(lambda tell: in_child(settings, logs, invocation, deadline, tell))
    answer = worker.answer(deadline.remaining() + GRACE)
    if answer is None:
        return give_up(settings, logs, invocation, deadline, worker)
    status, text = wire.unpack_reply(answer)
    return Outcome(status, os.fsdecode(text))


def process_age() -> float:
    """Seconds since this process began.

    It began as the thin client, which may have waited for an agent that then died. The toolstack
    counts from there. (For a command for people it is next to nothing.)
    """
    with open("/proc/self/stat", "rb") as stat, open("/proc/uptime", "rb") as uptime:
        began = int(stat.read().rpartition(b")")[2].split()[19])  # field 22, proc(5)
        return float(uptime.read().split()[0]) - began / os.sysconf("SC_CLK_TCK")


def in_child(
    settings: Config, logs: Logs, invocation: Invocation, deadline: EventDeadline, tell: Tell
) -> bytes:
    """The work. What takes long just now is told to the parent, should it have to give up."""
    deadline.note = lambda: tell(b"%d%s" % (deadline.may_be_committed, os.fsencode(deadline.what)))
    try:
        built = host.build(settings)
    except OSError as error:
        problem = HotplugError(f"xenstore cannot be reached: {error}; does this host run Xen?")
        outcome = dispatch.failed(logs, invocation.script, problem)
    else:
        outcome = work(built, logs, invocation, deadline)
    return wire.pack_reply(outcome.status, os.fsencode(outcome.text))


def work(built: Host, logs: Logs, invocation: Invocation, deadline: EventDeadline) -> Outcome:
    try:
        return dispatch.invoke(built, logs, invocation, deadline)
    except ConnectionError as error:
        outcome = dispatch.failed(logs, invocation.script, HotplugError(f"xenstore: {error}"))
        if not invocation.is_probe:
            with contextlib.suppress(OSError):  # it may be back
                reclaim(host.build(built.config), logs, invocation.event())
        return outcome


def reclaim(built: Host, logs: Logs, event: Event) -> None:
    """Take back what the store does not know of.

    Without an agent nobody else would do it before the next run for this device.
    """
    again = Event(Action.RECLAIM, event.device, event.script)
    dispatch.run(built, logs, again, EventDeadline(built.config.deadline))


def give_up(
    settings: Config,
    logs: Logs,
    invocation: Invocation,
    deadline: EventDeadline,
    worker: child.Child,
) -> Outcome:
    """The work takes too long, or somebody killed it: leave the failure in the store, and go."""
    deadline.committed, what = worker.note[:1] == b"1", os.fsdecode(worker.note[1:])
    deadline.stage(what or "starting")
    late: HotplugError = deadline.error()
    if deadline.remaining() > 0:
        late = HotplugError(f"the run was killed while {deadline.what}")
    has_ended = worker.kill(LAST_WORDS)
    if invocation.is_probe:
        return Outcome(2, str(late))
    told: list[Outcome] = []

    def report() -> None:
        event = invocation.event()
        with contextlib.suppress(OSError):
            built = host.build(settings)
            told.append(dispatch.fail(built, logs, event, late, deadline))
            if has_ended:
                reclaim(built, logs, event)

    # The store may be what hangs; then the text on stderr has to do.
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    thread.join(LAST_WORDS)
    return told[0] if told else dispatch.failed(logs, invocation.script, late)


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    os._exit(status)  # a thread that waits for the store must not keep us
