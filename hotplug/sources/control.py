"""The control socket: the toolstack's scripts, by way of the thin client.

Linux facts: on SOCK_SEQPACKET a packet is a message and an empty read is the end; SO_PEERCRED is
the peer's identity at connect time; a peer that dies shows as EPOLLHUP (unix(7)); what was sent
before a close is read before the end.

A connection ends with its one answer, in the thread that answers: a client that has what it wanted
need not wake the agent's loop, which would take its time from other clients' events. So a
descriptor's number may be another client's by the time that the loop hears of its former one.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

from hotplug.client import wire

if TYPE_CHECKING:
    from collections.abc import Callable

CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
ANSWERING = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
GONE = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR


class Connection:
    """One client that waits for an answer."""

    __slots__ = ("_end", "_socket", "abandon", "pid")

    def __init__(
        self, client: socket.socket, pid: int, end: Callable[[socket.socket, bytes], object]
    ) -> None:
        self._socket = client
        self._end = end  # with some last words
        self.pid = pid
        self.abandon: Callable[[], object] = nothing  # what to do if the client goes away

    def answer(self, status: int, text: bytes) -> None:
        """Send the one answer; a client that went away is none of our business."""
        self.abandon = nothing
        self._end(self._socket, wire.pack_reply(status, text))


def nothing() -> None:
    """For clients that may go away as they like."""


class ControlSource:
    """Accepts clients, checks them, decodes what they ask for."""

    def __init__(
        self,
        listener: socket.socket,
        poll: select.epoll,
        serve: Callable[[Connection, wire.Request], None],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._poll = poll
        self._serve = serve
        self._mutex = threading.Lock()  # for ends
        self._connections: dict[int, tuple[Connection, socket.socket]] = {}
        poll.register(listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> None:
        """Take the next client that knocks; the loop comes back for the others."""
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it went away, or we are out of descriptors: it waits until some are free
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, _ = CREDENTIALS.unpack(credentials)
        connection = Connection(client, pid, self._end)
        self._connections[client.fileno()] = (connection, client)
        if uid != 0:
            connection.answer(1, b"xen-hotplug: only root may ask for devices")
            return
        self._receive(connection, client)

    def ready(self, descriptor: int, events: int) -> bool:
        """Something happened on a client's descriptor; False if it is none of ours."""
        known = self._connections.get(descriptor)
        if known is None:
            return False
        connection, client = known
        if not events & GONE:
            self._receive(connection, client)
        elif is_gone(client):
            self._lose(connection, client)
        return True

    def _receive(self, connection: Connection, client: socket.socket) -> None:
        try:
            packet = client.recv(wire.MAX_PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it has connected and not spoken yet
            self._watch(client, select.EPOLLIN | select.EPOLLRDHUP)
            return
        except OSError:
            packet = b""
        if not packet:
            self._lose(connection, client)
            return
        # Now, as somebody else may be done with it before we come back from serving it.
        self._watch(client, select.EPOLLRDHUP)
        try:
            request = wire.unpack_request(packet)
        except wire.WireError as error:
            connection.answer(1, f"xen-hotplug: {error}".encode())
        else:
            self._serve(connection, request)

    def _watch(self, client: socket.socket, events: int) -> None:
        try:
            self._poll.register(client, events)
        except FileExistsError:
            self._poll.modify(client, events)

    def _lose(self, connection: Connection, client: socket.socket) -> None:
        """It went away before its answer."""
        self._end(client)
        connection.abandon()

    def _end(self, client: socket.socket, reply: bytes = b"") -> None:
        """For every thread; the first one does it.

        The loop is to hear no more of a client that goes as soon as it has its answer.
        """
        with self._mutex:
            descriptor = client.fileno()
            if descriptor < 0:
                return
            del self._connections[descriptor]
            with contextlib.suppress(OSError):  # it was refused before it was watched
                self._poll.unregister(descriptor)
            if reply:
                with contextlib.suppress(OSError):
                    client.send(reply, ANSWERING)
            client.close()

    def stop(self) -> bool:
        """Take no more clients; those that knock fall back to the one-shot path.

        False if that was done before.
        """
        if self._listener.fileno() < 0:
            return False
        self._poll.unregister(self._listener)
        self._listener.close()
        return True

    def close(self) -> None:
        for _, client in list(self._connections.values()):
            self._end(client)


def is_gone(client: socket.socket) -> bool:
    """What an event says may be of an earlier client with the same descriptor."""
    descriptor = client.fileno()
    if descriptor < 0:
        return False  # answered just now
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))
