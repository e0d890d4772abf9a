"""A client of the Open vSwitch database: one connection, a few calls, no policy.

Facts that are not obvious (RFC 7047; Open vSwitch 3.1, lib/jsonrpc.c, lib/json.c):

- Messages are JSON objects in a row, without any frame: an object's end is where its braces end.
- The server asks with "echo" whether we are alive, whenever it has heard nothing for a while, and
  hangs up if there is no answer.
- A transaction is answered as a success even if it failed: the error is in the list of results,
  behind those of the operations before it.
- A "wait" with timeout 0 makes a transaction fail ("timed out") if a row is not as it was read.
- Strings are UTF-8 without NUL, and the server hangs up on anything else.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import itertools
import json
import os
import select
import time
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from socket import socket as Socket  # noqa: N812 - the module of that name is imported late

    from hotplug.ports import Deadline

DATABASE = "Open_vSwitch"
DEFAULT_RUNDIR = "/var/run/openvswitch"
CHUNK = 65536
MAX_MESSAGE = 1 << 20  # characters; we ask for a few rows
FULL = 0.02  # seconds between two tries to enter a full queue
SLICE = 0.1  # seconds between two looks at whether anybody still waits

# What the protocol is made of; who calls knows the columns.
Operation: TypeAlias = dict[str, Any]
Rows: TypeAlias = list[dict[str, Any]]


class StaleError(Exception):
    """A row is not any more as it was read: read it again."""


def default_path() -> str:
    """Where ovsdb-server listens, told to all of Open vSwitch's programs by the same variable."""
    return f"{os.environ.get('OVS_RUNDIR') or DEFAULT_RUNDIR}/db.sock"


def text(value: str) -> str:
    """A string of ours, which may hold any bytes, as one that the database takes."""
    return os.fsencode(value).decode(errors="backslashreplace").replace("\0", r"\x00")


def named(name: str) -> list[str]:
    """A row that the same transaction inserts."""
    return ["named-uuid", name]


def values(column: object) -> list[Any]:
    """What is in a column: the protocol writes a set of one without its braces."""
    if isinstance(column, list) and len(column) == 2 and column[0] == "set":
        return list(column[1])
    return [column]


class Patience:
    """How long one conversation may take: its own limit, and the event's if there is one."""

    __slots__ = ("_deadline", "_end", "seconds")

    def __init__(self, deadline: Deadline | None, seconds: float) -> None:
        self.seconds = min(seconds, deadline.remaining()) if deadline else seconds
        self._deadline = deadline
        self._end = time.monotonic() + self.seconds

    def slice(self) -> float:
        """Seconds to wait at most before the next look; TimeoutError if there are none left."""
        if self._deadline is not None:
            self._deadline.check()
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer for {self.seconds:.0f} s")
        return min(SLICE, left)


class Session:
    """A conversation with ovsdb-server. Every OSError has the socket's path as its file."""

    __slots__ = ("_connection", "_decoder", "_ids", "_patience", "_pending", "_poll")

    def __init__(self, connection: Socket, patience: Patience) -> None:
        self._connection = connection
        self._patience = patience
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._ids = itertools.count(1)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def transact(self, *operations: Operation) -> list[Any]:
        """All or nothing; one result for each operation. StaleError if a "wait" failed."""
        results = self._call("transact", [DATABASE, *operations])
        for result in results:
            if result and "error" in result:
                if result["error"] == "timed out":
                    raise StaleError
                raise refusal(result)
        return list(results)

    def follow(self, table: str, column: str) -> Iterator[Any]:
        """The column's value in the table's only row: now, and whenever it changes, for ever."""
        yield from newest(self._call("monitor", [DATABASE, None, {table: {"columns": [column]}}]))
        while True:
            message = self._receive()
            if message.get("method") == "update":
                yield from newest(message["params"][1])

    def _call(self, method: str, params: Sequence[Any]) -> Any:
        number = next(self._ids)
        self._send({"method": method, "params": params, "id": number})
        while (message := self._receive()).get("id") != number or "method" in message:
            pass
        if message.get("error") is not None:
            raise refusal(message["error"])
        return message["result"]

    def _send(self, message: Operation) -> None:
        self._connection.sendall(json.dumps(message).encode())  # far less than the socket takes

    def _receive(self) -> dict[str, Any]:
        """The next message that is none of the server's own questions."""
        while True:
            message = self._next()
            if message.get("method") != "echo":
                return message
            self._send({"id": message["id"], "result": message["params"], "error": None})

    def _next(self) -> dict[str, Any]:
        while True:
            self._pending = self._pending.lstrip()
            if len(self._pending) > MAX_MESSAGE or self._pending[:1] not in ("", "{"):
                raise OSError(errno.EPROTO, "what answers there is no ovsdb-server")
            try:
                message, end = json.JSONDecoder().raw_decode(self._pending)
            except json.JSONDecodeError:  # the rest has not come yet
                self._pending += self._decoder.decode(self._read())
            except RecursionError:
                raise OSError(errno.EPROTO, "what answers there is no ovsdb-server") from None
            else:
                self._pending = self._pending[end:]
                return dict(message)

    def _read(self) -> bytes:
        while not self._poll.poll(1000 * self._patience.slice()):
            pass
        data = self._connection.recv(CHUNK)
        if not data:
            raise OSError(errno.ECONNRESET, "ovsdb-server closed the connection")
        return data


def newest(updates: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """The values of one column in a monitor's table-updates."""
    for rows in updates.values():
        for row in rows.values():
            yield from row.get("new", {}).values()


def refusal(error: Any) -> OSError:
    """Why the server did not do it: {"error": "constraint violation", "details": "..."}."""
    if not isinstance(error, dict):
        error = {"error": error}
    parts = [str(error[key]) for key in ("error", "details") if error.get(key)]
    return OSError(errno.EPROTO, f"ovsdb-server refused: {': '.join(parts)}")


@contextlib.contextmanager
def connected(path: str, deadline: Deadline | None, seconds: float) -> Iterator[Session]:
    """A conversation that takes no longer than this.

    An OSError out of it names the socket, unless it has a name already.
    """
    import socket  # noqa: PLC0415 - costs milliseconds, and most devices do not come here

    patience = Patience(deadline, seconds)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            dial(connection, path, patience)
            yield Session(connection, patience)
    except OSError as error:
        if error.filename is not None:
            raise
        question = "" if error.errno == errno.EPROTO else "; is Open vSwitch running?"
        raise OSError(error.errno, f"{error.strerror or error}{question}", path) from error


def dial(connection: Socket, path: str, patience: Patience) -> None:
    """connect(2), which on a non-blocking Unix socket does not wait for room in the queue."""
    connection.setblocking(False)
    while (code := connection.connect_ex(path)) == errno.EAGAIN:
        time.sleep(min(FULL, patience.slice()))
    if code:
        raise OSError(code, os.strerror(code))
    connection.settimeout(patience.seconds)
