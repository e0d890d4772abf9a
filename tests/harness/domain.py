"""A connection to the store as another domain than 0, with that domain's rights.

A domain talks to xenstored through a ring page and an event channel, and one page serves all its
processes: the kernel's /dev/xen/xenbus takes their requests apart. ``Domain`` does both here. It
listens on a Unix socket; what connects there is domain N to the real daemon (relative paths,
permissions, quotas). The layout of the page is Xen's ``public/io/xs_wire.h``, the way to the
daemon in ``tests/xenstored/standalone.c``.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.store import EVENT, HEADER, INTRODUCE, UNWATCH, WATCH, Store

if TYPE_CHECKING:
    from harness.xenstored import Daemon

PAGE = 4096
RING = 1024  # bytes, each way
REQUESTS, RESPONSES = 0, RING  # where the two rings begin
REQUEST_CONSUMER, REQUEST_PRODUCER, RESPONSE_CONSUMER, RESPONSE_PRODUCER = range(
    2 * RING, 2 * RING + 16, 4
)
PORT = 1000  # the first event channel, see standalone.c
WORD = struct.Struct("=I")


@dataclass(slots=True, eq=False)
class Client:
    """One process that is connected to us."""

    number: int
    socket: socket.socket
    watches: set[tuple[bytes, bytes]] = field(default_factory=set)  # (path, the client's token)


class Domain:
    """Domain ``domid`` at a Unix socket."""

    def __init__(self, daemon: Daemon, domid: int) -> None:
        self.path = str(daemon.directory / f"domain-{domid}")
        self.domid = domid
        self._ring, self._events, self._kick = _introduce(daemon, domid)
        self._room = threading.Condition()
        self._pending: dict[int, tuple[Client | None, int]] = {}
        self._clients: dict[int, Client] = {}
        self._requests = itertools.count(1)
        self._numbers = itertools.count(1)
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._accept, self._read_ring)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
        os.write(self._events, b"\0")  # wakes the reader, which sees that we are closing
        for thread in self._threads:
            thread.join()
        os.close(self._events)
        os.close(self._kick)

    # Requests, from the clients to the ring.

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                client = Client(next(self._numbers), connection)
                self._clients[client.number] = client
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: Client) -> None:
        with contextlib.suppress(OSError), client.socket.makefile("rb") as stream:
            while len(header := stream.read(HEADER.size)) == HEADER.size:
                kind, request, transaction, length = HEADER.unpack(header)
                payload = stream.read(length)
                if kind in {WATCH, UNWATCH}:
                    payload = self._watch(client, kind, payload)
                self._send(client, request, kind, transaction, payload)
        for path, token in client.watches:
            name = b"%d:%s" % (client.number, token)
            self._send(None, 0, UNWATCH, 0, path + b"\0" + name + b"\0")
        del self._clients[client.number]
        client.socket.close()

    @staticmethod
    def _watch(client: Client, kind: int, payload: bytes) -> bytes:
        """Note a watch, and make its token say whose it is."""
        path, token = payload.split(b"\0")[:2]
        (client.watches.add if kind == WATCH else client.watches.discard)((path, token))
        return path + b"\0" + b"%d:%s" % (client.number, token) + b"\0"

    def _send(
        self, client: Client | None, request: int, kind: int, transaction: int, payload: bytes
    ) -> None:
        with self._room:
            ours = next(self._requests)
            self._pending[ours] = (client, request)
            data = HEADER.pack(kind, ours, transaction, len(payload)) + payload
            while data and not self._closing:
                producer = self._word(REQUEST_PRODUCER)
                free = RING - (producer - self._word(REQUEST_CONSUMER)) % (1 << 32)
                if not free:
                    self._room.wait(1.0)
                    continue
                start = producer % RING
                piece = data[: min(free, RING - start)]
                self._ring[REQUESTS + start : REQUESTS + start + len(piece)] = piece
                self._set(REQUEST_PRODUCER, producer + len(piece))
                data = data[len(piece) :]
                os.write(self._kick, WORD.pack(PORT + self.domid))

    # Answers and events, from the ring to the clients.

    def _read_ring(self) -> None:
        received = b""
        while not self._closing:
            os.read(self._events, 4096)
            with self._room:
                self._room.notify_all()
            while piece := self._take():
                received += piece
            while len(received) >= HEADER.size:
                kind, request, transaction, length = HEADER.unpack_from(received)
                if len(received) < HEADER.size + length:
                    break
                payload = received[HEADER.size : HEADER.size + length]
                received = received[HEADER.size + length :]
                self._deliver(kind, request, transaction, payload)

    def _take(self) -> bytes:
        consumer = self._word(RESPONSE_CONSUMER)
        waiting = (self._word(RESPONSE_PRODUCER) - consumer) % (1 << 32)
        start = consumer % RING
        count = min(waiting, RING - start)
        piece = bytes(self._ring[RESPONSES + start : RESPONSES + start + count])
        if piece:
            self._set(RESPONSE_CONSUMER, consumer + count)
            os.write(self._kick, WORD.pack(PORT + self.domid))
        return piece

    def _deliver(self, kind: int, request: int, transaction: int, payload: bytes) -> None:
        if kind == EVENT:
            path, name = payload.split(b"\0")[:2]
            number, _, token = name.partition(b":")
            client = self._clients.get(int(number))
            payload, request = path + b"\0" + token + b"\0", 0
        else:
            with self._room:
                client, request = self._pending.pop(request)
        if client is not None:
            with contextlib.suppress(OSError):
                client.socket.sendall(
                    HEADER.pack(kind, request, transaction, len(payload)) + payload
                )

    # The ring's indexes are read and written as one word each. struct's pack_into() clears a
    # word before it fills it, and a daemon that looks just then ignores the domain for ever.

    def _word(self, offset: int) -> int:
        with memoryview(self._ring) as octets, octets.cast("I") as words:
            return words[offset // 4]

    def _set(self, offset: int, value: int) -> None:
        with memoryview(self._ring) as octets, octets.cast("I") as words:
            words[offset // 4] = value % (1 << 32)


def _introduce(daemon: Daemon, domid: int) -> tuple[mmap.mmap, int, int]:
    """Make the ring page and the FIFOs, and tell the daemon: (page, its events, the kick)."""
    with open(daemon.rings / f"{domid}.ring", "w+b") as file:
        file.truncate(PAGE)
        ring = mmap.mmap(file.fileno(), PAGE)
    fifo = daemon.rings / f"{domid}.event"
    os.mkfifo(fifo)
    events = os.open(fifo, os.O_RDWR)
    kick = os.open(daemon.rings / "events", os.O_RDWR)
    with Store(daemon.socket) as store:
        words = (str(word).encode() + b"\0" for word in (domid, 1, PORT + domid))
        store.call(INTRODUCE, *words)
        store.write(f"/local/domain/{domid}/domid", domid)
        store.set_permissions(f"/local/domain/{domid}/domid", "n0", f"r{domid}")
        store.set_permissions(f"/local/domain/{domid}", f"n{domid}")
    return ring, events, kick
