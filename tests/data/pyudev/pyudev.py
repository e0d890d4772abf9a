"""A kernel with xen-backend devices, for an agent in a test: in the place of the real pyudev.

What is sent as JSON to the datagram socket that FAKE_UEVENTS names arrives as a uevent. Everything
of the real one that is used is here, and its Monitor too passes on only what it was told to. After
an empty message events were lost: then poll() fails, and goes on to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from dataclasses import dataclass


class Context:
    """There is nothing to know."""


@dataclass(frozen=True)
class Device:
    """One uevent."""

    properties: dict[str, str]


class Monitor:
    """Receives what a test sends."""

    def __init__(self) -> None:
        self._subsystems: set[str] = set()
        self._has_lost = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def from_netlink(cls, _context: Context, source: str) -> Monitor:
        assert source == "kernel"
        return cls()

    def filter_by(self, subsystem: str) -> None:
        self._subsystems.add(subsystem)

    def set_receive_buffer_size(self, size: int) -> None:
        assert size > 0

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.environ["FAKE_UEVENTS"])  # of one that is gone
        self._socket.bind(os.environ["FAKE_UEVENTS"])

    def fileno(self) -> int:
        return self._socket.fileno()

    def poll(self, timeout: float) -> Device | None:
        assert timeout == 0
        while True:
            try:
                message = self._socket.recv(65536)
            except BlockingIOError:
                message = None
            self._has_lost |= message == b""
            if self._has_lost:
                raise OSError(errno.ENOBUFS, "events were lost")
            if message is None:
                return None
            properties = json.loads(message)
            if properties["SUBSYSTEM"] in self._subsystems:
                return Device(properties)
