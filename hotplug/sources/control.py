"""The control socket: the toolstack's scripts, by way of the thin client.

Linux facts: on SOCK_SEQPACKET a packet is a message and an empty read is the end; SO_PEERCRED is
the peer's identity at connect time; a peer that dies shows as EPOLLHUP (unix(7)).

The agent's loop owns every descriptor here. A worker only sends its one answer; the client reads
it and goes away, and that ends the connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING

from hotplug.client import wire

if TYPE_CHECKING:
    from collections.abc import Callable

CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
ANSWERING = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
GONE = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR


class Connection:
    """One client that waits for an answer."""

    __slots__ = ("_socket", "abandon", "pid")

    def __init__(self, client: socket.socket, pid: int) -> None:
        self._socket = client
        self.pid = pid
        self.abandon: Callable[[], object] = nothing  # what to do if the client goes away

    def answer(self, status: int, text: bytes) -> None:
        """Send the one answer; a client that went away is none of our business."""
        self.abandon = nothing
        with contextlib.suppress(OSError):
            self._socket.send(wire.pack_reply(status, text), ANSWERING)

    def close(self) -> None:
        self._socket.close()


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
        connection = Connection(client, pid)
        self._connections[client.fileno()] = (connection, client)
        if uid != 0:
            connection.answer(1, b"xen-hotplug: only root may ask for devices")
            self._end(client.fileno())
            return
        self._receive(connection, client, new=True)

    def ready(self, descriptor: int, events: int) -> bool:
        """Something happened on a client's descriptor; False if it is none of ours."""
        known = self._connections.get(descriptor)
        if known is None:
            return False
        connection, client = known
        if events & GONE:
            self._end(descriptor)
            connection.abandon()
        else:
            self._receive(connection, client, new=False)
        return True

    def _receive(self, connection: Connection, client: socket.socket, *, new: bool) -> None:
        try:
            packet = client.recv(wire.MAX_PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it has connected and not spoken yet
            if new:
                self._poll.register(client, select.EPOLLIN | select.EPOLLRDHUP)
            return
        except OSError:
            packet = b""
        if not packet:
            self._end(client.fileno())
            connection.abandon()
            return
        try:
            request = wire.unpack_request(packet)
        except wire.WireError as error:
            connection.answer(1, f"xen-hotplug: {error}".encode())
        else:
            self._serve(connection, request)
        # While somebody works on it already. That it has gone meanwhile shows all the same.
        (self._poll.register if new else self._poll.modify)(client, select.EPOLLRDHUP)

    def _end(self, descriptor: int) -> None:
        known = self._connections.pop(descriptor, None)
        if known is not None:
            known[0].close()

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
        for descriptor in list(self._connections):
            self._end(descriptor)
