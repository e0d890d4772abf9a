"""Real loop devices. The oracle is /sys, read by the harness, and losetup."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import loops, thief
from harness.locks import wait_until

from hotplug.kernel import loop as loop_module
from hotplug.kernel import loop_sysfs
from hotplug.kernel.blockdev import number_of
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.loop_abi import LOOP_CTL_REMOVE
from hotplug.kernel.release import linux
from hotplug.ports import FileId, LoopOptions

TREE = Path(__file__).parents[2]
PLAIN = LoopOptions()
REFERENCE = b"test:vbd.1.51712"


@pytest.fixture(params=[True, False], ids=["watching", "scanning"])
def kernel(request):
    with contextlib.closing(KernelLoops(watch=request.param)) as loops_of_host:
        yield loops_of_host


@pytest.fixture
def scanning():
    """For what has nothing to do with the index."""
    return KernelLoops()


def attach(kernel, path, options=PLAIN, reference=REFERENCE, mode=None):
    with open(path, mode or ("rb" if options.read_only else "r+b"), buffering=0) as backing:
        return kernel.attach(backing, options, reference)


@contextlib.contextmanager
def attached(kernel, path, options=PLAIN, reference=REFERENCE):
    loop = attach(kernel, path, options, reference)
    try:
        yield loop
    finally:
        kernel.detach(loop.number, only_if=lambda now: now.backing == loop.backing)
        wait_until_unbound(loop, path)


def wait_until_unbound(loop, path):
    """Somebody who looks at all loop devices just now delays it by having this one open."""
    backing = Path(f"/sys/block/loop{loop.number}/loop/backing_file")

    def is_unbound():
        try:
            return backing.read_text(errors="surrogateescape") not in (
                f"{path}\n",
                f"{path} (deleted)\n",
            )
        except OSError:
            return True

    wait_until(is_unbound, f"{loop.path} is no more bound to {path}")


def file_id(path):
    status = os.stat(path)
    return FileId(status.st_dev, status.st_ino)


def only(path):
    """The one loop device that /sys shows for a file."""
    (bound,) = loops.of(Path(path))
    return bound


def test_attach_and_detach(kernel, image):
    path = image()
    loop = attach(kernel, path)
    seen = only(path)
    assert (seen.path, seen.offset, seen.read_only, seen.autoclear) == (loop.path, 0, False, False)
    assert loop.device_number == number_of(os.stat(loop.path).st_rdev)
    assert loop.backing == file_id(path)
    assert loop.reference == REFERENCE
    assert kernel.get(loop.number) == loop
    assert kernel.backing_name(loop.number) == path

    assert kernel.detach(loop.number, only_if=loop.__eq__)
    wait_until_unbound(loop, path)
    # Its number may have gone to somebody else since.
    assert kernel.get(loop.number) != loop
    assert kernel.backing_name(loop.number) != path
    assert not kernel.detach(loop.number, only_if=loop.__eq__)


def test_what_is_written_arrives(scanning, image):
    path = image()
    with attached(scanning, path) as loop:
        with open(loop.path, "r+b") as device:
            device.write(b"hello")
        with open(path, "rb") as file:
            assert file.read(5) == b"hello"


def test_read_only(scanning, image):
    path = image()
    with attached(scanning, path, LoopOptions(read_only=True)) as loop:
        assert loop.read_only
        assert only(path).read_only
    with attached(scanning, path) as loop:  # most likely the same device again
        assert not only(path).read_only


def test_a_read_only_loop_of_a_file_open_for_writing(scanning, image):
    loop = attach(scanning, image(), LoopOptions(read_only=True), mode="r+b")
    assert loop.read_only
    assert scanning.detach(loop.number, only_if=loop.__eq__)


def test_a_writable_loop_needs_a_file_open_for_writing(scanning, image):
    path = image()
    with pytest.raises(OSError, match="cannot be written") as failure:
        attach(scanning, path, mode="rb")
    assert (failure.value.errno, failure.value.filename) == (errno.EROFS, path)
    assert loops.of(Path(path)) == []


@pytest.mark.parametrize("reference", [b"x" * 64, b"a\0b"])
def test_a_reference_that_would_be_cut_off(scanning, image, reference):
    with pytest.raises(ValueError, match="63 bytes"):
        attach(scanning, image(), reference=reference)


def test_the_longest_reference_and_odd_bytes(scanning, image):
    reference = bytes(range(255, 192, -1))
    with attached(scanning, image(), reference=reference) as loop:
        assert scanning.get(loop.number).reference == reference


def test_an_odd_name(scanning, tmp_path):
    path = loops.make_file(tmp_path / os.fsdecode(b"a b\\040\xff\n"))
    with attached(scanning, path) as loop:
        assert scanning.backing_name(loop.number) == str(path)
        assert scanning.bound_to(file_id(path)) == [loop]


class OpenDirectory:
    """As much of a file object as attach() asks for."""

    def __init__(self, path):
        self.name = str(path)
        self._fd = os.open(path, os.O_RDONLY)

    def fileno(self):
        return self._fd

    def close(self):
        os.close(self._fd)


def test_a_directory(scanning, tmp_path):
    directory = OpenDirectory(tmp_path)
    with contextlib.closing(directory), pytest.raises(OSError, match="Invalid") as failure:
        scanning.attach(directory, LoopOptions(read_only=True), REFERENCE)
    assert failure.value.filename == str(tmp_path)


def test_only_if_decides(kernel, image):
    path = image()
    with attached(kernel, path) as loop:
        assert not kernel.detach(loop.number, only_if=lambda now: now.reference == b"other")
        assert only(path).path == loop.path


def test_an_open_device_is_unbound_at_the_last_close(kernel, image):
    path = image()
    with attached(kernel, path) as loop:
        with open(loop.path, "rb"):
            assert kernel.detach(loop.number, only_if=loop.__eq__)
            assert only(path).autoclear
            assert kernel.get(loop.number).autoclear
            assert [now.number for now in kernel.bound_to(loop.backing)] == [loop.number]
            assert kernel.detach(loop.number, only_if=lambda now: now.backing == loop.backing)
        wait_until_unbound(loop, path)
        assert kernel.bound_to(loop.backing) == []


def test_a_deleted_file(kernel, image):
    path = image()
    backing = file_id(path)
    with attached(kernel, path) as loop:
        os.unlink(path)
        assert kernel.get(loop.number) == loop
        assert kernel.backing_name(loop.number) == path
        assert kernel.bound_to(backing) == [loop]
        assert kernel.detach(loop.number, only_if=lambda now: now.backing == backing)


def test_a_replaced_file(kernel, image):
    path = image()
    with attached(kernel, path) as loop:
        os.rename(image("new.img"), path)
        assert kernel.bound_to(file_id(path)) == []
        assert kernel.bound_to(loop.backing) == [loop]


def test_no_such_device(kernel):
    beyond = max(loop_sysfs.numbers()) + 10_000
    assert kernel.get(beyond) is None
    assert kernel.backing_name(beyond) is None
    assert not kernel.detach(beyond, only_if=lambda _: False)


def test_all(kernel, image):
    with attached(kernel, image("a.img")) as one, attached(kernel, image("b.img")) as other:
        assert {one, other} <= set(kernel.all())
    assert not {one, other} & set(kernel.all())


# Who else is bound to a file


def test_hard_links_and_offsets(kernel, image, tmp_path):
    path = image()
    os.link(path, tmp_path / "link.img")
    device = loops.attach(tmp_path / "link.img", "--offset", "4096", "--sizelimit", "8192")
    try:
        (loop,) = kernel.bound_to(file_id(path))
        assert (loop.path, loop.offset, loop.size_limit) == (device, 4096, 8192)
        with attached(kernel, path) as ours:
            assert {now.path for now in kernel.bound_to(file_id(path))} == {device, ours.path}
    finally:
        loops.detach(device)
    wait_until(lambda: not loops.of(tmp_path / "link.img"), "it is unbound")
    assert kernel.bound_to(file_id(path)) == []


def test_the_same_file_in_an_overlay(kernel, tmp_path):
    """Its st_dev is of no superblock that /proc/self/mountinfo shows; lo_device is the same."""
    for name in ("lower", "upper", "work"):
        os.mkdir(tmp_path / name)
    loops.make_file(tmp_path / "lower" / "disk.img")
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with mounted(tmp_path / "merged", "overlay", layers) as merged:
        path = merged / "disk.img"
        os.utime(path)  # copied up, so that opening for writing does not change its identity
        with attached(kernel, path) as loop:
            assert loop.backing == file_id(path)
            assert kernel.bound_to(file_id(path)) == [loop]


@contextlib.contextmanager
def mounted(directory, kind, options="defaults"):
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, kind, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


# Options


def logical_block_size(loop):
    return int(Path(f"/sys/block/loop{loop.number}/queue/logical_block_size").read_text())


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_block_size(scanning, image, size):
    with attached(scanning, image(), LoopOptions(block_size=size)) as loop:
        assert logical_block_size(loop) == size


def test_a_block_size_that_the_kernel_refuses(scanning, image):
    path = image(size=1000 * 512)
    with pytest.raises(OSError, match="Invalid") as failure:
        attach(scanning, path, LoopOptions(block_size=1000))
    assert failure.value.filename == path
    assert loops.of(Path(path)) == []


def test_blocks_that_do_not_fit_the_file(scanning, image):
    path = image(size=4096 + 512)
    with pytest.raises(OSError, match="not a multiple of the block size 4096"):
        attach(scanning, path, LoopOptions(block_size=4096))
    assert loops.of(Path(path)) == []


def make_ext4(directory, path):
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return mounted_image(directory, path)


@contextlib.contextmanager
def mounted_image(directory, path):
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", path, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def test_direct_io(scanning, image, tmp_path):
    with make_ext4(tmp_path / "mnt", image("fs.img", 16 << 20)) as directory:
        path = loops.make_file(directory / "disk.img")
        with attached(scanning, path, LoopOptions(direct_io=True)):
            assert only(path).direct_io
        with attached(scanning, path, LoopOptions(direct_io=True, block_size=4096)) as loop:
            assert only(path).direct_io
            assert logical_block_size(loop) == 4096
        with attached(scanning, path):
            assert not only(path).direct_io


def test_direct_io_where_it_cannot_be(scanning, tmp_path):
    with mounted(tmp_path / "mnt", "ramfs") as directory:
        path = loops.make_file(directory / "disk.img")
        with pytest.raises(OSError, match="direct I/O is not possible") as failure:
            attach(scanning, path, LoopOptions(direct_io=True))
        assert (failure.value.errno, failure.value.filename) == (errno.EOPNOTSUPP, str(path))
        assert loops.of(path) == []


def test_options_on_tmpfs_are_granted_or_refused_but_not_ignored(scanning, tmp_path):
    """tmpfs learnt direct I/O in Linux 6.6 (commit e88e0d366f9c)."""
    with mounted(tmp_path / "mnt", "tmpfs") as directory:
        path = loops.make_file(directory / "disk.img")
        options = LoopOptions(direct_io=True, block_size=4096)
        if linux() < (6, 6):
            with pytest.raises(OSError, match="direct I/O is not possible"):
                attach(scanning, path, options)
            assert loops.of(path) == []
            return
        with attached(scanning, path, options) as loop:
            assert only(path).direct_io
            assert logical_block_size(loop) == 4096


# Races and crowds


def test_a_competitor_that_is_always_in_the_way(kernel, image):
    path, other = image("ours.img"), image("thief.img")
    with thief.at_work(other):
        for _ in range(50):
            with attached(kernel, path) as loop:
                assert kernel.get(loop.number) == loop


def test_every_race_lost(scanning, image, monkeypatch):
    with attached(scanning, image("taken.img")) as taken:
        monkeypatch.setattr(loop_module, "free_number", lambda: taken.number)
        monkeypatch.setattr(loop_module, "ATTEMPTS", 3)
        with pytest.raises(OSError, match="lost 3 races") as failure:
            attach(scanning, image("late.img"))
        assert (failure.value.errno, failure.value.filename) == (errno.EBUSY, "/dev/loop-control")


def test_the_kernels_choice_is_left_to_who_always_wins_it(scanning, image, monkeypatch):
    with attached(scanning, image("taken.img")) as taken:
        monkeypatch.setattr(loop_module, "free_number", lambda: taken.number)
        with attached(scanning, image("ours.img")) as loop:
            assert loop.number != taken.number
            assert scanning.get(loop.number) == loop


def test_a_device_that_was_removed_before_we_opened_it(scanning, image, monkeypatch):
    real, named = loop_module.free_number, [max(loop_sysfs.numbers()) + 10_000]
    monkeypatch.setattr(loop_module, "free_number", lambda: named.pop() if named else real())
    with attached(scanning, image()) as loop:
        assert not named
        assert scanning.get(loop.number) == loop


def test_threads(kernel, image):
    """They find devices of their own, and the index loses none."""
    paths = [image(f"{number}.img") for number in range(8)]

    def work(path):
        for _ in range(10):
            with attached(kernel, path) as loop:
                assert kernel.bound_to(file_id(path)) == [loop]
            assert kernel.bound_to(file_id(path)) == []

    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(work, paths))


def test_300_at_once(kernel, image, tmp_path):
    before = set(loop_sysfs.numbers())
    bound = {}
    try:
        for number in range(300):
            path = image(f"{number}.img")
            bound[path] = attach(kernel, path)
        assert len({loop.number for loop in bound.values()}) == 300
        assert set(bound.values()) <= set(kernel.all())
        for path in (image("0.img"), image("299.img")):
            assert kernel.bound_to(file_id(path)) == [bound[path]]
    finally:
        for loop in bound.values():
            kernel.detach(loop.number, only_if=loop.__eq__)
    wait_until(lambda: not loops.below(tmp_path), "all are unbound")
    remove(set(loop_sysfs.numbers()) - before)


def remove(numbers):
    """Take away devices that a test made; who has bound one of them meanwhile keeps it."""

    def take(number):
        with open("/dev/loop-control", "rb", buffering=0) as control, contextlib.suppress(OSError):
            fcntl.ioctl(control, LOOP_CTL_REMOVE, number)

    with ThreadPoolExecutor(64) as pool:  # each waits for many other processors to take note
        list(pool.map(take, sorted(numbers, reverse=True)))


def test_another_device_than_the_stuck_one(scanning, image, monkeypatch):
    """While one of our threads hangs in LOOP_CONFIGURE the kernel names its device to all."""
    real, entered, go_on = loop_module.configure, threading.Event(), threading.Event()
    slow = image("slow.img")

    def configure(device, backing, options, reference):
        if backing.name == slow:
            entered.set()
            assert go_on.wait(10)
        real(device, backing, options, reference)

    monkeypatch.setattr(loop_module, "configure", configure)
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        hanging = pool.submit(attach, scanning, slow)
        assert entered.wait(10)
        others = [stack.enter_context(attached(scanning, image(f"{n}.img"))) for n in range(3)]
        assert not hanging.done()
        go_on.set()
        loop = hanging.result()
        assert len({loop.number, *(other.number for other in others)}) == 4
        assert scanning.detach(loop.number, only_if=loop.__eq__)


# A host without what we need

ATTACH = """
import sys
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.loop_abi import LOOP_CTL_REMOVE
from hotplug.kernel.release import linux
from hotplug.ports import LoopOptions
with open(sys.argv[1], "r+b", buffering=0) as backing:
    try:
        KernelLoops().attach(backing, LoopOptions(), b"test")
    except OSError as error:
        print(error.filename, error.strerror, sep=": ")
