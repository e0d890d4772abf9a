"""Loop devices over a file system that hangs or dies."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hangfs
import pytest
from harness import loops
from harness.locks import wait_until

from hotplug.kernel import loop as loop_module
from hotplug.kernel.loop import KernelLoops
from hotplug.ports import FileId, LoopOptions

TREE = Path(__file__).parents[2]
PLAIN = LoopOptions()
REFERENCE = b"test:vbd.1.51712"
PATIENCE = 0.8  # seconds, instead of the real one
AT_ONCE = 0.75 * PATIENCE
SOON = 2.5 * PATIENCE


@pytest.fixture(params=[True, False], ids=["watching", "scanning"])
def kernel(request):
    with contextlib.closing(KernelLoops(watch=request.param)) as loops_of_host:
        loops_of_host._index._inquiry._patience = PATIENCE
        yield loops_of_host


@pytest.fixture
def fs(tmp_path):
    with hangfs.mounted(tmp_path / "dead") as fs:
        yield fs


@pytest.fixture
def threads(fs):
    """For what hangs: it goes on when the test is over."""
    with ThreadPoolExecutor(4) as pool:
        yield pool
        fs.release()


def attach(kernel, path, options=PLAIN):
    with open(path, "r+b", buffering=0) as backing:
        return kernel.attach(backing, options, REFERENCE)


def detach(kernel, loop):
    assert kernel.detach(loop.number, only_if=lambda now: now.reference == REFERENCE)
    wait_until(lambda: not loops.of(Path(kernel.backing_name(loop.number) or "/")), "unbound")


@contextlib.contextmanager
def bound_by_another(path, count=1):
    """Loop devices that nobody but this function knows of."""
    stranger = KernelLoops()
    bound = [attach(stranger, path) for _ in range(count)]
    try:
        yield bound[0].number
    finally:
        for loop in bound:
            stranger.detach(loop.number, only_if=loop.__eq__)
        wait_until(lambda: not loops.of(Path(path)), f"{path} has no loop device")


def file_id(path):
    status = os.stat(path)
    return FileId(status.st_dev, status.st_ino)


@contextlib.contextmanager
def within(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# The file system itself


def test_a_file_system_without_faults(fs):
    assert os.listdir(fs.directory) == []
    assert os.stat(fs.path).st_size == 1 << 20
    with open(fs.path, "r+b", buffering=0) as file:
        file.write(b"hello")
        os.fsync(file)
        file.seek(0)
        assert file.read(6) == b"hello\0"


@pytest.mark.parametrize("operation", ["lookup", "open", "getattr", "read", "fsync"])
def test_what_hangs_goes_on_after_the_release(fs, threads, operation):
    def use():
        with open(fs.path, "rb", buffering=0) as file:
            os.fsync(file)
            return len(file.read(5))

    fs.hang(operation)
    using = threads.submit(use)
    fs.wait_until_hung()
    assert not using.done()
    fs.release()
    assert using.result() == 5


def test_what_hangs_fails_when_the_server_dies(tmp_path):
    with hangfs.mounted(tmp_path / "dead") as fs, ThreadPoolExecutor(1) as pool:
        fs.hang("getattr")
        using = pool.submit(os.stat, fs.path)
        fs.wait_until_hung()
        fs.die()
        assert isinstance(using.exception(), ConnectionAbortedError)
        with pytest.raises(OSError, match="not connected"):
            os.stat(fs.path)


# Facts about the kernel that the code is built upon


def test_asking_a_device_hangs_with_its_file_system(kernel, fs, threads):
    loop = attach(kernel, fs.path)
    fs.hang("getattr")
    asking = threads.submit(loop_module.get, loop.number)
    fs.wait_until_hung()
    assert not asking.done()
    with within(AT_ONCE):  # but neither opening it nor sysfs do
        os.close(os.open(loop.path, os.O_RDONLY | os.O_CLOEXEC))
        assert kernel.backing_name(loop.number) == fs.path
    fs.release()
    assert asking.result() == loop
    detach(kernel, loop)


# A hanging device of somebody else


def test_it_does_not_stop_questions_about_other_files(kernel, fs, image):
    other = attach(kernel, image())
    with bound_by_another(fs.path):
        fs.hang("getattr")
        with within(SOON):
            assert kernel.bound_to(other.backing) == [other]
        with within(AT_ONCE):  # the second question knows
            assert kernel.bound_to(other.backing) == [other]
            assert other in kernel.all()
        fs.release()
    detach(kernel, other)


def test_a_file_system_that_dies_between_the_question_and_the_answer(
    kernel, fs, threads, monkeypatch
):
    """The device over our own file does not answer. When it does, we are about to attach."""
    backing = file_id(fs.path)
    with bound_by_another(fs.path) as number, open(fs.path, "r+b", buffering=0) as file:
        fs.hang("getattr")
        with within(SOON):
            assert kernel.bound_to(backing) == []
        attaching = threads.submit(kernel.attach, file, PLAIN, REFERENCE)
        fs.wait_until_hung(2)
        fs.release()
        failure = attaching.exception()
        assert failure.errno == errno.EBUSY
        assert failure.filename == fs.path
        assert f"/dev/loop{number}" in failure.strerror
        wait_until(lambda: len(loops.of(Path(fs.path))) == 1, "ours is unbound again")
        assert [loop.number for loop in kernel.bound_to(backing)] == [number]


def test_many_on_one_dead_file_system_cost_no_more_than_one(kernel, fs, image):
    path = image()
    with bound_by_another(fs.path, count=10):
        fs.hang("getattr")
        with within(SOON):
            assert kernel.bound_to(file_id(path)) == []
        with within(AT_ONCE):
            assert kernel.bound_to(file_id(path)) == []
        with within(SOON):
            loop = attach(kernel, path)
        detach(kernel, loop)
        fs.release()


def test_a_crashed_file_system(kernel, tmp_path, image):
    """It fails instead of hanging; what we know of our own device stays true."""
    other = attach(kernel, image())
    with hangfs.mounted(tmp_path / "dead") as fs:
        loop = attach(kernel, fs.path)
        fs.die()
        with pytest.raises(OSError, match="not connected"):
            loop_module.get(loop.number)
        assert kernel.get(loop.number) == loop
        assert kernel.bound_to(loop.backing) == [loop]
        assert kernel.bound_to(other.backing) == [other]
        assert loop in kernel.all()
        detach(kernel, loop)
    detach(kernel, other)


def test_a_stranger_on_a_crashed_file_system(kernel, tmp_path, image):
    with hangfs.mounted(tmp_path / "dead") as fs:
        backing = file_id(fs.path)
        with bound_by_another(fs.path):
            fs.die()
            with within(AT_ONCE):
                assert kernel.bound_to(file_id(image())) == []
                assert kernel.bound_to(backing) == []


# A hanging device of ours


def test_detaching_asks_no_dead_file_system(kernel, fs, threads):
    loop = attach(kernel, fs.path)
    fs.hang("getattr")
    with within(AT_ONCE):
        assert kernel.detach(loop.number, only_if=loop.__eq__)
    fs.release()
    assert loops.of(Path(fs.path)) == []


@pytest.mark.parametrize("operation", ["statfs", "fsync"])
def test_attaching_hangs_without_a_loop_device(kernel, fs, threads, image, operation):
    fs.hang(operation)
    hanging = threads.submit(attach, kernel, fs.path)
    fs.wait_until_hung()
    with within(SOON):  # losetup gets one, and so do we
        with bound_by_another(image("losetup.img")):
            pass
        other = attach(kernel, image())
    assert not hanging.done()
    fs.release()
    detach(kernel, other)
    detach(kernel, hanging.result())


def test_attaching_hangs_while_the_device_is_asked(kernel, fs, threads, image, monkeypatch):
    """The worst moment: it is bound already. Nobody else is kept waiting."""
    real, entered = loop_module.configure, threading.Event()

    def configure(device, backing, options, reference):
        real(device, backing, options, reference)
        if backing.name == fs.path:
            fs.hang("getattr")
            entered.set()

    monkeypatch.setattr(loop_module, "configure", configure)
    hanging = threads.submit(attach, kernel, fs.path)
    assert entered.wait(hangfs.PATIENCE)
    fs.wait_until_hung()
    with within(SOON):
        others = [attach(kernel, image(f"{number}.img")) for number in range(3)]
        for other in others:
            assert kernel.bound_to(other.backing) == [other]
    assert not hanging.done()
    fs.release()
    for loop in (*others, hanging.result()):
        detach(kernel, loop)


# A program that binds a loop device without the precautions that we take.
STRANGER = """if True:
    import sys
    from hotplug.kernel import loop
    from hotplug.ports import LoopOptions
    with open(sys.argv[1], "r+b", buffering=0) as backing:
        while True:
            try:
                number = loop.free_number()
                with loop.open_node(number) as device:
                    print(number, flush=True)
                    loop.configure(device, backing, LoopOptions(), b"stranger")
                    loop.unbind(device)
                break
            except OSError as error:
                if error.errno not in loop.LOST_RACE:
                    raise
"""


def test_a_stranger_hangs_in_the_device_that_the_kernel_names(
    kernel, fs, threads, image, monkeypatch
):
    """The first of us is caught, the others go around it."""
    paths = [image(f"{number}.img") for number in range(4)]
    fs.hang("statfs")
    command = [sys.executable, "-c", STRANGER, fs.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=TREE) as stranger:
        fs.wait_until_hung()
        number = int(os.read(stranger.stdout.fileno(), 4096).split()[-1])
        monkeypatch.setattr(loop_module, "free_number", lambda: number)
        first = threads.submit(attach, kernel, paths.pop())
        wait_until(lambda: kernel._trying, "the first of us is on its way")
        with within(SOON):
            others = [attach(kernel, path) for path in paths]
        assert not first.done()
        monkeypatch.undo()
        fs.release()
    assert stranger.returncode == 0
    for loop in (*others, first.result()):
        detach(kernel, loop)
