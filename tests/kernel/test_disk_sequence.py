"""The two ways to ask for a disk's sequence number must agree: they are compared."""

from __future__ import annotations

from harness import loops
from harness.loops import make_file

from hotplug.kernel import loop_sysfs
from hotplug.kernel.loop_ioctl import disk_sequence


def test_the_ioctl_and_sysfs_agree(tmp_path):
    path = loops.attach(make_file(tmp_path / "disk.img"))
    try:
        number = int(path.removeprefix("/dev/loop"))
        with open(path, "rb", buffering=0) as device:
            told = disk_sequence(device)
        assert told == loop_sysfs.disk_sequence(number)
    finally:
        loops.detach(path)
