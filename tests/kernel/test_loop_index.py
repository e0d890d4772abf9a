"""The index over real loop devices: what losetup does is known at once, without a scan."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from harness import loops
from harness.locks import wait_until

from hotplug.kernel import loop as loop_module
from hotplug.kernel import loop_index
from hotplug.kernel.loop_index import LoopIndex
from hotplug.kernel.uevents import (
    KERNEL_GROUP,
    NETLINK_KOBJECT_UEVENT,
    LoopUevents,
    loop_number,
)
from hotplug.ports import FileId

CHANGES = 400  # more than the small receive buffer holds


class Recorder:
    """Real events, and which devices were asked."""

    def __init__(self, *, receive_buffer=1 << 20, announces=True):
        self.uevents = LoopUevents(receive_buffer)
        self.asked = []
        self.kept = []
        self.lost = 0
        self.announces = announces
        self.index = LoopIndex(self.ask, self, announced=announces)

    def ask(self, number):
        self.asked.append(number)
        return loop_module.get(number)

    def drain(self):
        changed, kept = self.uevents.drain(), self.kept
        self.kept = []
        if changed is None:
            self.lost += 1
            return None
        return kept + changed

    @contextlib.contextmanager
    def bound(self, path, *options):
        """losetup has a device; a silent kernel, 5.19 to 6.14, says nothing of its binding."""
        self.kept += self.uevents.drain()
        device = loops.attach(path, *options)
        if not self.announces:
            number = int(device.removeprefix("/dev/loop"))
            was_known = number in self.index._bindings  # then the event says that it was unbound
            self.kept += [n for n in self.uevents.drain() if n != number or was_known]
        try:
            yield device
        finally:
            loops.detach(device)
            wait_until(lambda: not loops.of(path), f"{path} has no loop device")

    def close(self):
        self.uevents.close()

    def bound_to(self, path):
        status = os.stat(path)
        file = FileId(status.st_dev, status.st_ino)
        found = (loop_module.get(number) for number in self.index.candidates(file))
        return [loop.path for loop in found if loop is not None and loop.backing == file]


@pytest.fixture(params=[True, False], ids=["announced", "silent"])
def recorder(request):
    with contextlib.closing(Recorder(announces=request.param)) as recorder:
        yield recorder


def test_losetup_is_seen(recorder, image, tmp_path):
    path = tmp_path / "disk.img"
    image()
    assert recorder.bound_to(path) == []
    recorder.asked.clear()
    with recorder.bound(path) as device:
        number = int(device.removeprefix("/dev/loop"))
        assert recorder.bound_to(path) == [device]
        assert recorder.bound_to(path) == [device]
        assert recorder.asked.count(number) == 1
    assert recorder.bound_to(path) == []


def test_a_device_that_changes_hands(recorder, image, tmp_path):
    one, other = tmp_path / "one.img", tmp_path / "other.img"
    image("one.img")
    image("other.img")
    with recorder.bound(one) as device:
        assert recorder.bound_to(one) == [device]
    for path in (other, one, other):
        with recorder.bound(path) as device:
            assert recorder.bound_to(path) == [device]
    assert recorder.bound_to(one) == []


def test_mount_and_umount_are_seen(recorder, image, tmp_path):
    """mount binds with autoclear, and the kernel unbinds at umount."""
    path = tmp_path / "disk.img"
    image()
    device = loops.attach(path)
    with open(device, "rb"):
        loops.detach(device)
        assert recorder.bound_to(path) == [device]
    wait_until(lambda: not loops.of(path), "the last close unbinds it")
    assert recorder.bound_to(path) == []


def touch(device, times):
    """Have the kernel send change events."""
    for _ in range(times):
        with open(f"/sys/block/{os.path.basename(device)}/uevent", "w") as file:
            file.write("change")


def test_events_that_are_lost_lead_to_a_scan(image, tmp_path):
    path = tmp_path / "disk.img"
    image()
    with contextlib.closing(Recorder(receive_buffer=1 << 12)) as recorder:
        assert recorder.bound_to(path) == []
        device = loops.attach(path)
        try:
            touch("loop0", CHANGES)
            assert recorder.bound_to(path) == [device]
            assert recorder.lost == 1
        finally:
            loops.detach(device)
        wait_until(lambda: not loops.of(path), "it is unbound")
        assert recorder.bound_to(path) == []
        touch("loop0", CHANGES)
        assert recorder.bound_to(path) == []
        assert recorder.lost == 2


def test_the_default_buffer_holds_a_crowd(image, tmp_path):
    with contextlib.closing(Recorder()) as recorder:
        recorder.bound_to(image())
        touch("loop0", CHANGES)
        recorder.bound_to(tmp_path / "disk.img")
        assert recorder.lost == 0


def test_without_events_each_question_is_a_scan(image, tmp_path):
    path = tmp_path / "disk.img"
    image()
    with contextlib.closing(Recorder()) as recorder:
        recorder.bound_to(path)
        recorder.index.close()
        device = loops.attach(path)
        assert recorder.bound_to(path) == [device]
        loops.detach(device)
        wait_until(lambda: not loops.of(path), "it is unbound")
        assert recorder.bound_to(path) == []


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (b"change@/devices/virtual/block/loop12\0ACTION=change\0", 12),
        (b"add@/devices/virtual/block/loop0\0", 0),
        (b"add@/devices/virtual/block/loop1/loop1p1\0", None),
        (b"add@/devices/virtual/misc/loop-control\0", None),
        (b"change@/devices/virtual/block/loop\0", None),
        (b"add@/devices/pci0000:00/virtio1/block/vda\0", None),
        (b"libudev\0\xfe\xed\xca\xfe", None),
        (b"", None),
    ],
)
def test_messages_of_the_kernel(message, number):
    assert loop_number(message) == number


def test_messages_of_others_do_not_count():
    """Any process of root's can send to the kernel's group."""
    with (
        contextlib.closing(LoopUevents()) as uevents,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as other,
    ):
        uevents.drain()
        other.bind((0, 0))
        other.sendto(b"change@/devices/virtual/block/loop987654\0", (0, KERNEL_GROUP))
        assert 987654 not in uevents.drain()


def test_questions_stay_cheap_among_many(image, tmp_path):
    """Each answer is the same work however many others are bound: no scan hides in it."""
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(contextlib.closing(Recorder()))
        for number in range(50):
            image(f"{number}.img")
            stack.callback(loops.detach, loops.attach(tmp_path / f"{number}.img"))
        recorder.bound_to(tmp_path / "0.img")
        recorder.asked.clear()
        looked = []
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            loop_index.loop_sysfs, "is_bound", lambda number: looked.append(number) or True
        )
        started = time.process_time()
        for _ in range(100):
            recorder.bound_to(tmp_path / "0.img")
        assert (time.process_time() - started) / 100 < 0.001
        assert len(set(looked)) < 25  # others on this host may change theirs meanwhile
    wait_until(lambda: not loops.below(tmp_path), "all are unbound")
