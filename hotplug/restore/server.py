"""The restore server: keeps processes ready in which everything is loaded that a restore needs.

The agent starts it. To start a Python and to load Xen's libraries takes longer than to restore a
small guest, so both are done before libxl asks: the server does it once and forks workers
(worker.py), each for one restore, which wait for libxl-save-helper at a socket.

- It has no threads, for a fork copies only one of them, and locks as they are. So it is a process
  of its own; the agent has threads.
- It ends when the agent does, and idle workers end when it does: each sees the end of a connection.
  A worker at work depends on its client alone, so that the agent can be restarted at any time.
- The socket gets its name when workers are ready, by rename(2). It is never removed here: another
  server may have put its own there. Where nobody listens clients start a Python of their own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.listening import listen
from hotplug.restore import worker
from hotplug.restore.xenlibs import UnavailableError, Xen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

NAME = "restore-server"  # in the list of processes
NO_XEN = 3  # exit status: there is no hypervisor, or none that we know
REST = 2.0  # seconds after the last restore until there is a worker for the next
ROW = 10.0  # seconds after a restore that came sooner, in which workers are there at once
FAILED = 4  # exit status: workers end before they have anything to do


@dataclass(frozen=True, slots=True)
class Worker:
    """A child, and our end of its connection."""

    pid: int
    socket: socket.socket


class Server:
    """Forks workers as they are needed, until the agent ends."""

    def __init__(self, path: str, agent: socket.socket, connect: Callable[[], Xen]) -> None:
        self._path = path
        self._agent = agent  # only its end counts
        self._connect = connect
        self._ready: dict[int, Worker] = {}  # by descriptor
        self._busy: dict[int, Worker] = {}
        self._due: float | None = None  # when there shall be one more worker, by time.monotonic()
        self._row = 0.0  # until then restores come one after the other
        self._listener = listen(f"{path}.new")
        self._listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(agent, select.POLLIN)

    def run(self) -> int:
        """Serve; the exit status."""
        with open("/proc/self/comm", "w") as comm:
            comm.write(NAME)
        gc.collect()
        gc.freeze()  # a collection would copy what workers share with us
        self._fork()
        os.rename(f"{self._path}.new", self._path)
        while True:
            if self._due is not None and time.monotonic() >= self._due:
                self._fork()
            for fd, _ in self._poll.poll(self._left()):
                if fd == self._agent.fileno():
                    return 0
                if fd == self._listener.fileno():
                    self._row = time.monotonic() + ROW  # who came so soon is not the last
                    self._fork()
                elif not self._hear(fd):
                    return FAILED

    def _left(self) -> int | None:
        """Milliseconds until a worker is due."""
        if self._due is None:
            return None
        return max(0, round((self._due - time.monotonic()) * 1000) + 1)

    def _hear(self, fd: int) -> bool:
        """A worker was taken, or has ended; False if it has without having been taken."""
        if fd in self._ready and self._ready[fd].socket.recv(1):
            self._busy[fd] = self._ready.pop(fd)
            # To fork takes time that the restore should have, and its guest's devices after it;
            # unless somebody else comes.
            self._poll.register(self._listener, select.POLLIN)
            return True
        if fd in self._ready:
            return self._lost(self._ready.pop(fd))
        if fd in self._busy:
            ended = self._busy.pop(fd)
            self._poll.unregister(fd)
            ended.socket.close()
            os.waitpid(ended.pid, 0)
            if not self._ready:
                now = time.monotonic()
                self._due = now if now < self._row else now + REST
            return True
        return False

    def _lost(self, worker: Worker) -> bool:
        """One has ended that waited: somebody killed it, or no worker can start here."""
        self._poll.unregister(worker.socket)
        worker.socket.close()
        _, status = os.waitpid(worker.pid, 0)
        self._due = time.monotonic() + REST  # not at once: the next may end in the same way
        return os.WIFSIGNALED(status)

    def _fork(self) -> None:
        """One more that waits; meanwhile we need not look who comes."""
        self._due = None
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._listener)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            ours.close()
            self._become_worker(theirs)
        theirs.close()
        self._ready[ours.fileno()] = Worker(pid, ours)
        self._poll.register(ours, select.POLLIN)

    def _become_worker(self, server: socket.socket) -> NoReturn:
        status = 1
        try:
            # The others' connections are to end when the server does.
            for other in (*self._ready.values(), *self._busy.values()):
                other.socket.close()
            self._agent.close()
            status = worker.run(self._listener, server, self._connect)
        except BaseException:  # noqa: BLE001 - nothing of the server's shall run here
            traceback.print_exc()
        finally:
            os._exit(status)


def main(argv: Sequence[str]) -> int:
    """The path of the socket, and the descriptor of a connection to the agent."""
    agent = socket.socket(fileno=int(argv[2]))
    try:
        Xen().close()
    except UnavailableError as error:
        print(f"xen-hotplug: restores start a Python each: {error}", file=sys.stderr)
        return NO_XEN
    return Server(argv[1], agent, Xen).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
