"""Asking the agent from Python: what the thin client does in C, for commands for people."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from hotplug.client import wire
from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from hotplug.invocation import Invocation

WAIT = 38.0  # seconds; an event ends after 35
WAIT_FOR_STATUS = 5.0  # seconds; the agent answers this at once


class SilentAgentError(HotplugError):
    """The agent is there, and does not answer."""


def run(rundir: str, invocation: Invocation) -> tuple[int, str] | None:
    """Let the agent do something. (exit status, text), or None if there is no agent."""
    variables = {os.fsencode(k): os.fsencode(v) for k, v in invocation.variables.items()}
    argv = tuple(map(os.fsencode, invocation.argv))
    answer = _ask(rundir, wire.Request(b"run", os.fsencode(invocation.cwd), argv, variables), WAIT)
    return None if answer is None else (answer[0], os.fsdecode(answer[1]))


def status(rundir: str) -> dict[str, Any] | None:
    """What the agent says about itself; None if there is none."""
    answer = _ask(rundir, wire.Request(b"status", b"", (b"xen-hotplug",), {}), WAIT_FOR_STATUS)
    return None if answer is None else dict(json.loads(answer[1]))


def _ask(rundir: str, request: wire.Request, seconds: float) -> tuple[int, bytes] | None:
    path = os.path.join(rundir, wire.SOCKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(seconds)
        try:
            agent.connect(path)
            agent.send(wire.pack_request(request))
            return wire.unpack_reply(agent.recv(wire.MAX_PACKET))
        except (FileNotFoundError, ConnectionError, wire.WireError):
            return None
        except TimeoutError as error:
            raise SilentAgentError(
                f"the agent of {rundir} has not answered for {seconds:.0f} seconds;"
                " it may still be at work"
            ) from error
        except OSError as error:
            raise HotplugError(
                f"{path}: the agent cannot be reached: {error.strerror or error}"
            ) from error
