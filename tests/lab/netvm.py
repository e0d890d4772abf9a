"""What serves others' devices in a driver domain, ours or ``xl devd``, and what it starts for that.

Every task that a domain makes is told by two of its kernel's trace points. Threads count too, as
they do in ``processes`` of /proc/stat. The kernel's own are told apart: netback has two for each
queue of a card that is connected (drivers/net/xen-netback/interface.c, xenvif_connect_data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.hotplug import CONTROL

if TYPE_CHECKING:
    from lab.guests import Guest

AGENT = "xen-hotplug agent"
DEVD = "xl devd"
START_SECONDS = 180.0  # half a dozen on an idle machine, and much more on a busy one
TRACING = "/sys/kernel/tracing"
POINTS = ("sched_process_fork", "sched_process_exec")
FORKED, BY_KERNEL = "sched_process_fork: comm=", "sched_process_fork: comm=kthreadd "


def start_agent(netvm: Guest) -> None:
    """It listens once it knows of what was there before."""
    netvm.run(
        f"rm -f {CONTROL}; setsid {AGENT} --driver-domain </dev/null >>/run/agent.log 2>&1 &"
        f" until [ -S {CONTROL} ]; do sleep 0.2; done",
        limit=START_SECONDS,
    )


def start_devd(netvm: Guest) -> None:
    """Nothing tells when it watches the store; under emulation xl takes a second to start."""
    netvm.run(
        f"setsid {DEVD} -F </dev/null >>/run/devd.log 2>&1 & sleep 4; pgrep -f '{DEVD}'",
        limit=START_SECONDS,
    )


def end(netvm: Guest, what: str, number: int = 15) -> None:
    running = f"pgrep -f '{what}'"
    netvm.run(f"kill -{number} $({running}); while {running} >/dev/null; do sleep 0.1; done")


def await_nothing(netvm: Guest) -> None:
    """Wait until nothing is there on behalf of guests."""
    netvm.run('until [ -z "$(ls /sys/class/net/xenbr0/brif)" ]; do sleep 0.1; done', limit=30)
    assert netvm.run("ls -A /run/xen-hotplug/journal; nft list tables; losetup -a") == ""
    assert netvm.run("xenstore-ls backend 2>/dev/null | grep online || true") == ""


def trace(netvm: Guest) -> int:
    """Follow all tasks from now on; how many there were so far."""
    switches = "; ".join(f"echo 1 >{TRACING}/events/sched/{point}/enable" for point in POINTS)
    netvm.run(f"[ -e {TRACING}/trace ] || mount -t tracefs tracefs {TRACING}; {switches}")
    return int(netvm.run(f"{COUNT}; echo >{TRACING}/trace; echo 1 >{TRACING}/tracing_on"))


def traced(netvm: Guest) -> tuple[list[str], int]:
    """All that was told since ``trace``, and how many tasks there were so far.

    The shell asks without starting anything until it no longer counts.
    """
    count = int(netvm.run(f"echo 0 >{TRACING}/tracing_on; {COUNT}"))
    lines = netvm.run(f"cat {TRACING}/trace").splitlines()
    return [line for line in lines if not line.startswith("#")], count


COUNT = "while read -r a b; do [ $a = processes ] && echo $b; done </proc/stat; true"
