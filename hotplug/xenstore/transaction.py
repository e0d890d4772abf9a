"""Transactions of the store: what ``Client.transaction()`` gives its body, and how it is run.

Reads here see the store as it was when the transaction began plus its own changes. Nothing that was
read here has changed when the commit succeeds. Changes are not sent together with the commit:
xenstored commits what it accepted even if it refused the rest.
"""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import suppress
from dataclasses import dataclass
from errno import EAGAIN, ECANCELED
from time import monotonic, monotonic_ns, sleep

from hotplug.xenstore import operations
from hotplug.xenstore.errors import refused
from hotplug.xenstore.protocol import ABORT, COMMIT, TRANSACTION_END, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self, TypeVar

    from hotplug.xenstore.batch import Batch
    from hotplug.xenstore.connection import Connection
    from hotplug.xenstore.operations import Change

    T = TypeVar("T")

ATTEMPTS = 64  # at a transaction. With the pauses below this is about a second of losing
FIRST_PAUSE = 0.0002  # seconds, doubled with every attempt
LONGEST_PAUSE = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Write:
    """One change of a transaction; ``value`` None removes the node and all below it."""

    path: str
    value: bytes | None


class Transaction:
    """Asked for by its creation, or with the next request, and open by its first use.

    Over the kernel's device, where every request has to be waited for, its first use asks for it:
    a domain may have ten at a time.
    """

    __slots__ = ("_asked", "_connection", "_deadline", "_number")

    def __init__(self, connection: Connection, *, with_next: bool = False) -> None:
        self._connection = connection
        self._deadline = monotonic() + connection.timeout  # for the answer to the request for it
        self._asked: Batch | None = None
        if connection.transport.pipelines:
            if with_next:
                self._asked = operations.begin_with_next(connection)
            else:
                self._asked = operations.begin(connection, self._deadline)
        self._number: int | None = None  # before it is open; 0 after its end

    def read(self, path: str) -> bytes | None:
        return self.read_many((path,))[0]

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """All values in one round trip."""
        return operations.read_many(self._connection, self._open(), paths)

    def directory(self, path: str) -> list[str] | None:
        return self.directory_many((path,))[0]

    def directory_many(self, paths: Sequence[str]) -> list[list[str] | None]:
        """The names of the children, in one round trip as long as each list fits 4 KiB."""
        return operations.directory_many(self._connection, self._open(), paths)

    def apply(self, changes: Sequence[Change]) -> None:
        """Make changes, all in one round trip."""
        self.read_and_apply((), changes)

    def read_and_apply(self, paths: Sequence[str], changes: Sequence[Change]) -> list[bytes | None]:
        """Read, then change, in one round trip.

        To judge by the values and raise is not too late: an exception in the body aborts.
        """
        return operations.read_and_apply(self._connection, self._open(), paths, changes)

    def commit(self) -> bool:
        """End it; False if somebody else changed what was read or written here."""
        number, self._number = self._open(), 0
        batch = self._connection.exchange((COMMIT,), number)
        if batch.refusals and batch.refusals[0] != EAGAIN:
            raise refused(batch.refusals[0], VERBS[TRANSACTION_END], "")
        return not batch.refusals

    def abort(self) -> None:
        """End it without effect. Silent if even that fails: there is an error already."""
        if self._asked is not None and self._connection.riders.discard(self._asked):
            self._asked = None
        if self._asked is not None or self._number:
            with suppress(OSError):
                self._connection.exchange((ABORT,), self._open())
        self._number = 0

    @property
    def is_over(self) -> bool:
        return self._number == 0

    def _open(self) -> int:
        if self._number is None:
            asked, self._asked, self._number = self._asked, None, 0
            if asked is None:
                self._deadline = monotonic() + self._connection.timeout
                asked = operations.begin(self._connection, self._deadline)
            self._number = operations.begun(self._connection, asked, self._deadline)
        if not self._number:  # xenstored would answer ENOENT, as if all nodes were absent
            raise ValueError("this xenstore transaction has ended")
        return self._number


class Begun:
    """A transaction that was asked for ahead of its use: what is done meanwhile needs no wait.

    Use it in a ``with`` statement, at whose end it is over, whether it was used or not.
    """

    __slots__ = ("_connection", "_current", "_mutex", "_staged")

    def __init__(self, connection: Connection, *, with_next: bool = False) -> None:
        self._connection = connection
        self._current = Transaction(connection, with_next=with_next)
        self._mutex = allocate_lock()  # of the others
        self._staged: list[Any] = []  # what the body returned that is to be committed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._current.abort()

    def stage(self, body: Callable[[Transaction], T]) -> T:
        """Run ``body`` and do not commit yet: ``run`` with the same body does.

        Nobody sees its changes so far. Who decides against them leaves the ``with``.
        """
        with self._mutex:
            try:
                result = self._play(body)
            except BaseException:
                self._current.abort()
                raise
            self._staged.append(result)
        return result

    def run(self, body: Callable[[Transaction], T], *, attempts: int = ATTEMPTS) -> T:
        """Run ``body`` until its commit succeeds, as ``Client.transaction()`` does."""
        with self._mutex:
            for attempt in range(attempts):
                if attempt:
                    # At random, so that two who collide do not do so again.
                    pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
                    sleep(pause * (monotonic_ns() % 1024) / 1024)
                    self._current = Transaction(self._connection)
                try:
                    result: T = self._staged.pop() if self._staged else self._play(body)
                except BaseException:
                    self._current.abort()
                    raise
                if self._current.commit():
                    return result
        raise OSError(EAGAIN, f"others changed the same part of xenstore {attempts} times")

    def _play(self, body: Callable[[Transaction], T]) -> T:
        if self._current.is_over:
            raise OSError(ECANCELED, "the xenstore transaction was given up meanwhile")
        return body(self._current)

    def give_up(self) -> None:
        """End it in place of its owner, who hangs elsewhere: xenstored holds it as long.

        Nothing happens if the owner is in here.
        """
        if self._mutex.acquire(blocking=False):
            try:
                self._current.abort()
            finally:
                self._mutex.release()
