"""Asking the agent from Python: what the thin client does in C, for commands for people."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from hotplug.client import wire

if TYPE_CHECKING:
    from hotplug.invocation import Invocation

WAIT = 38.0  # seconds; an event ends after 35


def run(rundir: str, invocation: Invocation) -> tuple[int, str] | None:
    """Let the agent do something. (exit status, text), or None if there is no agent."""
    variables = {os.fsencode(k): os.fsencode(v) for k, v in invocation.variables.items()}
    argv = tuple(map(os.fsencode, invocation.argv))
    answer = _ask(rundir, wire.Request(b"run", os.fsencode(invocation.cwd), argv, variables))
    return None if answer is None else (answer[0], os.fsdecode(answer[1]))


def status(rundir: str) -> dict[str, Any] | None:
    """What the agent says about itself; None if there is none."""
    answer = _ask(rundir, wire.Request(b"status", b"", (b"xen-hotplug",), {}))
    return None if answer is None else dict(json.loads(answer[1]))


def _ask(rundir: str, request: wire.Request) -> tuple[int, bytes] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(WAIT)
        try:
            agent.connect(os.path.join(rundir, wire.SOCKET))
            agent.send(wire.pack_request(request))
            return wire.unpack_reply(agent.recv(wire.MAX_PACKET))
        except (FileNotFoundError, ConnectionError, wire.WireError):
            return None
