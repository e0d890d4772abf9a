"""Which scripts dom0's toolstack runs: Xen's or ours, with or without an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.machine import Machine

AGENT_PID = "pgrep -f '^/usr/bin/python3 .*xen-hotplug agent'"
AGENT = "setsid xen-hotplug agent </dev/null >>/run/agent.log 2>&1 &"


def use_ours(machine: Machine) -> None:
    """Our scripts and a running agent, as after ``xen-hotplug install`` on a host with systemd."""
    machine.do("xen-hotplug install --no-unit")
    start_agent(machine)


def use_stock(machine: Machine) -> None:
    """Xen's own scripts, and nothing of ours runs."""
    stop_agent(machine)
    machine.do("xen-hotplug uninstall --no-unit")


def start_agent(machine: Machine) -> None:
    if machine.dom0(AGENT_PID).status != 0:
        machine.do(AGENT)
        machine.wait_for("[ -S /run/xen-hotplug/control ]", "the agent listens")
        # It listens before it has looked at everything; an answer comes after that.
        machine.do("xen-hotplug status >/dev/null")


def stop_agent(machine: Machine, signal: str = "TERM") -> None:
    machine.do(f"pkill -{signal} -f '^/usr/bin/python3 .*xen-hotplug agent' || true")
    machine.wait_for(f"! {AGENT_PID} >/dev/null", "the agent has ended")
    machine.do("rm -f /run/xen-hotplug/control")


def destroy_guests(machine: Machine, prefix: str = "") -> None:
    """All guests whose names begin so."""
    names = f"xl list | awk 'NR > 2 && /^{prefix}/ {{print $1}}'"
    machine.do(f"for name in $({names}); do xl destroy $name; done")
    machine.wait_for(f'[ -z "$({names})" ]', "the guests are gone")


def leaks(machine: Machine) -> list[str]:
    """Whatever of a guest is still there although no guest is."""
    found = machine.do(
        "xl list | tail -n +3; losetup -a; ls -A /run/xen-hotplug/journal 2>/dev/null;"
        " xenstore-list /local/domain/0/backend/vbd 2>/dev/null; ls /run/xen-hotplug/block 2>&-;"
        " true"
    )
    return found.splitlines()


def refuse_leaks(machine: Machine) -> None:
    """All guests are gone, and with them all that was attached."""
    machine.wait_for("[ $(xl list | wc -l) = 2 ]", "all guests are gone")
    machine.dom0(  # the device models' and drivers' last words take a moment
        'for i in $(seq 50); do [ -z "$(losetup -a)" ] && break; sleep 0.2; done'
    )
    assert leaks(machine) == []
