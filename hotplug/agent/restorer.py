"""Keeps the restore server running beside the agent (restore/server.py says what it is for).

It is another process, for it forks, and this one has threads. Each sees the other's end at a
connection between them. It is started again when it ends, ever later if it does so at once; where
there is no Xen that it knows, it is left alone. Restores work without it, they take longer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import hotplug

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen

    from hotplug.agent.logs import Logs

SOCKET = "restore"  # below the runtime directory; as in client/save_helper.c
HYPERVISOR = "/sys/hypervisor/version"  # there if this is a domain of Xen's
PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from hotplug.restore.server import main; sys.exit(main(sys.argv))"
)
# malloc(3) keeps what was freed: pages that are touched for the first time are what a restore is
# slowed down by most, next to the hypervisor.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
NO_XEN = 3  # its exit status, as in server.py
FIRST, LONGEST = 1.0, 300.0  # seconds until it is started again; doubled from the first up to here
STEADY = 60.0  # seconds that it ran, and the next wait is the first one again
PATIENCE = 5.0  # seconds to end in


@dataclass(frozen=True, slots=True)
class Server:
    """One that was started."""

    process: Popen[bytes]
    socket: socket.socket
    started: float


class Restorer:
    """The server, from its first start until ``close``."""

    def __init__(
        self,
        rundir: str,
        poll: select.epoll,
        logs: Logs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = os.path.join(rundir, SOCKET)
        self.poll = poll
        self.logs = logs
        self.clock = clock
        self.server: Server | None = None
        self._wait = FIRST
        self._due: float | None = clock() if os.path.isdir(HYPERVISOR) else None

    def fileno(self) -> int:
        """Readable when the server has ended; -1 while there is none."""
        return -1 if self.server is None else self.server.socket.fileno()

    def tick(self) -> float | None:
        """Start the server if it is time to; seconds until it is, None if nothing is to be done."""
        if self._due is None:
            return None
        left = self._due - self.clock()
        if left > 0:
            return left
        self._due = None
        try:
            self.server = self._start()
        except OSError as error:
            self._again(f"cannot be started: {error}")
            return self.tick()
        return None

    def _start(self) -> Server:
        import subprocess  # noqa: PLC0415 - 8 ms, and no restore waits for them

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        site = os.path.dirname(os.path.dirname(os.path.abspath(hotplug.__file__)))
        command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", PROGRAM, site]
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            process = subprocess.Popen(
                [*command, self._path, str(theirs.fileno())],
                env={**os.environ, **KEEPING},
                stdin=subprocess.DEVNULL,
                stdout=2,  # whatever a library prints, it is not what we were asked for
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for the agent
            )
            undo.pop_all()
        self.poll.register(ours, select.EPOLLIN)
        return Server(process, ours, self.clock())

    def ended(self) -> None:
        """The server has ended."""
        server, self.server = self.server, None
        if server is None:
            return
        status = self._stop(server)
        if self.clock() - server.started >= STEADY:
            self._wait = FIRST
        if status != NO_XEN:
            self._again(f"has ended with status {status}")

    def _again(self, problem: str) -> None:
        self.logs.failure(
            "xen-hotplug", f"the restore server {problem}; started again in {self._wait:.0f} s"
        )
        self._due = self.clock() + self._wait
        self._wait = min(2 * self._wait, LONGEST)

    def _stop(self, server: Server) -> int:
        """Let it end; its exit status."""
        import subprocess  # noqa: PLC0415 - see ``_start``

        self.poll.unregister(server.socket)
        server.socket.close()
        try:
            return server.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.process.kill()
            return server.process.wait()

    def close(self) -> None:
        """End the server. A worker that restores a guest goes on."""
        self._due = None
        server, self.server = self.server, None
        if server is not None:
            self._stop(server)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
