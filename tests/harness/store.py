"""A minimal xenstore client, independent of the one under test.

One connection, one request at a time except for ``write_many``; not thread-safe. The protocol is
in ``docs/misc/xenstore.txt`` of the Xen tree: a header of four 32-bit words (type, request,
transaction, length), then the payload.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass, field
from typing import Self, TypeAlias

HEADER = struct.Struct("=IIII")
DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END, INTRODUCE, RELEASE = range(1, 10)
WRITE, MKDIR, REMOVE, SET_PERMS, EVENT, ERROR = range(11, 17)
SECONDS = 20.0  # a store that does not answer is a failed test, not a hung one

Value: TypeAlias = str | bytes | int


def encode(value: Value) -> bytes:
    """What a node holds for a value given in a test."""
    return value if isinstance(value, bytes) else str(value).encode()


@dataclass(slots=True)
class Store:
    """A connection to a xenstored socket."""

    path: str
    connection: socket.socket = field(init=False)
    events: list[tuple[str, str]] = field(default_factory=list)  # (path, token), not yet taken

    def __post_init__(self) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        try:
            # Still without a time limit: xenstored's backlog is 1, and where a blocking
            # connect() waits for room in it, one with a limit fails with EAGAIN.
            self.connection.connect(self.path)
        except OSError:
            self.connection.close()
            raise
        self.connection.settimeout(SECONDS)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, kind: int, *parts: bytes, transaction: int = 0) -> bytes:
        """Send one request and return what it answers; OSError if the store refuses."""
        self._send(kind, parts, transaction)
        return self._answer(parts[0] if parts else b"")

    def read(self, path: str, transaction: int = 0) -> bytes | None:
        try:
            return self.call(READ, path.encode() + b"\0", transaction=transaction)
        except FileNotFoundError:
            return None

    def write(self, path: str, value: Value) -> None:
        self.call(WRITE, path.encode() + b"\0", encode(value))

    def write_many(self, values: dict[str, Value]) -> None:
        """Write nodes in one transaction."""

        def body(transaction: int) -> None:
            for path, value in values.items():
                self.call(WRITE, path.encode() + b"\0", encode(value), transaction=transaction)

        self.transaction(body)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.call(REMOVE, path.encode() + b"\0")

    def directory(self, path: str) -> list[str]:
        """The names below a node, none if it is absent."""
        try:
            names = self.call(DIRECTORY, path.encode() + b"\0")
        except FileNotFoundError:
            return []
        return [name.decode() for name in names.split(b"\0")[:-1]]

    def exists(self, path: str) -> bool:
        return self.read(path) is not None

    def tree(self, path: str) -> dict[str, bytes]:
        """Every node below ``path`` that has a value, by its path relative to it."""
        found = {}
        for name in self.directory(path):
            value = self.read(f"{path}/{name}")
            if value:
                found[name] = value
            for below, deeper in self.tree(f"{path}/{name}").items():
                found[f"{name}/{below}"] = deeper
        return found

    def set_permissions(self, path: str, *permissions: str) -> None:
        """Set who may do what, e.g. "n0", "r5"; the first names the owner."""
        words = [permission.encode() + b"\0" for permission in permissions]
        self.call(SET_PERMS, path.encode() + b"\0", *words)

    def transaction(self, body) -> None:
        """Run ``body(transaction id)`` and commit; again if somebody else was faster."""
        for _ in range(100):
            number = int(self.call(START, b"\0").rstrip(b"\0"))
            body(number)
            try:
                self.call(END, b"T\0", transaction=number)
            except BlockingIOError:
                continue
            return
        raise TimeoutError("100 transactions in a row met a conflict")

    def watch(self, path: str) -> None:
        self.call(WATCH, path.encode() + b"\0", b"test\0")

    def next_event(self) -> str:
        """Wait for a watch to fire; the path that changed."""
        while not self.events:
            self._receive()
        return self.events.pop(0)[0]

    def _send(self, kind: int, parts: tuple[bytes, ...], transaction: int) -> None:
        payload = b"".join(parts)
        self.connection.sendall(HEADER.pack(kind, 0, transaction, len(payload)) + payload)

    def _answer(self, subject: bytes) -> bytes:
        while True:
            kind, payload = self._receive()
            if kind == ERROR:
                number = getattr(errno, payload.rstrip(b"\0").decode())
                raise OSError(number, "xenstored refused", subject.rstrip(b"\0").decode())
            if kind != EVENT:
                return payload

    def _receive(self) -> tuple[int, bytes]:
        kind, _, _, length = HEADER.unpack(self._exactly(HEADER.size))
        payload = self._exactly(length)
        if kind == EVENT:
            path, token = payload.split(b"\0")[:2]
            self.events.append((path.decode(), token.decode()))
        return kind, payload

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.connection.recv(count - len(data))
            if not piece:
                raise ConnectionResetError(f"xenstored at {self.path} closed the connection")
            data += piece
        return data
