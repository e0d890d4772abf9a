"""The agent, or a one-shot run, that asks the test before every call to a port.

As programs, with the socket of ``harness/steps.py`` in STEPS_SOCKET::

    faulty.py agent PYTHON -m hotplug agent ..     in place of the agent's command
    faulty.py oneshot SCRIPT ACTION                in place of the drop-in where no agent runs

What runs is the real thing with the real ports; only the Host that the handlers get is wrapped,
so that production code needs no hooks. Asked is before every call that a handler makes while it
works on an event: of a port, of what a port gave it (a claim, a located path, the store inside a
transaction), at the beginning and the end of every ``with``, and between a transaction's body and
its commit. The answer is to go on, or the errno with which that call fails; or none, because
whoever asked was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import socket
import sys
import threading
import time

from hotplug import xenstore
from hotplug.agent import ahead, deadline, dispatch, host

PORTS = (
    "store",
    "loops",
    "paths",
    "mounts",
    "holders",
    "journal",
    "locks",
    "programs",
    "nbd",
    "links",
)
AHEAD_SECONDS = 5.0
VALUES = (io.IOBase, str, bytes, list, tuple, set, dict, bool, int, type(None))


class Asking:
    """The connection to the test. Events that run at once ask one after the other."""

    def __init__(self, path: str) -> None:
        self._armed = os.path.join(os.path.dirname(path), "armed")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._mutex = threading.Lock()
        self._event = threading.local()

    def before(self, what: str) -> None:
        if not getattr(self._event, "armed", False):
            return
        answer = ""
        with self._mutex, contextlib.suppress(ConnectionError):  # the test may want no more
            self._socket.send(what.encode())
            answer = self._socket.recv(100).decode()
        if answer.isdigit():
            raise OSError(int(answer), f"{os.strerror(int(answer))} (by the test)", what)

    def around(self, work):
        """Make an event ask, if the test wants it to."""

        def invoke(*arguments):
            self._event.armed = os.path.exists(self._armed)
            self._event.ahead = self._event.armed and bool(os.path.getsize(self._armed))
            try:
                outcome = work(*arguments)
                self.before("the end")
                return outcome
            finally:
                if self._event.armed:
                    self._event.armed = False
                    with contextlib.suppress(ConnectionError):
                        self._socket.send(b"over")

        return invoke

    def ahead(self, of):
        """What an event that asks gets of what was read ahead does not hang on the clock."""

        def handed_out(known, device):
            if not self._event.armed:
                return of(known, device)
            if not self._event.ahead:
                return None
            give_up = time.monotonic() + AHEAD_SECONDS
            while (found := of(known, device)) is None:
                if time.monotonic() > give_up:
                    raise RuntimeError(f"{device} was not read ahead")
                time.sleep(0.001)
            return found

        return handed_out


class Wrapped:
    """A port, or something that one gave out: the same, but each call asks first."""

    def __init__(self, target, name: str, asking: Asking) -> None:
        self._target = target
        self._name = name
        self._asking = asking

    def __getattr__(self, name):
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*arguments, **options):
            self._asking.before(f"{self._name}.{name}")
            return self._wrap(value(*map(self._body, arguments), **options), name)

        return call

    def __enter__(self):
        self._asking.before(f"{self._name}, entered")
        return self._wrap(self._target.__enter__(), "")

    def __exit__(self, *error):
        try:
            self._asking.before(f"{self._name}, left")
        except OSError as problem:
            self._target.__exit__(type(problem), problem, None)
            raise
        return self._target.__exit__(*error)

    def _wrap(self, value, name):
        if isinstance(value, VALUES) or dataclasses.is_dataclass(value):
            return value
        return Wrapped(value, ".".join(filter(None, (self._name, name))), self._asking)

    def _body(self, argument):
        """A transaction's body gets a store that asks, too."""
        if self._name not in ("store", "store.begin") or not callable(argument):
            return argument

        def body(snapshot):
            result = argument(Wrapped(snapshot, "snapshot", self._asking))
            self._asking.before("snapshot, left")
            return result

        return body


def install(asking: Asking) -> None:
    """Have every Host of this process ask."""
    assemble = host.assemble
    committing = deadline.EventDeadline.committing

    def wrapped(*arguments, **options):
        parts = assemble(*arguments, **options)
        ports = {name: Wrapped(getattr(parts.host, name), name, asking) for name in PORTS}
        return dataclasses.replace(parts, host=dataclasses.replace(parts.host, **ports))

    host.assemble = wrapped
    deadline.EventDeadline.committing = lambda self: Wrapped(committing(self), "committing", asking)
    dispatch.invoke = asking.around(dispatch.invoke)
    ahead.Ahead.of = asking.ahead(ahead.Ahead.of)


def limit_patience(seconds: float) -> None:
    """Have requests to the store time out sooner than after half a minute."""
    xenstore.connect = functools.partial(xenstore.connect, timeout=seconds)


def main(kind: str, command: list[str]) -> int:
    install(Asking(os.environ["STEPS_SOCKET"]))
    limit_patience(float(os.environ.get("STORE_PATIENCE", "30")))
    if kind == "agent":
        from hotplug import cli  # noqa: PLC0415 - a one-shot run does without

        return cli.main(command[command.index("agent") :])
    from hotplug.client import oneshot  # noqa: PLC0415 - and the agent without this

    return oneshot.main(command)


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2:])
    sys.stderr.flush()
    os._exit(status)  # as the thin client has it: a thread that hangs must not keep us
