"""Workers that wait for a restore, with real processes: the server, its workers, the client in C.

The hypervisor is the tests' own; there is no Xen below.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from savefiles import Pv, record

from hotplug.client import ask
from hotplug.restore import helper, worker

CLIENT = Path(ask.__file__).with_name("libxl-save-helper")
TESTS = Path(__file__).parents[1]
PATIENCE = 20.0  # seconds; nothing here takes one
# A server whose hypervisor is a fake one. What is said to workers' hypervisors is not heard.
SERVER = """
import ctypes, os, socket, sys
from fakes_xen import FakeXen
from hotplug.restore import server
from hotplug.restore.server import Server
server.REST = float(os.environ.get("REST", "0.1"))
class Xen(FakeXen):
    def __init__(self):
        if os.environ.get("BROKEN"):
            raise OSError(5, "no privcmd")
        if os.environ.get("CRASHES"):
            os.kill(os.getpid(), 11)
        super().__init__()
    def map(self, *arguments, **options):
        if "SEGMENT" in os.environ:
            libc.shmat.restype = ctypes.c_void_p
            assert libc.shmat(int(os.environ["SEGMENT"]), None, 0) != ctypes.c_void_p(-1).value
            del os.environ["SEGMENT"]
            self.memory = b"x" * (256 << 20)  # which takes a while to be given back
        return super().map(*arguments, **options)
libc = ctypes.CDLL(None)
sys.exit(Server(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), Xen).run())
"""
WORDS = ("-1", "7", "3", "1", "4", "2", "768", "0")


def wait_until(condition, what):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.005)


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Running:
    """A server, and our end of its connection: we are its agent."""

    def __init__(self, rundir, **variables):
        self.rundir = rundir
        self.agent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, f"{rundir}/restore", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": path, **variables},
            cwd="/",
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def wait(self):
        wait_until(lambda: Path(f"{self.rundir}/restore").exists(), "it listens")
        return self

    def workers(self):
        return children(self.process.pid)

    def close(self):
        self.agent.close()
        return self.process.wait(PATIENCE)


@pytest.fixture
def rundir():
    """Short, because a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="xh-") as directory:
        yield directory


@pytest.fixture
def server(rundir):
    running = Running(rundir).wait()
    yield running
    workers = running.workers()
    assert running.close() == 0
    wait_until(lambda: not any(map(is_alive, workers)), "its workers end with it")


@pytest.fixture
def stock(tmp_path):
    """In the place of Xen's own helper, which a client that finds no worker comes to."""
    path = tmp_path / "stock"
    path.write_text('#!/bin/bash\necho "stock: $*" >&2\ncat <&"$2"\nexit 9\n')
    path.chmod(0o755)
    return path


