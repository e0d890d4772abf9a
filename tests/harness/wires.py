"""Frames sent and received for real, on links in network namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.netns import Netns

ETH_P_ALL = 3
PROTOCOL = 0x88B5  # IEEE 802: for local experiments
SOL_PACKET, PACKET_AUXDATA = 263, 8
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
TP_STATUS_VLAN_VALID = 1 << 4
CLONE_NEWNET = 0x40000000
BROADCAST = b"\xff" * 6
PATIENCE = 2.0  # seconds for a frame to come
SILENCE = 0.3  # seconds in which one that shall not come would have come


@dataclass(frozen=True, slots=True)
class Frame:
    """A received frame of PROTOCOL."""

    vlan: int | None  # of its tag
    payload: bytes


@dataclass(frozen=True, slots=True)
class Wire:
    """The far end of a link: what a guest sends and sees."""

    socket: socket.socket
    mac: bytes

    def send(self, payload: bytes, vlan: int | None = None) -> None:
        tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
        self.socket.send(BROADCAST + self.mac + tag + struct.pack("!H", PROTOCOL) + payload)

    def receive(self, payload: bytes, seconds: float = PATIENCE) -> Frame | None:
        """The next frame of ours with this payload."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data, extra, _, address = self.socket.recvmsg(2048, 64)
            except TimeoutError:
                break
            if address[2] == socket.PACKET_OUTGOING or data[12:14] != struct.pack("!H", PROTOCOL):
                continue
            if data[14 : 14 + len(payload)] == payload:
                return Frame(vlan_of(extra), payload)
        return None


def vlan_of(extra: list[tuple[int, int, bytes]]) -> int | None:
    """The kernel takes a frame's tag away and tells it beside the frame."""
    for level, kind, data in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tci, _ = AUXDATA.unpack(data[: AUXDATA.size])
            if status & TP_STATUS_VLAN_VALID:
                return tci & 0xFFF
    return None


@contextlib.contextmanager
def wire(namespace: Netns, link: str) -> Iterator[Wire]:
    """Send and receive on a link in a namespace."""
    with socket_in(namespace) as connection:
        connection.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        connection.bind((link, ETH_P_ALL))
        yield Wire(connection, connection.getsockname()[4])


def socket_in(namespace: Netns) -> socket.socket:
    """A packet socket that belongs to a namespace: made by a thread that went there."""
    made = []

    def make() -> None:
        descriptor = os.open(f"/run/netns/{namespace.name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns", namespace.name)
            made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]
