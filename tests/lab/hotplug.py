"""What of ours runs in dom0, and what is left of guests."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.machine import Machine

STOCK = ".stock"  # `xen-hotplug install` keeps the script NAME as NAME.stock beside ours
CONTROL, RESTORE = "/run/xen-hotplug/control", "/run/xen-hotplug/restore"
# One that was killed leaves its sockets behind.
AGENT = f"rm -f {CONTROL} {RESTORE}; setsid xen-hotplug agent </dev/null >>/run/agent.log 2>&1 &"


def use_ours(machine: Machine) -> None:
    """Our scripts and a running agent, as after ``xen-hotplug install`` on a host with systemd."""
    if not machine.call("await_path", path="/etc/xen/scripts/block.stock", limit=0):
        machine.do("xen-hotplug install --no-unit")
    start_agent(machine)


def use_stock(machine: Machine) -> None:
    """Xen's own scripts under their own names, and nothing of ours runs."""
    stop_agent(machine)
    machine.do("xen-hotplug uninstall --no-unit")


def start_agent(machine: Machine) -> None:
    if not machine.call("agents"):
        machine.do(AGENT)
        assert machine.call("await_path", path=CONTROL, limit=60), "the agent does not listen"
        # It listens before it has looked at everything; an answer comes after that.
        machine.do("xen-hotplug status >/dev/null")


def await_workers(machine: Machine) -> None:
    """Of the agent's restore server, which starts after it."""
    assert machine.call("await_path", path=RESTORE, limit=60), "no worker waits for restores"


def stock_helper(machine: Machine) -> str:
    """Xen's own libxl-save-helper, where ``xen-hotplug install`` has put it."""
    return machine.do(f"ls /usr/lib/xen-*/bin/libxl-save-helper{STOCK}").strip()


def stop_agent(machine: Machine, number: int = signal.SIGTERM) -> None:
    assert machine.call("end_agents", number=number, limit=60), "the agent does not end"


def destroy_guests(machine: Machine, prefix: str = "") -> None:
    """All guests whose names begin so."""
    found = machine.call("guests")
    domids = [str(found[name]) for name in found if name.startswith(prefix)]
    if domids:
        each = "xl destroy $domid || ! xl list $domid || exit 1"  # it may be going just now
        machine.do(f"for domid in {' '.join(domids)}; do {each}; done")


def refuse_leaks(machine: Machine) -> None:
    """All guests are gone, and with them all that was attached."""
    # The drivers' last words take a moment.
    assert machine.call("await_nothing", limit=20.0) == []
    assert len(machine.do("xl list").splitlines()) == 2, "a guest without a name is there"
