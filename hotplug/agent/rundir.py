"""The runtime directory belongs to one agent at a time: a locked file says to whom."""

from __future__ import annotations

import fcntl
import os

from hotplug.errors import HotplugError


class AgentRunsError(HotplugError):
    """There is another agent for this runtime directory."""


def lock_rundir(rundir: str) -> int:
    """Make sure that we are the only agent here; the descriptor keeps it so."""
    os.makedirs(rundir, mode=0o755, exist_ok=True)
    path = os.path.join(rundir, "agent.pid")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        raise AgentRunsError(
            f"another agent (pid {pid}) already serves {rundir}; stop it first"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
