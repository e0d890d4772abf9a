"""What is asked of the store, inside a transaction or outside: requests made, replies understood.

Functions over a ``Connection`` and a transaction's number, shared by ``client`` and
``transaction``. An absent node is None; every other refusal is an OSError that names the path.
"""

from __future__ import annotations

from contextlib import suppress
from errno import E2BIG, EACCES, EAGAIN, ENOENT, ENOSYS, EPERM
from time import monotonic

from hotplug.xenstore.batch import Batch
from hotplug.xenstore.errors import ProtocolError, refused, timed_out
from hotplug.xenstore.paths import encode
from hotplug.xenstore.protocol import (
    ABORT,
    DIRECTORY,
    DIRECTORY_PART,
    NO_TRANSACTION,
    READ,
    RM,
    START,
    VERBS,
    WRITE,
    directory_part,
    names,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from hotplug.xenstore.batch import Outgoing
    from hotplug.xenstore.connection import Connection

    class Change(Protocol):
        """A change to make; see ``transaction.Write``."""

        @property
        def path(self) -> str: ...

        @property
        def value(self) -> bytes | None: ...


ABSENT = (ENOENT,)
ABSENT_OR_FORBIDDEN = (ENOENT, EACCES, EPERM)
RESTARTS = 8  # a listing takes a millisecond or so, and few nodes change that often
LISTING_MAX = 1 << 24  # bytes of names; a domain may own a thousand nodes, domain 0 any number


def ask(connection: Connection, kind: int, payload: bytes, path: str) -> bytes:
    """One request outside of transactions; refusals are errors about ``path``."""
    batch = connection.exchange(((kind, payload),), NO_TRANSACTION)
    reply = batch.replies[0]
    if reply is None:
        raise refused(batch.refusals[0], VERBS[kind], path)
    return reply


def ask_unless_absent(connection: Connection, kind: int, payload: bytes, path: str) -> bytes | None:
    """The same; None for an absent node."""
    batch = connection.exchange(((kind, payload),), NO_TRANSACTION)
    reply = batch.replies[0]
    if reply is None and batch.refusals[0] != ENOENT:
        raise refused(batch.refusals[0], VERBS[kind], path)
    return reply


def begin(connection: Connection, deadline: float) -> Batch:
    """Ask for a transaction. Whoever does must see to it that ``begun`` is called soon.

    Until then nobody reads what comes, if nobody asks anything.
    """
    if not connection.transport.pipelines:
        return connection.exchange((START,), NO_TRANSACTION)
    batch = Batch(1)
    try:
        connection.send(batch, 0, (START,), NO_TRANSACTION, deadline)
    except TimeoutError:
        raise timed_out(connection.timeout, VERBS[START[0]], "") from None
    return batch


def begin_with_next(connection: Connection) -> Batch:
    """Ask for a transaction when the next request is sent. ``begun`` need not be called."""
    batch = Batch(1)
    connection.riders.add(batch, (START,), NO_TRANSACTION)
    return batch


def begun(connection: Connection, batch: Batch, deadline: float) -> int:
    """The number of the transaction that was asked for."""
    try:
        if connection.riders.discard(batch):
            connection.send(batch, 0, (START,), NO_TRANSACTION, deadline)
        connection.wait(batch, deadline)
    except TimeoutError:
        connection.riders.drop(batch)
        if batch.replies[0] is not None:  # it came just now
            connection.riders.abort(batch.replies[0])
        raise timed_out(connection.timeout, VERBS[START[0]], "") from None
    reply = batch.replies[0]
    if reply is None:
        raise refused(batch.refusals[0], VERBS[START[0]], "")
    return int(reply.rstrip(b"\0"))


def fit(connection: Connection, payload: bytes, path: str) -> bytes:
    """Check that a request is not longer than xenstored takes, or it would drop us."""
    limit = connection.transport.payload_max
    if len(payload) > limit:
        text = f"too long for xenstore: {len(payload)} bytes with the path, the limit is {limit}"
        raise OSError(E2BIG, text, path)
    return payload


def read_many(
    connection: Connection,
    transaction: int,
    paths: Sequence[str],
    absent: tuple[int, ...] = ABSENT,
) -> list[bytes | None]:
    """The values of nodes, all asked for at once; None for the errnos in ``absent``."""
    batch = connection.exchange([(READ, encode(path)) for path in paths], transaction)
    for index, number in batch.refusals.items():
        if number not in absent:
            raise refused(number, VERBS[READ], paths[index])
    return batch.replies


def changes_to_requests(connection: Connection, changes: Sequence[Change]) -> list[Outgoing]:
    """What carries out changes."""
    return [
        (RM, encode(change.path))
        if change.value is None
        else (WRITE, fit(connection, encode(change.path) + change.value, change.path))
        for change in changes
    ]


def read_and_apply(
    connection: Connection, transaction: int, paths: Sequence[str], changes: Sequence[Change]
) -> list[bytes | None]:
    """Read, then change, in one round trip. To remove what is absent is fine."""
    requests: list[Outgoing] = [(READ, encode(path)) for path in paths]
    requests += changes_to_requests(connection, changes)
    batch = connection.exchange(requests, transaction)
    for index, number in batch.refusals.items():
        kind = requests[index][0]
        if number != ENOENT or kind == WRITE:
            subject = [*paths, *(change.path for change in changes)][index]
            raise refused(number, VERBS[kind], subject)
    return batch.replies[: len(paths)]


def directory_many(
    connection: Connection, transaction: int, paths: Sequence[str]
) -> list[list[str] | None]:
    """The children of nodes, all asked for at once; then those that do not fit a message."""
    batch = connection.exchange([(DIRECTORY, encode(path)) for path in paths], transaction)
    listings = [None if reply is None else names(reply) for reply in batch.replies]
    for index, number in batch.refusals.items():
        if number == E2BIG:
            listings[index] = _large_directory(connection, transaction, paths[index])
        elif number != ENOENT:
            raise refused(number, VERBS[DIRECTORY], paths[index])
    return listings


def survey(
    connection: Connection, directories: Sequence[str], nodes: Sequence[str]
) -> tuple[list[list[str] | PermissionError | None], list[bytes | PermissionError | None]]:
    """Children of nodes and values of nodes, all asked for at once; refusals in their places."""
    requests = [(DIRECTORY, encode(path)) for path in directories]
    requests += [(READ, encode(path)) for path in nodes]
    batch = connection.exchange(requests, NO_TRANSACTION)
    count = len(directories)
    listings: list[list[str] | PermissionError | None]
    listings = [None if reply is None else names(reply) for reply in batch.replies[:count]]
    values: list[bytes | PermissionError | None] = [*batch.replies[count:]]
    for index, number in batch.refusals.items():
        if number == E2BIG and index < count:
            listings[index] = _large_directory(connection, NO_TRANSACTION, directories[index])
        elif number != ENOENT:
            path = directories[index] if index < count else nodes[index - count]
            error = refused(number, VERBS[requests[index][0]], path)
            if not isinstance(error, PermissionError):
                raise error
            if index < count:
                listings[index] = error
            else:
                values[index - count] = error
    return listings, values


def _large_directory(connection: Connection, transaction: int, path: str) -> list[str] | None:
    """List in parts; from the start again if the node changed in between."""
    for _ in range(RESTARTS):
        with suppress(_ChangedError):
            return _parts(connection, transaction, path)
    if transaction:
        raise OSError(EAGAIN, f"changed {RESTARTS} times while xenstore listed it", path)
    # In a transaction nobody can change it. Not at once, since that is dearer for the daemon.
    deadline = monotonic() + connection.timeout
    number = begun(connection, begin(connection, deadline), deadline)
    try:
        return _large_directory(connection, number, path)
    finally:
        with suppress(OSError):
            connection.exchange((ABORT,), number)


class _ChangedError(Exception):
    """What was listed so far does not fit what comes now."""


def _parts(connection: Connection, transaction: int, path: str) -> list[str] | None:
    parts: list[bytes] = []
    size = 0
    generation = None
    while True:
        payload = b"%s%d\0" % (encode(path), size)
        batch = connection.exchange(((DIRECTORY_PART, payload),), transaction)
        reply = batch.replies[0]
        if reply is None:
            number = batch.refusals[0]
            if number == ENOENT:
                return None
            # A daemon without DIRECTORY_PART (before Xen 4.9) cannot do better than this.
            raise refused(E2BIG if number == ENOSYS else number, VERBS[DIRECTORY], path)
        current, part = directory_part(reply)
        if generation not in (None, current):
            raise _ChangedError
        generation = current
        parts.append(part)
        size += len(part)
        if part == b"\0" or part.endswith(b"\0\0"):
            return names(b"".join(parts)[:-1])
        if not part or size > LISTING_MAX:
            raise ProtocolError(f"the list of the children of {path} does not end")