class Restore:
    """The client as libxl runs it, and libxl's ends of the pipes; the image is a pipe, too."""

    def __init__(self, rundir, stock, words=("--restore-domain", "FD", *WORDS), image=None):
        if image is None:
            stream, self.image = os.pipe()
            fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, 1 << 20)  # all of an image fits in
        else:
            stream, self.image = os.open(image, os.O_RDONLY), None
        words = [str(stream) if word == "FD" else word for word in words]
        self.process = subprocess.Popen(
            [CLIENT, *words],
            env={"XEN_HOTPLUG_RUNDIR": rundir, helper.STOCK: str(stock), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=[stream],
        )
        os.close(stream)

    def feed(self, content):
        os.write(self.image, content)

    def next(self):
        """The next message that is neither progress nor a note: its number."""
        while head := self.process.stdout.read(2):
            size = struct.unpack("=H", head)[0]
            body = b""
            while len(body) < size:
                body += self.process.stdout.read(size - len(body))
            (number,) = struct.unpack_from("=H", body)
            if number not in (1, 2):
                return number
        return None

    def answer(self, value=0):
        self.process.stdin.write(struct.pack("=i", value))

    def end_image(self):
        if self.image is not None:
            os.close(self.image)
            self.image = None

    def end(self):
        """(exit status, stderr)"""
        self.end_image()
        with self.process:
            said = self.process.stderr.read().decode()
            return self.process.wait(PATIENCE), said

    def finish(self):
        """Be libxl until it is over."""
        self.feed(Pv().stream())
        assert self.next() == 8
        self.answer()
        assert [self.next(), self.next()] == [9, 10]
        self.answer()
        return self.end()


@pytest.fixture
def start(rundir, stock):
    started = []

    def run(*words, **options):
        started.append(Restore(rundir, stock, *([words] if words else []), **options))
        return started[-1]

    yield run
    for one in started:
        one.process.kill()
        one.end_image()
        with one.process:  # closes its pipes
            pass


def worker_of(server, restore):
    """The one that has the client's image open."""
    image = os.readlink(f"/proc/self/fd/{restore.image}")
    found = []

    def look():
        for pid in server.workers():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(fd) == image:
                        found.append(pid)
        return found

    wait_until(look, "a worker is at work")
    return found[0]


def test_a_restore_by_a_worker(server, start):
    (first,) = server.workers()
    for _ in range(3):
        assert start().finish() == (0, "")
        wait_until(lambda old=first: server.workers() not in ([], [old]), "another is ready")
        (first,) = server.workers()


def test_a_restore_has_the_machine_to_itself_until_its_guest_runs(rundir, start):
    """Nobody is started for the next one meanwhile, unless that comes: then more will."""
    server = Running(rundir, REST="600").wait()
    (first,) = server.workers()
    assert start().finish() == (0, "")
    wait_until(lambda: not server.workers(), "it has ended")
    for _ in range(2):
        assert start().finish() == (0, "")
        wait_until(lambda: server.workers() not in ([], [first]), "another is ready")
    assert server.close() == 0


def test_a_worker_that_is_killed_while_it_waits(server, start):
    (first,) = server.workers()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: server.workers() not in ([], [first]), "another is there")
    assert start().finish() == (0, "")


def test_workers_that_crash_as_they_start_are_not_started_again_and_again(rundir):
    server = Running(rundir, CRASHES="1", REST="600").wait()
    wait_until(lambda: not server.workers(), "it has crashed")
    for _ in range(50):
        assert server.workers() == []
        time.sleep(0.01)
    assert server.close() == 0


def test_what_fails_there_is_told(server, start):
    restore = start()
    restore.feed(b"x" * 64)
    assert [restore.next(), restore.next()] == [9, 10]
    restore.answer()
    assert restore.end() == (0, "")


@pytest.mark.parametrize("kind", [0x55, 0x80000055])
def test_a_file_of_a_later_format_is_given_to_xens_own_helper(server, start, tmp_path, kind):
    """With nothing of it consumed, nor said to libxl; unless what is new may be ignored."""
    stream = Pv().stream()
    stream = stream[:40] + record(kind) + stream[40:]  # behind the headers
    image = tmp_path / "image"
    image.write_bytes(stream)
    restore = start(image=image)
    if kind & 0x80000000:
        assert restore.next() == 8
        return
    assert restore.process.stdout.read() == stream
    assert restore.end()[0] == 9
    assert start().finish() == (0, "")


def test_many_at_once(server, start):
    restores = [start() for _ in range(8)]
    for one in restores:
        one.feed(Pv().stream())
    for one in restores:
        assert one.next() == 8
    for one in restores:
        one.answer()
        assert [one.next(), one.next()] == [9, 10]
        one.answer()
    assert [one.end() for one in restores] == [(0, "")] * 8
    wait_until(lambda: len(server.workers()) == 1, "only one is left, which waits")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_dies_with_its_client(server, start, number):
    restore = start()
    restore.feed(Pv().stream()[:100])
    pid = worker_of(server, restore)
    restore.process.send_signal(number)
    wait_until(lambda: not is_alive(pid), "the worker is gone")
    assert restore.end() == (-number, "")
    assert start().finish() == (0, "")


def test_a_worker_that_dies_is_a_failure(server, start):
    restore = start()
    restore.feed(Pv().stream()[:100])
    os.kill(worker_of(server, restore), signal.SIGKILL)
    assert restore.end() == (1, "")
    assert start().finish() == (0, "")