"""


@pytest.mark.parametrize(
    ("hide", "said"),
    [
        ("mount -t tmpfs none /dev", "/dev/loop-control: No such file or directory"),
        (
            "mount --bind $0 /dev/loop-control",
            "/dev/loop-control: Inappropriate ioctl for device",
        ),
    ],
)
def test_no_loop_control(image, hide, said):
    script = f'{hide} && exec "$1" -c "$2" "$0"'
    command = ["unshare", "--mount", "sh", "-c", script, image(), sys.executable, ATTACH]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=TREE)
    assert done.stdout.strip() == said


def test_a_node_that_never_appears(image):
    script = """
        mkdir $0.dev && touch $0.dev/loop-control &&
        mount --bind /dev/loop-control $0.dev/loop-control && mount --rbind $0.dev /dev &&
        exec "$1" -c "$2" "$0"
    """
    quick = ATTACH.replace(
        "with open", "import hotplug.kernel.loop_ioctl as m\nm.NODE_WAIT = 0.1\nwith open"
    )
    command = ["unshare", "--mount", "sh", "-c", script, image(), sys.executable, quick]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=TREE)
    assert done.stdout.strip().endswith(": the device node did not appear within 0.1 s")


# What the index relies on


def test_each_binding_has_a_sequence_number_of_its_own(scanning, image):
    path, seen = image(), set()
    for _ in range(3):
        with attached(scanning, path) as loop:
            seen.add(loop_sysfs.disk_sequence(loop.number))
    assert len(seen) == 3
    assert None not in seen
