"""The system log, as far as tests are concerned: a datagram socket that somebody reads.

A thread reads, because a datagram socket that nobody reads blocks its senders after ten messages
(net.unix.max_dgram_qlen), and the stock scripts send more than that.
"""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ERR = 27  # daemon.err: LOG_DAEMON << 3 | LOG_ERR
DEBUG = 31
SECONDS = 10.0

# RFC 3164 as logger(1) and syslog(3) write it: priority, time, a tag that is no path.
LINE = re.compile(
    rb"<(?P<priority>\d+)>(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?(?:[^/ :]+: )?(?P<text>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    priority: int
    text: str


class Syslog:
    """A listening socket and what arrived at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._messages: list[Message] = []
        self._mark = 0
        self._marked = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self) -> list[Message]:
        """What arrived since the last call, everything sent before this call included."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, self._marked:
            wanted = self._mark + 1
            sender.sendto(b"mark", str(self.path))
            if not self._marked.wait_for(lambda: self._mark >= wanted, SECONDS):
                raise TimeoutError(f"{self.path}: the reader does not answer")
            taken, self._messages = self._messages, []
        return taken

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(self.path))
        self._thread.join()
        self._socket.close()
        self.path.unlink()

    def _read(self) -> None:
        while (datagram := self._socket.recv(65536)) != b"end":
            with self._marked:
                if datagram == b"mark":
                    self._mark += 1
                    self._marked.notify_all()
                elif match := LINE.fullmatch(datagram.rstrip(b"\0\n")):
                    text = match["text"].decode(errors="surrogateescape")
                    self._messages.append(Message(int(match["priority"]), text))
                else:
                    self._messages.append(Message(-1, repr(datagram)))
