"""One worker of the restore server: waits for a client, does one restore, ends.

The client is libxl-save-helper (client/save_helper.c), which libxl runs. It gets a greeting, sends
one packet with its arguments and descriptors, and is told the exit status, or that nothing was
done. It takes the end of the connection for our end, and that is true:

- do_exit (Linux 6.1, kernel/exit.c) calls exit_mm before exit_files. So when the kernel closes our
  socket nothing of the guest is mapped here any more, and libxl may let the guest run. Nothing
  else may close it.
- If the client is killed, our socket hangs up, and O_ASYNC turns that into SIGTERM
  (unix_release_sock in net/unix/af_unix.c), which is not handled: as if libxl had killed us.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING

from hotplug.restore import helper
from hotplug.restore.foreign import is_foreign
from hotplug.restore.xenlibs import own_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.restore.xenlibs import Xen

GREETING = b"xen-hotplug restore 1"  # as in client/save_helper.c
STATUS, DECLINED = b"s", b"d"  # a status is followed by its byte
TAKEN = b"t"  # to the server: somebody came, wait for the next one
REQUEST = 4096  # bytes, at most
STANDARD, STREAM = (0, 1, 2), 3  # in the order in which descriptors come
NAME = "restore-worker"  # in the list of processes
HEAP = 4 << 20  # bytes, what a restore takes of it at a time
PATIENCE = 10.0  # seconds; a client that was greeted asks at once
CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class RequestError(Exception):
    """A client that is none of ours."""


def run(listener: socket.socket, server: socket.socket, connect: Callable[[], Xen]) -> int:
    """A worker's life. ``connect`` opens Xen's devices, which no other process may use."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(NAME)
    xen = connect()
    bytearray(HEAP)
    own_memory()
    client = wait(listener, server)
    if client is None:
        return 0
    os.dup(client.fileno())  # so that only our end closes it, whatever becomes of the object
    listener.close()  # or clients would wait here when the server has gone
    server.send(TAKEN)
    with contextlib.suppress(RequestError, OSError):
        words, descriptors = greet(client)
        follow(client)
        client.send(restore(xen, words, descriptors))
    return 0


def wait(listener: socket.socket, server: socket.socket) -> socket.socket | None:
    """The next client; None if the server has ended before one came."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(server, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if server.fileno() in ready:
            return None
        with contextlib.suppress(BlockingIOError):  # another worker was faster
            return listener.accept()[0]


def greet(client: socket.socket) -> tuple[list[str], list[int]]:
    """What a client asks for, and its descriptors."""
    size = CREDENTIALS.size
    _, uid, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != 0:
        raise RequestError("only root restores guests")
    client.settimeout(PATIENCE)
    client.send(GREETING)
    packet, descriptors, _, _ = socket.recv_fds(client, REQUEST, len(STANDARD) + 1)
    client.settimeout(None)
    words = packet.decode().split("\0")[:-1]
    if len(words) + 1 != helper.RESTORE_WORDS or len(descriptors) != len(STANDARD) + 1:
        raise RequestError("not a request to restore a guest")
    return words, descriptors


def follow(client: socket.socket) -> None:
    """Die when the client does."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(client, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(client, fcntl.F_SETFL, fcntl.fcntl(client, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(client, select.POLLIN)
    if poll.poll(0):
        raise RequestError("it has gone already")


def restore(xen: Xen, words: list[str], descriptors: list[int]) -> bytes:
    """Do it; what to tell the client."""
    try:
        words = [words[0], str(descriptors[STREAM]), *words[2:]]
        call = helper.Call.parse([helper.NAME, *words])
        xen.domain(call.request.domid)
        if is_foreign(call.fd):
            return DECLINED
    except (ValueError, OSError):
        return DECLINED  # who starts a Python for it will hear why
    for number in STANDARD:
        os.dup2(descriptors[number], number)
        os.close(descriptors[number])
    return STATUS + bytes([helper.serve(xen, call)])
