"""The main job on a real Xen: guests start, use their disks, are saved, restored and destroyed."""

from __future__ import annotations

import pytest
from lab.guests import Disk, Guest

pytestmark = pytest.mark.every_release

VDEVS = ("xvda", "xvdb", "xvdc", "xvdd")
ADDRESS = "10.99.0.2"
SIZES = {"pv": 4 << 20, "pvh": 128 << 10}  # bytes of a disk; hardware guests crawl in emulation


def images(machine, count=4, size=1 << 20):
    """Files for disks, each with other content."""
    paths = [f"/tmp/disk-{number}.img" for number in range(count)]
    for path in paths:
        machine.do(f"head -c {size} /dev/urandom > {path}")
    return paths


def checksum(text):
    return text.split()[0]


def file_disks(paths):
    return [Disk(vdev, path) for vdev, path in zip(VDEVS, paths, strict=False)]


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_guest_lives(lab, kind):
    """Four files and a block device: read, written, saved, restored."""
    size = SIZES[kind]
    paths = images(lab, size=size)
    lab.do(f"head -c {size} /dev/urandom > /dev/vdc")
    disks = [*file_disks(paths), Disk("xvde", "/dev/vdc")]
    guest = Guest(lab, "alive", disks, kind=kind, address=ADDRESS)
    guest.start()
    for vdev, path in zip((*VDEVS, "xvde"), (*paths, "/dev/vdc"), strict=True):
        inside = guest.run(f"head -c {size} /dev/{vdev} | sha256sum")
        assert checksum(inside) == checksum(lab.do(f"head -c {size} {path} | sha256sum"))
    guest.run(f"head -c {size} /dev/urandom > /dev/xvda; sync")
    written = checksum(guest.run("sha256sum /dev/xvda"))
    lab.do(f"busybox ping -c 2 -W 5 {ADDRESS}")
    guest.run("echo remembered > /tmp/note")

    lab.do("xl save alive /tmp/alive.save")
    assert not guest.is_there
    assert lab.do("losetup -a") == ""
    lab.do("xl restore /tmp/alive.save")
    assert guest.run("cat /tmp/note") == "remembered"
    assert checksum(guest.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/xvda")) == written
    lab.do(f"busybox ping -c 2 -W 10 {ADDRESS}")

    guest.destroy()
    lab.do("rm /tmp/alive.save")
    assert checksum(lab.do(f"sha256sum {paths[0]}")) == written
