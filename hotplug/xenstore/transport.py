"""The two ways to xenstored: its Unix socket, and the kernel's /dev/xen/xenbus.

A transport moves bytes. It knows nothing of requests beyond what its way demands, and it never
waits for longer than a tick without coming back, so that its owner can keep deadlines.

What is true of the socket (Xen 4.17 to 4.22, tools/xenstored/core.c):
- the daemon reads one message at a time with a blocking read for its payload, so a message whose
  rest does not follow stops the daemon for everybody: what we send is always whole;
- it writes a reply's header and payload separately, so one reply may wake a reader twice.
  SO_RCVLOWAT lets the kernel wake us once, when as much is there as must come anyway;
- it queues replies without limit and goes on reading, so it never waits for us.

What is true of the device (Linux 5.8 to 7.0, drivers/xen/xenbus/xenbus_dev_frontend.c; tried out
on 6.1):
- xenbus_file_write() acts on one message a write and throws away what is behind it, so every
  message is a write of its own. Header and payload together may have 4096 bytes, not the payload
  alone;
- the payload is not copied: xenbus_dev_request_and_reply() queues a pointer into the descriptor's
  only buffer (since Linux 4.11, commit fd8aa9095a95), and the next write overwrites it. Of twenty
  requests written without waiting a third get the answer to another one. So there is no
  pipelining: a request is written when the reply to the one before is there;
- a WATCH that xenstored refuses gets no reply: write() itself fails with the errno. An UNWATCH of
  nothing succeeds;
- the header of a WATCH_EVENT has arbitrary req_id and tx_id;
- events pass through the xenwatch thread, which serves the kernel's drivers as well, and replies do
  not: a reply may overtake the events before it. Events keep their order among themselves;
- reading and writing at the same time works since it is a stream (Linux 5.1, commit 10dce8af3422).
"""

from __future__ import annotations

import _socket  # the C half of socket, whose Python half takes 4 ms to import
import contextlib
import os
import stat
import struct
import time

from hotplug.xenstore.errors import StoreConnectionError
from hotplug.xenstore.protocol import HEADER, PAYLOAD_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class Transport(Protocol):
        """How bytes get to xenstored and back."""

        pipelines: bool  # may a request be sent before the reply to the one before?
        in_order: bool  # do watch events come before the replies that were made after them?
        payload_max: int  # bytes in one message

        def fileno(self) -> int: ...

        def send(self, data: bytes, deadline: float) -> None:
            """Send whole messages. TimeoutError if the deadline passed and nothing was sent."""
            ...

        def receive(self, at_least: int) -> bytes | None:
            """What has come, ``b""`` at the end of the connection, None after an idle tick.

            May wait until ``at_least`` bytes are there, since the caller knows that they must
            come. With 0 it does not wait at all.
            """
            ...

        def shut_down(self) -> None:
            """Make whoever waits in here come back; the descriptor stays."""
            ...

        def close(self) -> None: ...


DEFAULT_RUNDIR = "/run/xenstored"
DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")
CHUNK = 16384  # bytes asked for at once: the replies of one event, and then some
LOW_WATER = 64  # bytes: to ask the kernel to wait for less costs more than it saves
MAX_TICK = 1.0  # seconds
TIMEVAL = struct.Struct("@ll")  # struct timeval of the socket timeouts


def locate(environ: Mapping[str, str] = os.environ) -> str:
    """The path that libxenstore would choose.

    Unlike libxenstore we try the device only where there is no socket. A socket that nobody
    listens on is a daemon that has died, and over the device that would be an endless wait.
    """
    if path := environ.get("XENSTORED_PATH"):
        return path
    path = f"{environ.get('XENSTORED_RUNDIR') or DEFAULT_RUNDIR}/socket"
    if os.path.exists(path):
        return path
    return next((device for device in DEVICES if os.path.exists(device)), path)


def connect(path: str, timeout: float) -> Transport:
    """Open the way at ``path``: a socket, or else the device."""
    tick = min(MAX_TICK, timeout / 8)
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return SocketTransport(_connected_socket(path), tick)
        return DeviceTransport(os.open(path, os.O_RDWR | os.O_CLOEXEC), tick)
    except OSError as error:
        raise StoreConnectionError(
            f"cannot connect to xenstore at {path}: {error.strerror or error}"
        ) from error


def _connected_socket(path: str) -> _socket.socket:
    # CPython opens every descriptor close-on-exec (PEP 446); the flag says so to the reader.
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


class SocketTransport:
    """A connected stream socket. One thread may send while another receives."""

    pipelines = True
    in_order = True
    payload_max = PAYLOAD_MAX

    __slots__ = ("_low_water", "_socket")

    def __init__(self, connection: _socket.socket, tick: float) -> None:
        # The kernel's own timeouts: Python's would cost a poll() before every call.
        interval = _timeval(tick)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, interval)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, interval)
        self._socket = connection
        self._low_water = 1

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, deadline: float) -> None:
        sent = 0
        while sent < len(data):
            try:
                sent += self._socket.send(data[sent:] if sent else data, _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    continue
                if not sent:
                    raise TimeoutError from None
                # The daemon waits for the rest: nothing else can follow.
                raise StoreConnectionError("xenstored took only a part of a request") from None

    def receive(self, at_least: int) -> bytes | None:
        flags = 0 if at_least else _socket.MSG_DONTWAIT
        if at_least < self._low_water or self._low_water < LOW_WATER <= at_least:
            self._wait_for(at_least if at_least >= LOW_WATER else 1)
        try:
            return self._socket.recv(CHUNK, flags)
        except BlockingIOError:
            return None

    def _wait_for(self, size: int) -> None:
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, size)
        self._low_water = size

    def shut_down(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have gone first
            self._socket.shutdown(_socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def _timeval(seconds: float) -> bytes:
    """A struct timeval; never zero, which would mean no timeout."""
    return TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000) or 1)


class DeviceTransport:
    """The kernel's device. Whoever sends has received the reply to what was sent before."""

    pipelines = False
    in_order = False
    payload_max = PAYLOAD_MAX - HEADER.size

    __slots__ = ("_descriptor", "_poll", "_tick")

    def __init__(self, descriptor: int, tick: float) -> None:
        import select  # noqa: PLC0415 - only here: the socket has timeouts of its own

        self._descriptor = descriptor
        self._tick = max(1, int(tick * 1000))
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, data: bytes, deadline: float) -> None:
        del deadline  # the driver takes a message at once
        os.write(self._descriptor, data)

    def receive(self, at_least: int) -> bytes | None:
        ready = self._poll.poll(self._tick if at_least else 0)
        return os.read(self._descriptor, CHUNK) if ready else None

    def shut_down(self) -> None:
        """Nothing wakes a reader of this device; it comes back after its tick."""

    def close(self) -> None:
        os.close(self._descriptor)
