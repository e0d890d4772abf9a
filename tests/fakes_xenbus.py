"""The kernel's /dev/xen/xenbus, as far as a client can tell it from xenstored's socket.

``FakeDevice`` stands between a client and a real xenstored. What it does is what Linux does in
drivers/xen/xenbus: a write is one message; a request's payload is not safe until the reply is
there; headers of events hold anything; WATCH is answered by the driver, and refused by the write
itself; events take a way of their own and arrive later than replies. What a client must not do is
noted in ``faults``.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

from hotplug.xenstore import protocol
from hotplug.xenstore.protocol import HEADER, Inbox, messages

BUFFER = 4096  # bytes, the driver's, for header and payload
LATENESS = 0.005  # seconds; the xenwatch thread has to do for others, too


class FakeDevice:
    """Owns a connection to the daemon; ``end`` is the client's descriptor."""

    def __init__(self, path: str) -> None:
        # Packets, so that it shows what was one write. The client reads them as a stream.
        self._ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._daemon = socket.socket(socket.AF_UNIX)
        self._daemon.connect(path)
        self.faults: list[str] = []
        self._unanswered: int | None = None
        self._events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target)
            for target in (self._take_requests, self._pass_replies, self._pass_events)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.end.close()
        for end in (self._ours, self._daemon):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._events.put(None)
        for thread in self._threads:
            thread.join()
        self._ours.close()
        self._daemon.close()

    def _take_requests(self) -> None:
        while packet := self._ours.recv(1 << 16):
            _, req_id, _, length = HEADER.unpack_from(packet)
            if len(packet) > BUFFER:
                self.faults.append(f"a message of {len(packet)} bytes")
            if len(packet) != HEADER.size + length:
                self.faults.append(f"a write of {len(packet)} bytes is not one message")
            if self._unanswered is not None:
                self.faults.append(f"request {req_id} overwrites {self._unanswered}")
            self._unanswered = req_id
            self._daemon.sendall(packet)

    def _pass_replies(self) -> None:
        inbox = Inbox(messages(self._pass))
        with contextlib.suppress(OSError):
            while data := self._daemon.recv(1 << 16):
                inbox.feed(data)

    def _pass(self, kind: int, req_id: int, payload: bytes) -> None:
        if kind == protocol.WATCH_EVENT:
            self._events.put(HEADER.pack(kind, 0xDEADBEEF, 0xCAFE, len(payload)) + payload)
        else:
            self._unanswered = None
            self._ours.send(HEADER.pack(kind, req_id, 0, len(payload)) + payload)

    def _pass_events(self) -> None:
        while (event := self._events.get()) is not None:
            time.sleep(LATENESS)
            with contextlib.suppress(OSError):
                self._ours.send(event)
