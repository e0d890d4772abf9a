"""The agent dies, is away, comes back; many guests at once; the same disk a hundred times."""

from __future__ import annotations

import signal

import pytest
from lab import hotplug
from lab.guests import Disk, Guest
from lab.test_smoke import VDEVS, file_disks, images

TIMES = 100
AT_ONCE = 12
MAX_LOOP, IN_USE = 255, 250

BALLAST = f"""
import fcntl, glob, sys
sys.path.append("/usr/local/lib/xen-hotplug")
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.loop_abi import LOOP_CLR_FD
from hotplug.ports import LoopOptions
if sys.argv[1] == "bind":
    loops = KernelLoops()
    with open("/tmp/ballast", "w+b") as file:
        file.truncate(1 << 20)
        for _ in range({IN_USE}):
            loops.attach(file, LoopOptions(read_only=True), b"")
else:
    for path in glob.glob("/sys/block/loop*/loop"):
        with open("/dev/" + path.split("/")[3], "rb") as device:
            fcntl.ioctl(device, LOOP_CLR_FD)
"""


def test_the_same_disk_again_and_again(lab):
    (path,) = images(lab, 1)
    guest = Guest(lab, "again")
    guest.start()
    (agent,) = lab.call("agents")
    open_files = lab.do(f"ls /proc/{agent}/fd | wc -l")
    there = lab.call("leftovers")
    lab.do(
        f"for i in $(seq {TIMES}); do"
        f" xl block-attach again '{Disk('xvdb', path)}' && xl block-detach again xvdb || exit 1;"
        " done",
        limit=900,
    )
    assert lab.call("leftovers") == there
    assert lab.call("agents") == [agent]
    assert lab.do(f"ls /proc/{agent}/fd | wc -l") == open_files
    guest.destroy()


def test_no_agent_runs(lab):
    """Each script does the work itself."""
    hotplug.stop_agent(lab)
    guest = Guest(lab, "alone", file_disks(images(lab, 2)))
    guest.start()
    assert len(lab.call("loops")) == 2
    guest.destroy()
    hotplug.refuse_leaks(lab)


@pytest.fixture
def saved(lab):
    """A guest with four disks, saved."""
    guest = Guest(lab, "middle", file_disks(images(lab)))
    guest.start()
    lab.do("xl save middle /tmp/middle.save")
    yield guest
    lab.do("rm /tmp/middle.save")


def test_the_agent_is_killed_in_the_middle_of_a_restore(lab, saved):
    """It fails or succeeds cleanly; afterwards nothing is left."""
    for moment in (
        "/51712/params$",  # libxl has just made the first backend
        "/physical-device$",  # one disk is attached, the others are asked for
        "/51760/hotplug-status$",  # the last one is ready
    ):
        lab.call("kill_agents_at", pattern=moment)
        restored = lab.dom0("xl restore /tmp/middle.save")
        assert lab.call("agents") == [], f"nothing was written to {moment}"
        if restored.status == 0:
            assert saved.run("echo well") == "well"
            assert len(lab.call("loops")) == len(VDEVS)
        else:
            assert not saved.is_there
        saved.destroy()
        hotplug.start_agent(lab)
        hotplug.refuse_leaks(lab)


def test_the_agent_is_restarted_while_a_guest_runs(lab):
    """Whether it ended in order or was killed: disks go on, and detach later."""
    guest = Guest(lab, "lasting", file_disks(images(lab, 3)))
    guest.start()
    for number, left in ((signal.SIGTERM, 3), (signal.SIGKILL, 2)):
        hotplug.stop_agent(lab, number)
        hotplug.start_agent(lab)
        assert len(lab.call("loops")) == left
        assert guest.run("head -c 65536 /dev/xvda | wc -c") == "65536"
        lab.do(f"xl block-detach lasting {VDEVS[left - 1]}")
        assert len(lab.call("loops")) == left - 1
    guest.destroy()
    hotplug.refuse_leaks(lab)


def test_a_dozen_guests_at_once(lab):
    paths = [f"/tmp/many-{number}.img" for number in range(AT_ONCE)]
    guests = [Guest(lab, f"many{n}", [Disk("xvda", path)]) for n, path in enumerate(paths)]
    for guest in guests:
        guest.write_config()
    numbers = f"$(seq 0 {AT_ONCE - 1})"
    lab.do(
        f"truncate -s 4M {' '.join(paths)}; pids=;"
        f' for i in {numbers}; do xl create /tmp/many$i.cfg & pids="$pids $!"; done;'
        " for pid in $pids; do wait $pid || exit 1; done",
        limit=400,
    )
    assert sorted(lab.call("loops").values()) == sorted(
        f"/tmp/many-{n}.img" for n in range(AT_ONCE)
    )
    for guest in guests:
        guest.wait_until_up()
        assert guest.run("head -c 65536 /dev/xvda | wc -c") == "65536"
    lab.do(f"for i in {numbers}; do xl destroy many$i & done; wait", limit=200)
    hotplug.refuse_leaks(lab)


@pytest.fixture
def few_loops(lab):
    """The loop driver with a limit, and most of its devices in use."""
    hotplug.stop_agent(lab)
    lab.do(f"modprobe -r loop && modprobe loop max_loop={MAX_LOOP}; udevadm settle")
    assert lab.do("ls -d /sys/block/loop* | wc -l").strip() == f"{MAX_LOOP}"
    hotplug.start_agent(lab)
    lab.put("/tmp/ballast.py", BALLAST)
    lab.do("python3 -I /tmp/ballast.py bind")
    assert len(lab.call("loops")) == IN_USE
    yield lab
    hotplug.stop_agent(lab)
    lab.do("python3 -I /tmp/ballast.py unbind; udevadm settle; rm /tmp/ballast")
    lab.do("modprobe -r loop && modprobe loop")


def test_few_loop_devices_are_left(few_loops):
    """A kernel that was told to make 255 of them, most of which are in use."""
    guest = Guest(few_loops, "late", file_disks(images(few_loops)))
    guest.start()
    assert len(few_loops.call("loops")) == IN_USE + len(VDEVS)
    guest.destroy()
    assert len(few_loops.call("loops")) == IN_USE
