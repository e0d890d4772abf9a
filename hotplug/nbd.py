"""Network block devices: what handlers need of them, as values and a protocol.

The real one is ``kernel/nbd.py``. Every operation raises OSError when the kernel or a server
refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from socket import socket

    from hotplug.ports import Deadline


@dataclass(frozen=True, slots=True)
class NbdServer:
    """An export of an NBD server; ``path`` is its Unix socket, "" for TCP."""

    host: str
    port: int
    path: str
    export: str  # "": the server's default one

    def __str__(self) -> str:
        if self.path:
            return f"nbd:unix:{self.path}{self.export and ':'}{self.export}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd:{host}:{self.port}{self.export and '/'}{self.export}"


@dataclass(frozen=True, slots=True)
class NbdExport:
    """What a server agreed to, and the connection on which it waits for requests."""

    connection: socket
    size: int  # bytes
    flags: int  # the protocol's transmission flags
    block_size: int  # bytes, what requests must be aligned to
    read_only: bool


@dataclass(frozen=True, slots=True)
class NbdDevice:
    """Who connected an NBD device of this kernel."""

    pid: int  # of the process that did
    reference: str | None  # what it called the device; None before Linux 5.14


class Nbd(Protocol):
    """Network block devices."""

    def available(self) -> bool:
        """Whether this kernel has the driver, right now."""
        ...

    def open(self, server: NbdServer, deadline: Deadline) -> AbstractContextManager[NbdExport]:
        """Connect to a server and agree on the export. OSError says what it refused."""
        ...

    def free(self) -> Iterable[int]:
        """Numbers N of /dev/nbdN that nobody uses, lowest first."""
        ...

    def get(self, number: int) -> NbdDevice | None:
        """None if the device is not connected or does not exist."""
        ...

    def connect(self, number: int, export: NbdExport, *, read_only: bool, reference: str) -> None:
        """Hand the connection to the kernel, as /dev/nbdN. EBUSY if that one is in use."""
        ...

    def disconnect(self, number: int) -> None: ...
