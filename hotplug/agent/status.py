"""What the agent says about itself, as JSON on the control socket.

Memory and CPU are not in it: whoever asks reads them from outside, by psutil.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from hotplug import __version__

if TYPE_CHECKING:
    from hotplug.agent.main import Agent


def describe(agent: Agent) -> str:
    """A snapshot of the agent."""
    now = time.monotonic()
    jobs = agent.queues.snapshot()
    sources = ["control"]
    if agent.driver_domain is not None:
        sources.append("watches")
    if agent.udev is not None:
        sources.append("udev")
    return json.dumps(
        {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(now - agent.started, 1),
            "rundir": agent.config.rundir,
            "deadline_s": agent.config.deadline,
            "sources": sources,
            "events": {"finished": agent.queues.finished, "failed": agent.failed},
            "workers": agent.queues.workers,
            "attached": len(agent.host.journal.devices()),
            "queue": [
                {
                    "event": job.name,
                    "running": job.running,
                    "age_s": round(now - job.deadline.started, 3),
                    "doing": job.deadline.what,
                    "given_up": job.deadline.was_taken,
                }
                for job in jobs
            ],
        }
    )
