"""Asks an agent what it is doing, over its control socket."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from harness.locks import wait_until

if TYPE_CHECKING:
    from harness.place import Place

REQUEST = b"xen-hotplug 1\0status\0\x001\0test\0"
LARGEST_PACKET = 65536
SECONDS = 10.0


def status(place: Place) -> dict[str, Any] | None:
    """What the agent says; None if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(SECONDS)
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            agent.connect(str(place.rundir / "control"))
            agent.send(REQUEST)
            answer = agent.recv(LARGEST_PACKET)
            return json.loads(answer[1:]) if answer else None
    return None


def wait_until_idle(place: Place, seconds: float = SECONDS) -> None:
    """Wait until the agent has nothing to do, or is not there."""

    def queue() -> list[object]:
        said = status(place)
        return said["queue"] if said else []

    wait_until(lambda: not queue(), "the agent has nothing to do", seconds, lambda: str(queue()))