def test_the_client_outlasts_the_workers_memory(rundir, start):
    """A page that a process of dom0 has mapped cannot become a page table of the guest.

    System V shared memory counts its mappings, and the kernel takes them away in the order in
    which it would those of a guest.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    status = (ctypes.c_ulong * 32)()
    attached = 11  # shm_nattch of struct shmid_ds
    for _ in range(5):
        segment = libc.shmget(0, 4096, 0o1600)
        assert segment >= 0
        try:
            server = Running(rundir, SEGMENT=str(segment)).wait()
            restore = start()
            restore.feed(Pv().stream())
            assert restore.next() == 8
            restore.answer()
            assert [restore.next(), restore.next()] == [9, 10]
            libc.shmctl(segment, 2, status)  # IPC_STAT
            assert status[attached] == 1
            restore.answer()
            restore.process.wait(PATIENCE)
            libc.shmctl(segment, 2, status)
            assert status[attached] == 0
            assert restore.end() == (0, "")
            assert server.close() == 0
            os.unlink(f"{rundir}/restore")
        finally:
            libc.shmctl(segment, 0, None)  # IPC_RMID


def test_a_server_that_dies_takes_none_that_is_at_work_along(server, start):
    restore = start()
    restore.feed(Pv().stream()[:100])
    pid = worker_of(server, restore)
    idle = set(server.workers()) - {pid}
    server.process.kill()
    wait_until(lambda: not any(map(is_alive, idle)), "those that wait end")
    restore.feed(Pv().stream()[100:])
    assert restore.next() == 8
    restore.answer()
    assert [restore.next(), restore.next()] == [9, 10]
    restore.answer()
    assert restore.end() == (0, "")
    status, said = start().end()
    assert (status, said.startswith("stock: --restore-domain ")) == (9, True)
    server.agent.close()
    server.process.wait()
    server.workers = list
    server.close = lambda: 0


def test_workers_that_cannot_start(rundir):
    server = Running(rundir, BROKEN="1")
    assert server.process.wait(PATIENCE) == 4
    server.agent.close()


def test_another_server_takes_over(rundir, server, start):
    other = Running(rundir)
    before = os.stat(f"{rundir}/restore").st_ino
    wait_until(lambda: os.stat(f"{rundir}/restore").st_ino != before, "the other one listens")
    assert start().finish() == (0, "")
    assert other.close() == 0


# What is none of the workers' business


@pytest.mark.parametrize(
    "words",
    [
        ("--save-domain", "FD", "-1", "7", "1", "136", "0"),
        ("--restore-domain", "FD", *WORDS[:-1], "1"),
        ("--restore-domain", "FD", "FD", *WORDS[1:]),
        ("--restore-domain", "FD", "-1", "8", *WORDS[2:]),  # a domain that is not there
    ],
)
def test_xens_own_helper_does_it(server, start, words):
    restore = start(*words)
    restore.feed(b"the image")
    restore.end_image()
    said = f"stock: {' '.join(words)}\n"
    status, stderr = restore.process.wait(PATIENCE), restore.process.stderr.read().decode()
    assert restore.process.stdout.read() == b"the image"
    fd = stderr.split()[2]
    assert (status, stderr) == (9, said.replace("FD", fd))


def test_without_a_server(start):
    assert start().end()[0] == 9


def test_a_listener_that_says_nothing(rundir, start):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{rundir}/restore")
        listener.listen()
        assert start().end()[0] == 9


@pytest.mark.parametrize("greeting", [b"xen-hotplug restore 2", b"xen-hotplug restore 12", b""])
def test_a_worker_of_another_version(rundir, start, greeting):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{rundir}/restore")
        listener.listen()
        restore = start()
        with listener.accept()[0] as connection:
            connection.send(greeting)
            assert restore.end()[0] == 9
            assert connection.recv(100) == b""


def test_who_is_not_root_is_not_served(rundir, server):
    assert os.stat(f"{rundir}/restore").st_mode & 0o777 == 0o600
    subprocess.run(["chmod", "a+rwx", rundir, f"{rundir}/restore"], check=True)
    code = (
        "import os, socket, sys; os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
        "sys.exit(len(s.recv(100)))"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{rundir}/restore"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("packet", [b"nonsense", b"--restore-domain\0" * 10, b"\xff\0" * 10])
def test_who_asks_for_nonsense_gets_nothing(rundir, server, packet):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(PATIENCE)
        client.connect(f"{rundir}/restore")
        assert client.recv(100) == worker.GREETING
        socket.send_fds(client, [packet], [0, 1, 2, 2])
        assert client.recv(100) in (b"", worker.DECLINED)
