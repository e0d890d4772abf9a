"""The conversation of a save helper with libxl, over pipes as libxl makes them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_xen import FakeXen
from savefiles import Pv, record

from hotplug.restore import helper, messages
from hotplug.restore.messages import Level, Number

WORDS = ["7", "3", "1", "4", "2", "768", "0"]  # domid, channels and domids, callbacks, type


# Messages, byte for byte


def test_messages():
    assert messages.static_data_done(cpuid_missing=True, msrs_missing=False) == bytes.fromhex(
        "0600 0800 01000000"
    )
    assert messages.restore_results(5, 6) == bytes.fromhex(
        "1200 0900 0500000000000000 0600000000000000"
    )
    assert messages.complete(-1, 22) == bytes.fromhex("0a00 0a00 ffffffff 16000000")
    assert messages.log(Level.INFO, "ab") == bytes.fromhex(
        "2100 0100 05000000 ffffffff 0c000000 78656e2d686f74706c756700 03000000 616200"
    )
    assert messages.progress("x", 1, 2) == bytes.fromhex(
        "2800 0200 0c000000 78656e2d686f74706c756700 02000000 78000100000000000000 0200000000000000"
    )


def test_a_long_text_is_cut():
    message = messages.log(Level.ERROR, "é" * 70000, number=5)
    assert struct.unpack_from("=H", message)[0] == len(message) - 2 <= 65535


# The conversation


class Libxl:
    """libxl's end. The helper is a child that has the hypervisor that it is given."""

    def __init__(self, xen, stream, callbacks=768):
        self._to_child, self._from_child = os.pipe(), os.pipe()
        self.stream, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.close(writing)
                os.dup2(self._to_child[0], 0)
                os.dup2(self._from_child[1], 1)
                for fd in (*self._to_child, *self._from_child):
                    os.close(fd)
                words = [*WORDS[:5], str(callbacks), "0"]
                argv = ["helper", "--restore-domain", str(self.stream), "-1", *words]
                os._exit(helper.serve(xen, helper.Call.parse(argv)))
            os._exit(99)
        os.close(self._to_child[0])
        os.close(self._from_child[1])
        self.feeder = os.fork()
        if not self.feeder:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for fd in (self.stream, self._to_child[1], self._from_child[0]):
                os.close(fd)
            while stream:
                stream = stream[os.write(writing, stream) :]
            os._exit(0)
        os.close(writing)

    def next(self):
        """A message's number and arguments; None at the end."""
        head = self._read(2)
        if not head:
            return None
        body = self._read(struct.unpack("=H", head)[0])
        return struct.unpack_from("=H", body)[0], body[2:]

    def _read(self, size):
        data = b""
        while len(data) < size and (more := os.read(self._from_child[0], size - len(data))):
            data += more
        return data

    def skip_notes(self):
        """The next message that is neither progress nor information."""
        while message := self.next():
            is_note = message[0] == Number.LOG and message[1][0] == Level.INFO
            if message[0] != Number.PROGRESS and not is_note:
                break
        return message

    def answer(self, number):
        os.write(self._to_child[1], struct.pack("=i", number))

    def end(self):
        _, status = os.waitpid(self.pid, 0)
        for fd in (self._to_child[1], self._from_child[0], self.stream):
            with contextlib.suppress(OSError):
                os.close(fd)
        os.waitpid(self.feeder, 0)
        return os.waitstatus_to_exitcode(status)


def test_a_restore():
    libxl = Libxl(FakeXen(), Pv().stream() + b"libxl's")
    assert libxl.skip_notes() == (8, struct.pack("=I", 0))
    libxl.answer(0)
    number, results = libxl.skip_notes()
    assert number == 9
    store, console = struct.unpack("=QQ", results)
    assert store > 0x200000
    assert console > store
    assert libxl.next() == (10, struct.pack("=ii", 0, 0))
    assert os.read(libxl.stream, 100) == b"libxl's"
    libxl.answer(0)
    assert libxl.end() == 0


