"""Our scripts come and go while guests run, and whoever is there detaches what the other attached.

The same with systemd, and what else there is about a service, is test_service.py.
"""

from __future__ import annotations

from lab import hotplug
from lab.test_service import READS, start_guest

# All that is there is of a package, and as that has it.
PRISTINE = (
    "dpkg -S /etc/xen/scripts/* >/dev/null"
    " && ! dpkg --verify xen-utils-common | grep /etc/xen/scripts"
)
INTERRUPTIONS = (0.6, 0.9, 1.2, 1.5)  # seconds; a Python takes most of one to start here


def interrupted(machine, command):
    """Killed at some of its steps, and then run to its end."""
    for seconds in INTERRUPTIONS:
        machine.dom0(f"timeout -s KILL {seconds} xen-hotplug {command} --no-unit")
    machine.do(f"xen-hotplug {command} --no-unit")


def test_scripts_come_and_go(lab):
    hotplug.use_stock(lab)
    lab.do(PRISTINE)
    early = start_guest(lab, "early")

    told = lab.do("xen-hotplug install --no-unit --dry-run")
    assert "/etc/xen/scripts/block: would be ours" in told
    lab.do(PRISTINE)
    interrupted(lab, "install")
    hotplug.start_agent(lab)
    late = start_guest(lab, "late")
    assert early.run(READS) == late.run(READS) == "65536"
    early.destroy()
    assert list(lab.call("loops").values()) == ["/var/late.img"]

    hotplug.stop_agent(lab)
    interrupted(lab, "uninstall")
    lab.do(PRISTINE)
    assert late.run(READS) == "65536"
    late.destroy()
    assert lab.call("loops") == {}
