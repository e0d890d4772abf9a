"""The work of one script run, in this process: for hosts where no agent answers.

Same handlers, same outcome, no indexes: sharing is looked up by reading the store through. The
thin client execs this, so what is imported here is paid for by every disk; a test holds the list.
A child does the work while this process watches the clock, because what hangs in the kernel
cannot be interrupted, and the toolstack's SIGKILL would leave no text. What it leaves behind when
it is given up is taken back by a process that may outlive both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from hotplug import config, xenstore
from hotplug.agent import dispatch, host
from hotplug.agent.deadline import GRACE, EventDeadline
from hotplug.agent.dispatch import Outcome
from hotplug.agent.logs import Logs, to_stderr
from hotplug.client import child, wire
from hotplug.errors import HotplugError, error_text
from hotplug.events import Action, Event
from hotplug.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hotplug.client.child import Tell
    from hotplug.config import Config
    from hotplug.ports import Host

LAST_WORDS = 1.0  # seconds to end the work, and to report the failure; the 40 s are near
PROBE_FAILED = 2  # block-drbd-probe: not found out; 1 is an answer
BY_SIGNAL = 128  # plus the signal's number, as a shell has it: the exit status of who is stopped
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(Exception):
    """Somebody wants this process to end."""

    def __init__(self, number: int, _: object) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(argv: Sequence[str]) -> int:
    """Do what the script ``argv[0]`` was run for; the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how programs end
    outcome = invoke(our_invocation(argv), age=process_age())
    to_stderr(outcome.text)
    return outcome.status


def report(argv: Sequence[str]) -> int:
    """The thin client failed with the sentence ``argv[0]``; the rest is its own argv."""
    try:
        settings = config.load()
    except HotplugError:
        settings = config.Config()
    logs = Logs(settings, stderr=False)
    return leave_word(logs, our_invocation(argv[1:]), HotplugError(argv[0])).status


def our_invocation(argv: Sequence[str]) -> Invocation:
    """What this process was run for."""
    encoded = [os.fsencode(name) for name in wire.VARIABLES]
    variables = {name: os.environb[name] for name in encoded if name in os.environb}
    return Invocation.decode([os.fsencode(a) for a in argv], variables, working_directory())


def working_directory() -> bytes:
    try:
        return os.getcwdb()
    except OSError:
        return b"/"  # it was deleted under us


def process_age() -> float:
    """Seconds since this process began.

    It began as the thin client, which may have waited for an agent that then died. The toolstack
    counts from there.
    """
    try:
        with open("/proc/self/stat", "rb") as stat:
            began = int(stat.read().rpartition(b")")[2].split()[19])  # field 22, proc(5)
        with open("/proc/uptime", "rb") as uptime:
            return float(uptime.read().split()[0]) - began / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0  # no descriptor is free; that will be the failure


def invoke(invocation: Invocation, *, age: float = 0.0) -> Outcome:
    """The same for words that are at hand already; the toolstack waits for ``age`` seconds."""
    try:
        settings = config.load()
    except HotplugError as error:
        return leave_word(Logs(config.Config(), stderr=False), invocation, error)
    logs = Logs(settings, stderr=False)
    invocation = dispatch.resolve(settings, invocation)
    try:
        event = dispatch.event_of(invocation, 0)  # refused before anything is opened
    except HotplugError as error:
        return dispatch.failed(logs, invocation.script, error)
    if event is None:
        return dispatch.DONE
    deadline = EventDeadline(settings.deadline)
    deadline.started_before(age)
    with stoppable():
        try:
            worker = child.start(lambda tell: in_child(settings, logs, invocation, deadline, tell))
        except OSError as error:
            problem = HotplugError(f"no process can be started: {error_text(error)}")
            return leave_word(logs, invocation, problem)
        return supervise(settings, logs, invocation, deadline, worker)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Signals that end a process raise StoppedError, but not yet: they are blocked in here.

    Who ignores one, as what runs under nohup does, goes on ignoring it.
    """
    former = {number: signal.getsignal(number) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stop(number: int, frame: object) -> None:
    raise StoppedError(number, frame)


def supervise(
    settings: Config,
    logs: Logs,
    invocation: Invocation,
    deadline: EventDeadline,
    worker: child.Child,
) -> Outcome:
    """Wait for the child's answer. If there is none, leave the failure in the store, and go."""
    status = 1
    try:
        answer = answer_of(worker, deadline.remaining() + GRACE)
        if answer is not None:
            status, text = wire.unpack_reply(answer)
            return Outcome(status, os.fsdecode(text))
        error: HotplugError = no_answer(worker, deadline)
    except child.WorkError as problem:
        error = HotplugError(str(problem))
    except StoppedError as stopped:
        deadline.what = doing(worker)
        error = HotplugError(f"the run was stopped ({stopped}) while {deadline.what}")
        status = BY_SIGNAL + stopped.number
    worker.kill(LAST_WORDS)
    outcome = late_outcome(worker)
    if outcome is not None:
        return outcome
    outcome = leave_word(logs, invocation, error, retract=worker.note[:1] == b"1")
    tidy_up(settings, logs, invocation, worker)
    return outcome if status == 1 else Outcome(status, outcome.text)


