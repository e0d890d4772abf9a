"""The work of one script run, in this process: for hosts where no agent answers.

Same handlers, same outcome, no indexes: sharing is looked up by reading the store through. The
thin client execs this, so what is imported here is paid for by every disk; a test holds the list.
A thread does the work while the main thread watches the clock, because a worker that hangs in
the kernel cannot be interrupted, and the toolstack's SIGKILL would leave no text.
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
from hotplug.client import wire
from hotplug.errors import HotplugError
from hotplug.events import Action, Event
from hotplug.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.ports import Host

LOOK_AGAIN = 0.1  # seconds
LAST_WORDS = 1.0  # seconds to report a failure, and to undo; the toolstack's 40 s are near


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
    try:
        built = host.build(settings)
    except OSError as error:
        problem = HotplugError(f"xenstore cannot be reached: {error}; does this host run Xen?")
        return dispatch.failed(logs, invocation.script, problem)
    deadline = EventDeadline(settings.deadline)
    deadline.started_before(process_age())
    return bounded(
        lambda: work(built, logs, invocation, deadline), built, logs, invocation, deadline
    )


def process_age() -> float:
    """Seconds since this process began.

    It began as the thin client, which may have waited for an agent that then died. The toolstack
    counts from there. (For a command for people it is next to nothing.)
    """
    with open("/proc/self/stat", "rb") as stat, open("/proc/uptime", "rb") as uptime:
        began = int(stat.read().rpartition(b")")[2].split()[19])  # field 22, proc(5)
        return float(uptime.read().split()[0]) - began / os.sysconf("SC_CLK_TCK")


def work(built: Host, logs: Logs, invocation: Invocation, deadline: EventDeadline) -> Outcome:
    try:
        return dispatch.invoke(built, logs, invocation, deadline)
    except ConnectionError as error:
        outcome = dispatch.failed(logs, invocation.script, HotplugError(f"xenstore: {error}"))
        if not invocation.is_probe:
            look_again(built, logs, invocation.event())
        return outcome


def look_again(built: Host, logs: Logs, event: Event) -> None:
    """The store broke off. If it is back, what it does not know of is taken back.

    Without an agent nobody else would do it before the next run for this device.
    """
    with contextlib.suppress(OSError):
        deadline = EventDeadline(built.config.deadline)
        reclaim = Event(Action.RECLAIM, event.device, event.script)
        dispatch.run(host.build(built.config), logs, reclaim, deadline)


def bounded(
    task: Callable[[], Outcome],
    built: Host,
    logs: Logs,
    invocation: Invocation,
    deadline: EventDeadline,
) -> Outcome:
    """Wait for the work as long as the event may take."""
    worker, outcome = begin(task)
    worker.join(deadline.remaining() + GRACE)
    patience = LAST_WORDS
    while worker.is_alive() and patience > 0 and not deadline.expire():
        worker.join(LOOK_AGAIN)  # it is writing to the store just now
        patience -= LOOK_AGAIN
    late = deadline.error()
    if worker.is_alive() and not deadline.was_taken:
        # The store hangs in the commit. What comes of it, it alone will know.
        return Outcome(late.exit_code, str(late))
    if not deadline.was_taken:
        return outcome[0] if outcome else Outcome(1, "xen-hotplug: a bug ended this run")
    if invocation.is_probe:
        return Outcome(2, str(late))
    # The store may be what hangs; then the text on stderr has to do.
    event = invocation.event()
    report, told = begin(lambda: dispatch.fail(built, logs, event, late, deadline))
    report.join(LAST_WORDS)
    if told:
        worker.join(LAST_WORDS)  # if it does not hang any more it takes back what it attached
    return told[0] if told else Outcome(late.exit_code, str(late))


def begin(task: Callable[[], Outcome]) -> tuple[threading.Thread, list[Outcome]]:
    """Run something in a thread that may hang; its outcome, once there is one."""
    outcome: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcome.append(task()), daemon=True)
    thread.start()
    return thread, outcome


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs in the kernel must not keep us