@pytest.mark.parametrize(("seconds", "told"), [(2.0, range(1, 10)), (0.002, [7])])
def test_progress_is_told_now_and_then(monkeypatch, seconds, told):
    said, now = [], [0.0]
    monkeypatch.setattr(helper.Libxl, "say", lambda _, message: said.append(message))
    monkeypatch.setattr(helper.time, "monotonic", lambda: now[0])
    libxl = helper.Libxl(0, 1, 768)
    for done in range(0, 5001, 7):
        libxl.progress(done, 5000)
        libxl.progress(done, 0)  # by which libxl would divide
        now[0] += seconds
    counts = [struct.unpack("=QQ", message[-16:]) for message in said]
    assert [10 * done // total for done, total in counts] == list(told)


def test_what_libxl_did_not_ask_for_is_not_sent():
    libxl = Libxl(FakeXen(), Pv().stream(), callbacks=0)
    assert libxl.skip_notes()[0] == 9
    assert libxl.next()[0] == 10
    libxl.answer(0)
    assert libxl.end() == 0


def assert_failed(libxl, said, number=errno.EINVAL):
    kind, log = libxl.skip_notes()
    assert kind == 1
    level, code = struct.unpack_from("=II", log)
    assert (level, code) == (Level.ERROR, number)
    assert said in log.decode()
    assert libxl.next() == (9, bytes(16))
    assert libxl.next() == (10, struct.pack("=ii", -1, number))
    libxl.answer(0)
    assert libxl.end() == 0


def test_the_toolstack_refuses_the_policy():
    libxl = Libxl(FakeXen(), Pv().stream())
    assert libxl.skip_notes()[0] == 8
    libxl.answer(1)
    assert_failed(libxl, "the toolstack refuses")


def test_a_truncated_stream():
    libxl = Libxl(FakeXen(), Pv().stream()[:-8])
    assert libxl.skip_notes()[0] == 8
    libxl.answer(0)
    assert_failed(libxl, "truncated")


def test_a_corrupt_stream():
    guest = Pv(parts={"pages": record(0x55)})
    libxl = Libxl(FakeXen(), guest.stream())
    assert libxl.skip_notes()[0] == 8
    libxl.answer(0)
    assert_failed(libxl, "0x00000055")


def test_the_hypervisor_refuses():
    xen = FakeXen()
    xen.failures["pin"] = OSError(errno.EPERM, "page tables cannot be pinned")
    libxl = Libxl(xen, Pv().stream())
    assert libxl.skip_notes()[0] == 8
    libxl.answer(0)
    assert_failed(libxl, "page tables cannot be pinned", errno.EPERM)


def test_the_image_cannot_be_read(monkeypatch):
    """Which of the two that a restore deals with it was that failed, is said."""

    def broken(*_):
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    monkeypatch.setattr(os, "readv", broken)
    libxl = Libxl(FakeXen(), Pv().stream())
    assert libxl.skip_notes()[0] == 8
    libxl.answer(0)
    assert_failed(libxl, "the image: Connection reset by peer", errno.ECONNRESET)


def test_libxl_goes_away():
    libxl = Libxl(FakeXen(), Pv().stream())
    assert libxl.skip_notes()[0] == 8
    os.close(libxl._to_child[1])
    assert libxl.end() == 1


def test_sigterm_ends_it():
    libxl = Libxl(FakeXen(), Pv().stream())
    assert libxl.skip_notes()[0] == 8
    os.kill(libxl.pid, signal.SIGTERM)
    assert libxl.end() == -signal.SIGTERM


# What is handed to Xen's own helper


@pytest.fixture
def stock(tmp_path):
    """A program in the place of Xen's own helper: it says what it was given and left."""
    path = tmp_path / "stock-helper"
    path.write_text('#!/bin/bash\necho "$@"\ncat <&$2\nkill -PIPE $$\n')
    path.chmod(0o755)
    return path


def run(words, stock, stream, **variables):
    return subprocess.run(
        [sys.executable, "-m", "hotplug.restore.helper", *words],
        env={**os.environ, helper.STOCK: str(stock), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
        pass_fds=[stream.fileno()],
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--save-domain", "FD", "-1", "7", "1", "136", "0"],  # live
        ["--save-domain", "FD", "-1", "7", "0", "184", "1"],  # Remus
        ["--save-domain", "FD", "-1", "7", "0", "136", "0"],  # there is no Xen below the tests
        ["--restore-domain", "FD", "-1", *WORDS[:6], "1"],  # Remus
        ["--restore-domain", "FD", "-1", *WORDS],  # there is no Xen below the tests
    ],
)
def test_xens_own_helper_does_it(tmp_path, stock, words):
    with (tmp_path / "image").open("w+b", buffering=0) as stream:
        stream.write(b"xl's image")
        stream.seek(4)
        words = [str(stream.fileno()) if word == "FD" else word for word in words]
        done = run(words, stock, stream)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")  # which Python ignores
    assert done.stdout == f"{' '.join(words)}\n".encode() + b" image"


def test_a_link_to_this_program_is_not_xens_own(tmp_path):
    """It is put in the place of Xen's own, and there is no other."""
    program = tmp_path / "libxl-save-helper"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m hotplug.restore.helper "$@"\n',
    )
    program.chmod(0o755)
    with (tmp_path / "image").open("w+b", buffering=0) as stream:
        done = run(["--save-domain", str(stream.fileno())], program, stream)
    assert done.returncode == 2
    assert b"Xen's own libxl-save-helper is this program again; set XEN_HOTPLUG" in done.stderr


def test_no_helper_of_xens_own(tmp_path):
    with (tmp_path / "image").open("w+b", buffering=0) as stream:
        done = run(["--save-domain", str(stream.fileno())], tmp_path / "nothing", stream)
    assert done.returncode == 2
    assert b"Xen's own libxl-save-helper was not found" in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    "words",
    [
        ["--restore-domain", "3", "-1", "seven", *WORDS[1:]],
        ["--save-domain", "3", "-1", "seven", "0", "136", "0"],
    ],
)
def test_arguments_that_are_no_numbers(tmp_path, stock, words):
    with (tmp_path / "image").open("w+b", buffering=0) as stream:
        done = run(words, stock, stream)
    assert (done.returncode, done.stdout) == (2, b"")


def test_where_xens_own_helper_is(tmp_path, monkeypatch):
    monkeypatch.delenv(helper.STOCK, raising=False)
    monkeypatch.setattr(helper, "release", lambda: "4.17")
    monkeypatch.setattr(helper, "PLACES", (f"{tmp_path}/xen-{{}}/bin", f"{tmp_path}/xen/bin"))
    monkeypatch.setattr(helper.glob, "glob", lambda _: [])
    for folder in ("xen-4.17/bin", "xen/bin", "ours"):
        (tmp_path / folder).mkdir(parents=True)
    ours = str(tmp_path / "ours/libxl-save-helper")
    own = tmp_path / "xen-4.17/bin/libxl-save-helper"

    with pytest.raises(FileNotFoundError):
        helper.stock_helper(ours)
    for path in (tmp_path / "xen/bin/libxl-save-helper", own, Path(f"{own}.stock")):
        path.touch(0o755)
        assert helper.stock_helper(ours) == str(path)
        assert helper.stock_helper("libxl-save-helper") == str(path)
    # Ours is in the place of Xen's own, perhaps of another release than the running one's.
    assert helper.stock_helper(str(own)) == f"{own}.stock"
