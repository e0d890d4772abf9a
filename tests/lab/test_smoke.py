"""The main job on a real Xen: guests start, use their disks, are saved, restored and destroyed."""

from __future__ import annotations

import pytest
from lab.guests import Disk, Guest

VDEVS = ("xvda", "xvdb", "xvdc", "xvdd")
INSIDE = " ".join(f"/dev/{vdev}" for vdev in (*VDEVS, "xvde"))
ADDRESS = "10.99.0.2"


def images(machine, count=4, size=1 << 20):
    """Files for disks, each with other content."""
    paths = [f"/tmp/disk-{number}.img" for number in range(count)]
    machine.do(f"for path in {' '.join(paths)}; do head -c {size} /dev/urandom > $path; done")
    return paths


def checksum(text):
    return text.split()[0]


def file_disks(paths):
    return [Disk(vdev, path) for vdev, path in zip(VDEVS, paths, strict=False)]


@pytest.mark.every_release
def test_a_paravirtual_guest_lives(lab):
    """Four files and a block device: read, written, saved, restored."""
    live(lab, "pv", 1 << 20)


def test_a_hardware_guest_lives(lab):
    """The same; such guests crawl in emulation."""
    live(lab, "pvh", 128 << 10)


def live(lab, kind, size):
    paths = images(lab, size=size)
    lab.do(f"head -c {size} /dev/urandom > /dev/vdc")
    disks = [*file_disks(paths), Disk("xvde", "/dev/vdc")]
    guest = Guest(lab, "alive", disks, kind=kind, address=ADDRESS)
    guest.start()
    inside = guest.run(f"for disk in {INSIDE}; do head -c {size} $disk | sha256sum; done")
    outside = f"for path in {' '.join(paths)} /dev/vdc; do head -c {size} $path | sha256sum; done"
    assert inside.splitlines() == lab.do(outside).splitlines()
    guest.run(f"head -c {size} /dev/urandom > /dev/xvda; sync")
    written = checksum(guest.run("sha256sum /dev/xvda"))
    lab.do(f"busybox ping -c 2 -W 5 {ADDRESS}")
    guest.run("echo remembered > /tmp/note")

    lab.do("xl save alive /tmp/alive.save")
    assert not guest.is_there
    assert lab.call("loops") == {}
    lab.do("xl restore /tmp/alive.save")
    assert guest.run("cat /tmp/note") == "remembered"
    assert checksum(guest.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/xvda")) == written
    lab.do(f"busybox ping -c 2 -W 10 {ADDRESS}")

    guest.destroy()
    lab.do("rm /tmp/alive.save")
    assert checksum(lab.do(f"sha256sum {paths[0]}")) == written
