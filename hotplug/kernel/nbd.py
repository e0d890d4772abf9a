"""Network block devices: the handshake in this process, the transmission in the kernel.

Facts that are not obvious:

- NBD_CMD_CONNECT (Linux 4.12) takes connected sockets and keeps references to them: no process
  has to stay, unlike with the ioctls. nbd-client does the same by default, so it would add nothing.
- With NBD_ATTR_INDEX the kernel takes that device, creating it if need be, or answers EBUSY; so
  the journal can know the device before it exists. Without, it would choose one itself.
- /sys/block/nbdN/pid is there exactly while the device is connected, and names the process that
  connected it. NBD_ATTR_BACKEND_IDENTIFIER (Linux 5.14) is shown as
  ``backend`` beside it; older kernels ignore the attribute.
- Without NBD_ATTR_TIMEOUT and NBD_ATTR_DEAD_CONN_TIMEOUT, as here and by nbd-client's default, a
  server may take its time over a request, and a lost connection is an I/O error at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING, TypeVar

from hotplug.kernel import genetlink
from hotplug.kernel import nbd_abi as abi
from hotplug.kernel.nbd_handshake import HandshakeError, handshake
from hotplug.nbd import NbdDevice, NbdExport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket as Socket  # noqa: N812 - the module of that name is imported late
    from typing import Any

    from hotplug.kernel.nbd_handshake import Dialogue
    from hotplug.nbd import NbdServer
    from hotplug.ports import Deadline

T = TypeVar("T")

FULL = 0.02  # seconds between two tries to enter a full queue
SLICE = 0.5  # seconds between two looks at whether anybody still waits
MAX_DEVICES = 4096  # a bound for the search; nbds_max is 16 by default


class KernelNbd:
    """The driver of this kernel."""

    def __init__(self, sysfs: str = "/sys") -> None:
        self._block = os.path.join(sysfs, "block")

    def available(self) -> bool:
        return genetlink.family_id(abi.NBD_GENL_FAMILY_NAME) is not None

    @contextlib.contextmanager
    def open(self, server: NbdServer, deadline: Deadline) -> Iterator[NbdExport]:
        with connected(server, deadline) as connection:
            try:
                agreed = converse(connection, handshake(os.fsencode(server.export)), deadline)
            except HandshakeError as error:
                raise OSError(errno.EPROTO, str(error), str(server)) from error
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(server)) from error
            connection.setblocking(True)
            read_only = bool(agreed.flags & abi.NBD_FLAG_READ_ONLY)
            yield NbdExport(connection, agreed.size, agreed.flags, agreed.block_size, read_only)

    def free(self) -> Iterator[int]:
        for number in range(MAX_DEVICES):
            if self.get(number) is None:
                yield number

    def get(self, number: int) -> NbdDevice | None:
        pid = self._attribute(number, "pid")
        if pid is None:
            return None
        return NbdDevice(int(pid), self._attribute(number, "backend"))

    def connect(self, number: int, export: NbdExport, *, read_only: bool, reference: str) -> None:
        self._call(number, abi.NBD_CMD_CONNECT, parameters(export, read_only, reference))

    def disconnect(self, number: int) -> None:
        self._call(number, abi.NBD_CMD_DISCONNECT, b"")

    def _call(self, number: int, command: int, body: bytes) -> None:
        path = f"/dev/nbd{number}"
        family = genetlink.family_id(abi.NBD_GENL_FAMILY_NAME)
        if family is None:
            raise OSError(errno.ENODEV, "the kernel has no nbd support", path)
        index = genetlink.u32(abi.NBD_ATTR_INDEX, number)
        try:
            genetlink.call(family, command, abi.NBD_GENL_VERSION, index + body)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error

    def _attribute(self, number: int, name: str) -> str | None:
        try:
            with open(os.path.join(self._block, f"nbd{number}", name)) as file:
                return file.read().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENODEV:  # disconnected while we read
                return None
            raise


def parameters(export: NbdExport, read_only: bool, reference: str) -> bytes:  # noqa: FBT001 - private to connect
    """The attributes of NBD_CMD_CONNECT, but for the index."""
    flags = export.flags | (abi.NBD_FLAG_READ_ONLY if read_only else 0)
    descriptor = genetlink.u32(abi.NBD_SOCK_FD, export.connection.fileno())
    sockets = genetlink.nested(abi.NBD_SOCK_ITEM, descriptor)
    return b"".join(
        (
            genetlink.u64(abi.NBD_ATTR_SIZE_BYTES, export.size),
            genetlink.u64(abi.NBD_ATTR_BLOCK_SIZE_BYTES, export.block_size),
            genetlink.u64(abi.NBD_ATTR_SERVER_FLAGS, flags),
            genetlink.nested(abi.NBD_ATTR_SOCKETS, sockets),
            genetlink.string(abi.NBD_ATTR_BACKEND_IDENTIFIER, reference),
        )
    )


@contextlib.contextmanager
def connected(server: NbdServer, deadline: Deadline) -> Iterator[Socket]:
    """A connection to the server, at the first of its addresses that answers."""
    import socket  # noqa: PLC0415 - costs milliseconds, and most disks do not come here

    problem = OSError(errno.EHOSTUNREACH, "the name has no address")
    for family, address in addresses(server):
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            try:
                dial(connection, address, deadline)
            except OSError as error:
                problem = error
                continue
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            yield connection
            return
    raise OSError(problem.errno, problem.strerror, str(server))


def addresses(server: NbdServer) -> list[tuple[int, Any]]:
    """What connect(2) may be tried with, and the family of each."""
    import socket  # noqa: PLC0415 - as above

    if server.path:
        return [(socket.AF_UNIX, server.path)]
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, error.strerror, str(server)) from error
    return [(entry[0], entry[4]) for entry in found]


def dial(connection: Socket, address: Any, deadline: Deadline) -> None:
    """connect(2) as long as the event may take. OSError if the server is not there."""
    import socket  # noqa: PLC0415 - as above

    while (code := connection.connect_ex(address)) == errno.EAGAIN:
        deadline.check()
        time.sleep(FULL)  # the queue of a Unix socket is full; there is nothing to wait on
    if code == errno.EINPROGRESS:
        wait(connection, select.POLLOUT, deadline)
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def wait(connection: Socket, event: int, deadline: Deadline) -> None:
    """Until something can be done, looking up now and then whether anybody still wants it."""
    poll = select.poll()
    poll.register(connection, event)
    deadline.check()
    while not poll.poll(1000 * min(SLICE, deadline.remaining())):
        deadline.check()


def converse(connection: Socket, dialogue: Dialogue[T], deadline: Deadline) -> T:
    """Carry a dialogue over a connection to its end."""
    answer: bytes | None = None
    try:
        while True:
            wish = dialogue.send(answer) if answer is not None else next(dialogue)
            if isinstance(wish, bytes):
                connection.sendall(wish)  # a few bytes; the socket's buffer is empty
                answer = b""
            else:
                answer = receive(connection, wish, deadline)
    except StopIteration as end:
        agreed: T = end.value
        return agreed


def receive(connection: Socket, size: int, deadline: Deadline) -> bytes:
    """Exactly this many bytes: what comes after them is for the kernel."""
    data = b""
    while len(data) < size:
        wait(connection, select.POLLIN, deadline)
        more = connection.recv(size - len(data))
        if not more:
            raise OSError(
                errno.ECONNRESET,
                "the server hung up; it may not have the export that was asked for",
            )
        data += more
    return data
