"""The agent, as a service manager runs it: started, ready, told to stop, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.place import Place

READY_SECONDS = 15.0
STOP_SECONDS = 15.0


@dataclass(slots=True)
class Agent:
    """A running ``xen-hotplug agent``."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """What the agent has started and what still runs."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [int(word) for word in (task / "children").read_text().split()]
        return found

    def stop(self) -> int:
        """Ask it to end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()


def start(
    place: Place,
    variables: Mapping[str, str] | None = None,
    launcher: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> Agent:
    """Run the agent of a place, and return once it says that it is ready.

    The working directory is not the source tree, so that an installed package is what runs.
    """
    log = place.directory / "agent.log"
    notify = place.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(log, "ab") as output:
        with contextlib.suppress(FileNotFoundError):
            notify.unlink()
        ready.bind(str(notify))
        ready.settimeout(0.1)
        process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "hotplug", "agent", *arguments],
            cwd=place.directory,
            env={**place.environment(), "NOTIFY_SOCKET": str(notify), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        agent = Agent(process, log)
        for _ in range(int(READY_SECONDS / 0.1)):
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return agent
            if process.poll() is not None:
                break
    agent.kill()
    said = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the agent ended with {process.returncode} instead of being ready: {said}")


def is_alive(pid: int) -> bool:
    """Whether a process is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
