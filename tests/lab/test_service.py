"""A host as its administrator has it: systemd boots dom0, and Debian's scripts start Xen's daemons.

``xen-hotplug install`` and ``uninstall`` while guests run, the units, a boot with all of it.
"""

from __future__ import annotations

import re

import pytest
from lab import hotplug
from lab.guests import Disk, Guest

UNITS = ("xen-hotplug.socket", "xen-hotplug.service")
SERVICE = UNITS[1]
READS = "head -c 65536 /dev/xvda | wc -c"
# Everything about every file in Xen's folders; the folders' own times tell nothing.
SCRIPTS = (
    "cd /etc/xen/scripts && set -- . /usr/lib/xen-*/bin"
    " && find $* -mindepth 1 -printf '%p %y %m %U %G %n %T@ %i %l\\n' | sort"
    " && find $* -type f | sort | xargs sha256sum && dpkg-divert --list '*xen*'"
)
SOON = "mkdir -p /run/systemd/system/xen-hotplug.service.d && printf '[Service]\\nWatchdogSec=4\\n'"
SOON += " > /run/systemd/system/xen-hotplug.service.d/soon.conf && systemctl daemon-reload"


def show(machine, unit, *properties):
    """What systemd says of a unit, in the order that was asked for."""
    options = " ".join(f"--property={name}" for name in properties)
    lines = machine.do(f"systemctl show {options} {unit}").splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return [found[name] for name in properties]


def is_up(machine):
    return all(
        show(machine, unit, "ActiveState", "UnitFileState") == ["active", "enabled"]
        for unit in UNITS
    )


def main_pid(machine):
    (pid,) = show(machine, SERVICE, "MainPID")
    assert pid != "0"
    return pid


def start_guest(machine, name):
    machine.do(f"truncate -s 8M /var/{name}.img")
    guest = Guest(machine, name, [Disk("xvda", f"/var/{name}.img")])
    guest.start()
    return guest


def installed_while_guests_run(machine):
    """Stock has attached the first guest's disk, ours the second's; ours detaches both."""
    early = start_guest(machine, "early")
    told = machine.do("xen-hotplug install")
    assert re.search(r"^xen-hotplug\.socket and xen-hotplug\.service: now enabled", told), told
    assert "/etc/xen/scripts/block: now ours" in told
    assert re.search(r"^/usr/lib/xen-[0-9.]+/bin/libxl-save-helper: now ours", told, re.MULTILINE)
    assert is_up(machine)
    assert machine.do("xen-hotplug install") == "already installed\n"
    assert machine.do(f"systemd-analyze verify {' '.join(UNITS)} 2>&1") == ""
    late = start_guest(machine, "late")
    assert early.run(READS) == late.run(READS) == "65536"
    early.destroy()
    assert list(machine.call("loops").values()) == ["/var/late.img"]
    return late


def the_agent_comes_back(machine, guest):
    """Restarted, killed, hung, stopped: its socket waits, systemd starts it, disks go on."""
    attach = f"xl block-attach {guest.name} '{Disk('xvdb', '/var/early.img')}'"
    detach = f"xl block-detach {guest.name} xvdb"
    machine.do(f"systemctl restart {SERVICE}")
    killed = main_pid(machine)
    machine.do(f"kill -9 {killed} && {attach}")
    hung = main_pid(machine)
    assert hung != killed
    machine.do(f"{SOON} && systemctl restart {SERVICE}")
    hung = main_pid(machine)
    machine.do(f"kill -STOP {hung} && {detach}")  # waits for the next one
    assert main_pid(machine) != hung
    machine.do(f"systemctl stop {SERVICE}")
    assert machine.call("agents") == []
    machine.do(attach)
    assert len(machine.call("agents")) == 1
    machine.do(detach)
    assert guest.run(READS) == "65536"


def booted_again(machine, guest):
    """Debian saves guests when the host goes down, and restores them when it has come up."""
    guest.run("echo remembered > /tmp/note")
    machine.reboot("systemctl reboot")
    machine.do("systemctl is-system-running --wait || true", limit=300)
    assert is_up(machine)
    (agent,) = show(machine, SERVICE, "ActiveEnterTimestampMonotonic")
    (guests,) = show(machine, "xendomains.service", "InactiveExitTimestampMonotonic")
    assert 0 < int(agent) < int(guests)
    assert guest.run("cat /tmp/note") == "remembered"
    assert guest.run(READS) == "65536"


def uninstalled_while_guests_run(machine, guest, before):
    """Ours has attached the disk, stock detaches it."""
    told = machine.do("xen-hotplug uninstall")
    assert "/etc/xen/scripts/block: now the stock script" in told
    assert machine.do("xen-hotplug uninstall") == "not installed\n"
    assert machine.do(SCRIPTS) == before
    for unit in UNITS:
        assert show(machine, unit, "ActiveState", "UnitFileState") == ["inactive", "disabled"]
    assert machine.call("agents") == []
    assert guest.run(READS) == "65536"
    later = start_guest(machine, "later")
    guest.destroy()
    assert list(machine.call("loops").values()) == ["/var/later.img"]
    later.destroy()


@pytest.mark.long
@pytest.mark.boot_options("lab.init=systemd")
def test_a_host_with_systemd(bare_lab):
    bare_lab.do("systemctl is-system-running --wait || true", limit=300)
    before = bare_lab.do(SCRIPTS)
    guest = installed_while_guests_run(bare_lab)
    the_agent_comes_back(bare_lab, guest)
    booted_again(bare_lab, guest)
    uninstalled_while_guests_run(bare_lab, guest, before)
    bare_lab.do("xen-hotplug install")  # its agent forgets what stock has taken back meanwhile
    hotplug.refuse_leaks(bare_lab)
