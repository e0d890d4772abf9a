"""The work of one script run, in this process: for hosts where no agent answers.

Same handlers, same outcome, no indexes: sharing is looked up by reading the store through. The
thin client execs this, so what is imported here is paid for by every disk; a test holds the list.
A thread does the work while the main thread watches the clock, because a worker that hangs in
the kernel cannot be interrupted, and the toolstack's SIGKILL would leave no text.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from hotplug import config
from hotplug.agent import dispatch, host
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import Outcome
from hotplug.agent.logs import Logs, to_stderr
from hotplug.client import wire
from hotplug.errors import HotplugError
from hotplug.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.ports import Host


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
    return bounded(
        lambda: work(built, logs, invocation, deadline), built, logs, invocation, deadline
    )


def work(built: Host, logs: Logs, invocation: Invocation, deadline: EventDeadline) -> Outcome:
    try:
        return dispatch.invoke(built, logs, invocation, deadline)
    except ConnectionError as error:
        return dispatch.failed(logs, invocation.script, HotplugError(f"xenstore: {error}"))


def bounded(
    task: Callable[[], Outcome],
    built: Host,
    logs: Logs,
    invocation: Invocation,
    deadline: EventDeadline,
) -> Outcome:
    """Wait for the work as long as the event may take."""
    outcome: list[Outcome] = []
    worker = threading.Thread(target=lambda: outcome.append(task()), daemon=True)
    worker.start()
    worker.join(deadline.remaining())
    while not outcome and not deadline.expire() and worker.is_alive():
        worker.join(0.1)  # it is writing its result just now
    if not outcome and deadline.was_taken:
        worker.join(0.0)
        late = deadline.error()
        if invocation.is_probe:
            return Outcome(2, str(late))
        return dispatch.fail(built, logs, invocation.event(), late, deadline)
    worker.join()
    return outcome[0] if outcome else Outcome(1, "xen-hotplug: the run ended without a result")


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs in the kernel must not keep us