def late_outcome(worker: child.Child) -> Outcome | None:
    """What the child said while we gave it up; above all, whether it got to the commit."""
    with contextlib.suppress(child.WorkError):
        answer = worker.answer(0)
        if answer is not None:
            status, text = wire.unpack_reply(answer)
            return Outcome(status, os.fsdecode(text))
    return None


def answer_of(worker: child.Child, seconds: float) -> bytes | None:
    """Its answer; StoppedError as soon as we shall end."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        return worker.answer(seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def no_answer(worker: child.Child, deadline: EventDeadline) -> HotplugError:
    """Why: the work takes too long, or somebody killed it."""
    deadline.what = doing(worker)
    if deadline.remaining() > 0:
        return HotplugError(f"the run was killed while {deadline.what}")
    return deadline.error()


def doing(worker: child.Child) -> str:
    """What takes so long, as it said itself."""
    return os.fsdecode(worker.note[1:]) or "starting"


def in_child(
    settings: Config, logs: Logs, invocation: Invocation, deadline: EventDeadline, tell: Tell
) -> bytes:
    """The work. What takes long just now is told to the parent, should it have to give up."""
    deadline.note = lambda: tell(b"%d%s" % (deadline.may_be_committed, os.fsencode(deadline.what)))
    outcome = work(settings, logs, invocation, deadline)
    return wire.pack_reply(outcome.status, os.fsencode(outcome.text))


def work(settings: Config, logs: Logs, invocation: Invocation, deadline: EventDeadline) -> Outcome:
    """HotplugError if it could not even be begun, or not go on: then the parent reports that."""
    words = " ".join(invocation.argv[1:2]) or "run"
    try:
        built = host.build(settings)
    except ConnectionError as error:
        raise HotplugError(
            f"xenstore cannot be reached: {error}; does this host run Xen?"
        ) from error
    except OSError as error:
        raise HotplugError(f"{words} failed: {error_text(error)}") from error
    except Exception as error:  # whatever it is, the toolstack gets an answer
        logs.traceback(invocation.script)
        raise HotplugError(f"{words} failed: {type(error).__name__}: {error}") from error
    try:
        return dispatch.invoke(built, logs, invocation, deadline)
    except ConnectionError as error:
        raise HotplugError(f"xenstore: {error}") from error


def tidy_up(settings: Config, logs: Logs, invocation: Invocation, worker: child.Child) -> None:
    """Take back what the store does not know of; it may take longer than our caller waits.

    Without an agent nobody else would do it before the next run for this device. A child that
    hangs in the kernel may attach something yet, so its end comes first.
    """
    event = None
    with contextlib.suppress(HotplugError):
        event = invocation.event()
    if event is None or invocation.knows_no_backend:
        return
    has_ended = worker.has_ended()

    def tidy() -> None:
        if not has_ended:
            child.wait_for_end(worker.pid)
        reclaim(host.build(settings), logs, event)

    try:
        pid = child.leave(tidy)
    except OSError:  # no room for a process: at least try
        if has_ended:
            with contextlib.suppress(Exception):
                tidy()
        return
    if has_ended:
        child.ends(pid, LAST_WORDS)


def reclaim(built: Host, logs: Logs, event: Event) -> None:
    again = Event(Action.RECLAIM, event.device, event.script)
    dispatch.run(built, logs, again, EventDeadline(built.config.deadline))


def leave_word(
    logs: Logs,
    invocation: Invocation,
    error: HotplugError,
    *,
    retract: bool = False,
) -> Outcome:
    """Report a failure that no handler could report, in a time that the toolstack has left."""
    if invocation.is_probe:
        return Outcome(PROBE_FAILED, str(error))

    def write() -> None:
        event = invocation.event()
        if event is None:
            return
        with xenstore.connect(timeout=LAST_WORDS) as store:
            store.transaction(lambda found: dispatch.report(found, event, error, retract=retract))

    def try_to_write() -> None:
        with contextlib.suppress(Exception):  # then the text on stderr has to do
            write()

    thread = threading.Thread(target=try_to_write, daemon=True)  # the store may be what hangs
    try:
        thread.start()
    except RuntimeError:
        try_to_write()  # this host has no room for a thread; each request has its limit
    else:
        thread.join(LAST_WORDS)
    return dispatch.failed(logs, invocation.script, error)


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    os._exit(status)  # a thread that waits for the store must not keep us
