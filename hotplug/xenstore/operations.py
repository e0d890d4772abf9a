"""What is asked of the store, inside a transaction or outside: requests made, replies understood.

Functions over a ``Connection`` and a transaction's number, shared by ``client`` and
``transaction``. An absent node is None; every other refusal is an OSError that names the path.
"""

from __future__ import annotations

from errno import E2BIG, EACCES, EAGAIN, ENOENT, ENOSYS, EPERM
from typing import cast

from hotplug.xenstore.errors import ProtocolError, refused
from hotplug.xenstore.paths import encode
from hotplug.xenstore.protocol import (
    DIRECTORY,
    DIRECTORY_PART,
    READ,
    RM,
    VERBS,
    WRITE,
    directory_part,
    names,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from hotplug.xenstore.connection import Connection, Outgoing

    class Change(Protocol):
        """A change to make; see ``transaction.Write``."""

        @property
        def path(self) -> str: ...

        @property
        def value(self) -> bytes | None: ...


ABSENT = (ENOENT,)
ABSENT_OR_FORBIDDEN = (ENOENT, EACCES, EPERM)
RESTARTS = 16  # a listing takes a millisecond or so; who changes it this often never stops
LISTING_MAX = 1 << 24  # bytes of names; a domain may own a thousand nodes, domain 0 any number


def ask(connection: Connection, kind: int, payload: bytes, path: str) -> bytes:
    """One request outside of transactions; refusals are errors about ``path``."""
    reply = connection.exchange(((kind, payload),), 0).replies[0]
    if isinstance(reply, int):
        raise refused(reply, VERBS[kind], path)
    return reply


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
    forbidden_is_absent: bool,  # noqa: FBT001 - passed on, keyword-only where users call
) -> list[bytes | None]:
    """The values of nodes, all asked for at once."""
    batch = connection.exchange([(READ, encode(path)) for path in paths], transaction)
    if batch.failed:
        absent = ABSENT_OR_FORBIDDEN if forbidden_is_absent else ABSENT
        return _values(paths, batch.replies, absent)
    return cast("list[bytes | None]", batch.replies)


def _values(
    paths: Sequence[str], replies: Sequence[bytes | int], absent: tuple[int, ...]
) -> list[bytes | None]:
    values: list[bytes | None] = []
    for path, reply in zip(paths, replies, strict=True):
        if not isinstance(reply, int):
            values.append(reply)
        elif reply in absent:
            values.append(None)
        else:
            raise refused(reply, VERBS[READ], path)
    return values


def changes_to_requests(connection: Connection, changes: Sequence[Change]) -> list[Outgoing]:
    """What carries out changes."""
    return [
        (RM, encode(change.path))
        if change.value is None
        else (WRITE, fit(connection, encode(change.path) + change.value, change.path))
        for change in changes
    ]


def check_changes(changes: Sequence[Change], replies: Sequence[bytes | int]) -> None:
    """Raise the first refusal. To remove what is absent is none."""
    for change, reply in zip(changes, replies, strict=True):
        if isinstance(reply, int) and not (change.value is None and reply == ENOENT):
            raise refused(reply, VERBS[RM if change.value is None else WRITE], change.path)


def read_and_apply(
    connection: Connection, transaction: int, paths: Sequence[str], changes: Sequence[Change]
) -> list[bytes | None]:
    """Read, then change, in one round trip."""
    requests: list[Outgoing] = [(READ, encode(path)) for path in paths]
    requests += changes_to_requests(connection, changes)
    batch = connection.exchange(requests, transaction)
    if not batch.failed:
        return cast("list[bytes | None]", batch.replies[: len(paths)])
    check_changes(changes, batch.replies[len(paths) :])
    return _values(paths, batch.replies[: len(paths)], ABSENT)


def directory_many(
    connection: Connection, transaction: int, paths: Sequence[str]
) -> list[list[str] | None]:
    """The children of nodes, all asked for at once; then those that do not fit a message."""
    batch = connection.exchange([(DIRECTORY, encode(path)) for path in paths], transaction)
    listings: list[list[str] | None] = []
    for path, reply in zip(paths, batch.replies, strict=True):
        if not isinstance(reply, int):
            listings.append(names(reply))
        elif reply == ENOENT:
            listings.append(None)
        elif reply == E2BIG:
            listings.append(_large_directory(connection, transaction, path))
        else:
            raise refused(reply, VERBS[DIRECTORY], path)
    return listings


def _large_directory(connection: Connection, transaction: int, path: str) -> list[str] | None:
    """List in parts, from the start again if the node changed in between."""
    for _ in range(RESTARTS):
        parts: list[bytes] = []
        offset = 0
        first_generation = None
        while True:
            payload = b"%s%d\0" % (encode(path), offset)
            reply = connection.exchange(((DIRECTORY_PART, payload),), transaction).replies[0]
            if isinstance(reply, int):
                if reply == ENOENT:
                    return None
                # A daemon without DIRECTORY_PART (before Xen 4.9) cannot do better than this.
                raise refused(E2BIG if reply == ENOSYS else reply, VERBS[DIRECTORY], path)
            generation, part = directory_part(reply)
            if first_generation is None:
                first_generation = generation
            elif generation != first_generation:
                break
            parts.append(part)
            offset += len(part)
            if part == b"\0" or part.endswith(b"\0\0"):
                return names(b"".join(parts)[:-1])
            if not part or offset > LISTING_MAX:
                raise ProtocolError(f"the list of the children of {path} does not end")
    text = f"changed {RESTARTS} times while xenstore listed it; try again when it is quieter"
    raise OSError(EAGAIN, text, path)
