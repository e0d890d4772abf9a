"""The agent dies, is away, comes back; many guests at once; the same disk a hundred times."""

from __future__ import annotations

import pytest
from lab import hotplug
from lab.guests import Disk, Guest
from lab.test_smoke import VDEVS, file_disks, images

TIMES = 100
AT_ONCE = 12
IN_USE = 250

BIND_MANY = f"""
import os, sys
sys.path.append("/usr/local/lib/xen-hotplug")
from hotplug.kernel.loop import KernelLoops
from hotplug.ports import LoopOptions
loops = KernelLoops()
with open("/tmp/ballast", "w+b") as file:
    file.truncate(1 << 20)
    for _ in range({IN_USE}):
        loops.attach(file, LoopOptions(read_only=True), b"")
"""


def test_the_same_disk_again_and_again(lab):
    (path,) = images(lab, 1)
    guest = Guest(lab, "again")
    guest.start()
    spec = Disk("xvdb", path)
    before = lab.do("ls /proc/$(pgrep -f 'xen-hotplug agent' | head -n 1)/fd | wc -l")
    lab.do(
        f"for i in $(seq {TIMES}); do"
        f" xl block-attach again '{spec}' && xl block-detach again xvdb || exit 1; done",
        limit=900,
    )
    assert lab.do("losetup -a") == ""
    assert hotplug.leaks(lab) == [line for line in hotplug.leaks(lab) if "again" in line]
    after = lab.do("ls /proc/$(pgrep -f 'xen-hotplug agent' | head -n 1)/fd | wc -l")
    assert after == before
    guest.destroy()


def test_no_agent_runs(lab):
    """Each script does the work itself."""
    hotplug.stop_agent(lab)
    guest = Guest(lab, "alone", file_disks(images(lab, 2)))
    guest.start()
    assert len(lab.do("losetup -a").splitlines()) == 2
    guest.destroy()
    hotplug.refuse_leaks(lab)


@pytest.mark.parametrize("delay", [0.3, 1.0, 1.7])
def test_the_agent_is_killed_in_the_middle_of_a_restore(lab, delay):
    """It fails or succeeds cleanly; afterwards nothing is left."""
    guest = Guest(lab, "middle", file_disks(images(lab)))
    guest.start()
    lab.do("xl save middle /tmp/middle.save")
    agent = lab.do(hotplug.AGENT_PID).split()[0]
    restored = lab.dom0(
        f"(sleep {delay}; kill -9 {agent}) & xl restore /tmp/middle.save; status=$?; wait;"
        " exit $status"
    )
    if restored.status == 0:
        assert guest.run("echo well") == "well"
        assert len(lab.do("losetup -a").splitlines()) == len(VDEVS)
    else:
        assert not guest.is_there
    guest.destroy()
    lab.do("rm /tmp/middle.save /run/xen-hotplug/control")
    hotplug.start_agent(lab)
    hotplug.refuse_leaks(lab)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_the_agent_is_restarted_while_a_guest_runs(lab, signal):
    guest = Guest(lab, "lasting", file_disks(images(lab, 2)))
    guest.start()
    hotplug.stop_agent(lab, signal)
    hotplug.start_agent(lab)
    assert len(lab.do("losetup -a").splitlines()) == 2
    assert guest.run("head -c 65536 /dev/xvda | wc -c") == "65536"
    guest.destroy()
    hotplug.refuse_leaks(lab)


def test_scripts_change_while_a_guest_runs(lab):
    """Stock attached it, ours detaches it, and the other way round."""
    hotplug.use_stock(lab)
    first = Guest(lab, "first", file_disks(images(lab, 1)))
    first.start()
    hotplug.use_ours(lab)
    second = Guest(lab, "second", [Disk("xvda", "/tmp/second.img")])
    lab.do("truncate -s 8M /tmp/second.img")
    second.start()
    first.destroy()
    assert len(lab.do("losetup -a").splitlines()) == 1
    hotplug.use_stock(lab)
    second.destroy()
    assert lab.do("losetup -a") == ""
    hotplug.use_ours(lab)


def test_a_dozen_guests_at_once(lab):
    guests = []
    for number in range(AT_ONCE):
        lab.do(f"truncate -s 4M /tmp/many-{number}.img")
        guest = Guest(lab, f"many{number}", [Disk("xvda", f"/tmp/many-{number}.img")])
        guest.write_config()
        guests.append(guest)
    lab.do(
        f'for i in $(seq 0 {AT_ONCE - 1}); do xl create /tmp/many$i.cfg & pids="$pids $!"; done;'
        " for pid in $pids; do wait $pid || exit 1; done",
        limit=400,
    )
    assert len(lab.do("losetup -a").splitlines()) == AT_ONCE
    for guest in guests:
        guest.wait_until_up()
    lab.do(f"for i in $(seq 0 {AT_ONCE - 1}); do xl destroy many$i & done; wait", limit=200)
    hotplug.refuse_leaks(lab)


@pytest.mark.boot_options("lab.max_loop=255")
def test_few_loop_devices_are_left(own_lab):
    """A kernel that was told to make 255 of them, most of which are in use."""
    own_lab.put("/tmp/bind-many.py", BIND_MANY)
    own_lab.do("python3 -I /tmp/bind-many.py")
    assert own_lab.do("cat /sys/module/loop/parameters/max_loop").strip() == "255"
    assert len(own_lab.do("losetup -a").splitlines()) == IN_USE
    guest = Guest(own_lab, "late", file_disks(images(own_lab)))
    guest.start()
    assert len(own_lab.do("losetup -a").splitlines()) == IN_USE + len(VDEVS)
    guest.destroy()
    assert len(own_lab.do("losetup -a").splitlines()) == IN_USE
