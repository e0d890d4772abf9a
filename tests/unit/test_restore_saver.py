"""The conversation of a save helper with libxl while a guest is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import signal
import struct

import pytest
from fakes_xen import FakeState, FakeToolstack, FakeXen, prepare
from savefiles import Hvm, Pv

from hotplug.restore import helper, messages, saver
from hotplug.restore.guest import Request, restore
from hotplug.restore.image import Image
from hotplug.restore.messages import Level, Number

REQUEST = Request(7, store_channel=3, store_domid=1, console_channel=4, console_domid=2)
CALLBACKS = 136  # suspend, switch_qemu_logdirty


def restored(guest, tmp_path, **facts):
    path = tmp_path / "image"
    path.write_bytes(guest.stream())
    xen = FakeXen(**facts)
    with path.open("rb", buffering=0) as file:
        restore(xen, Image(file.fileno(), "it"), REQUEST, FakeToolstack())
    return xen


@pytest.fixture
def pv(tmp_path):
    guest = Pv()
    xen = restored(guest, tmp_path)
    return xen, prepare(xen, guest)


@pytest.fixture
def hvm(tmp_path):
    xen = restored(Hvm(), tmp_path, is_hvm=True)
    return xen, FakeState(xen)


class Libxl:
    """libxl's end. The helper is a child that saves a guest of a fake hypervisor."""

    def __init__(self, guest, stream, callbacks=CALLBACKS, limit=None, foreign=None):
        xen, state = guest
        self._to_child, self._from_child = os.pipe(), os.pipe()
        call = saver.Call(stream, 7, 0, callbacks, 0)
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.dup2(self._to_child[0], 0)
                os.dup2(self._from_child[1], 1)
                for fd in (*self._to_child, *self._from_child, foreign):
                    if fd is not None:
                        os.close(fd)
                xen.info = dataclasses.replace(xen.info, suspended=True)  # once it is looked at
                if limit:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                libxl = helper.Libxl(0, helper.apart(), callbacks, "saving memory")
                os._exit(saver.serve(xen, state, call, libxl, (4, 17)))
            os._exit(99)
        os.close(self._to_child[0])
        os.close(self._from_child[1])

    def next(self):
        """A message's number and arguments, but for notes; None at the end."""
        while True:
            head = self._read(2)
            if not head:
                return None
            body = self._read(struct.unpack("=H", head)[0])
            number = struct.unpack_from("=H", body)[0]
            is_note = number == Number.LOG and body[2] == Level.INFO
            if number != Number.PROGRESS and not is_note:
                return number, body[2:]

    def _read(self, size):
        data = b""
        while len(data) < size and (more := os.read(self._from_child[0], size - len(data))):
            data += more
        return data

    def answer(self, number):
        os.write(self._to_child[1], struct.pack("=i", number))

    def hang_up(self):
        os.close(self._to_child[1])

    def end(self):
        assert self.next() is None
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def failed(self, said, number):
        kind, log = self.next()
        assert kind == Number.LOG
        assert struct.unpack_from("=II", log) == (Level.ERROR, number)
        assert said in log.decode(errors="replace")
        assert self.next() == (Number.COMPLETE, struct.pack("=ii", -1, number))
        self.answer(0)
        return self.end() == 0


def image_is_complete(path, tmp_path):
    with path.open("rb", buffering=0) as file:
        xen = FakeXen()
        restore(xen, Image(file.fileno(), "it"), REQUEST, FakeToolstack())
        return file.tell() == path.stat().st_size


def test_messages():
    assert messages.message(Number.SUSPEND) == bytes.fromhex("0200 0300")
    assert messages.switch_logdirty(7, enable=True) == bytes.fromhex("0a00 0700 07000000 01000000")


def test_a_save(tmp_path, pv):
    path = tmp_path / "saved"
    with path.open("wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno())
        assert libxl.next() == (Number.SUSPEND, b"")
        assert path.stat().st_size == 0
        libxl.answer(1)
        assert libxl.next() == (Number.COMPLETE, struct.pack("=ii", 0, 0))
        assert file.tell() == path.stat().st_size
        libxl.answer(0)
        assert libxl.end() == 0
    assert image_is_complete(path, tmp_path)


def test_the_device_model_is_told(tmp_path, hvm):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(hvm, file.fileno())
        assert libxl.next() == (Number.SWITCH_QEMU_LOGDIRTY, struct.pack("=II", 7, 1))
        libxl.answer(0)
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.next() == (Number.SWITCH_QEMU_LOGDIRTY, struct.pack("=II", 7, 0))
        libxl.answer(0)
        assert libxl.next()[0] == Number.COMPLETE
        libxl.answer(0)
        assert libxl.end() == 0


def test_the_device_model_refuses(tmp_path, hvm):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(hvm, file.fileno())
        assert libxl.next()[0] == Number.SWITCH_QEMU_LOGDIRTY
        libxl.answer(-1)
        assert libxl.failed("saving failed: the device model does not log", errno.EINVAL)


def test_what_libxl_did_not_ask_for_is_not_sent(tmp_path, hvm):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(hvm, file.fileno(), callbacks=8)
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.next()[0] == Number.COMPLETE
        libxl.answer(0)
        assert libxl.end() == 0


def test_the_guest_does_not_suspend(tmp_path, pv):
    path = tmp_path / "saved"
    with path.open("wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno())
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(0)
        assert libxl.failed("domain 7 could not be suspended", errno.EINVAL)
    assert path.stat().st_size == 0


def test_the_disk_is_full(pv):
    with open("/dev/full", "wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno())
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.failed("saving failed: the image: No space left on device", errno.ENOSPC)


def test_the_file_gets_too_large(tmp_path, pv):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno(), limit=20_000)
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.failed("saving failed: the image: File too large", errno.EFBIG)


def test_who_reads_goes_away(pv):
    """As in a migration; nobody dies of SIGPIPE with the guest suspended."""
    reading, writing = os.pipe()
    libxl = Libxl(pv, writing, foreign=reading)
    os.close(reading)
    os.close(writing)
    assert libxl.next()[0] == Number.SUSPEND
    libxl.answer(1)
    assert libxl.failed("saving failed: the image: Broken pipe", errno.EPIPE)


def test_the_hypervisor_refuses(tmp_path, pv):
    pv[1].failures["policy"] = OSError(errno.EPERM, "the policy is not told")
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno())
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.failed("saving failed: the policy is not told", errno.EPERM)


def test_a_mistake_of_ours(tmp_path, pv):
    pv[1].failures["policy"] = ZeroDivisionError("oh")
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(pv, file.fileno())
        assert libxl.next()[0] == Number.SUSPEND
        libxl.answer(1)
        assert libxl.failed("saving failed: ZeroDivisionError: oh", errno.EINVAL)


@pytest.mark.parametrize("when", ["suspending", "writing"])
def test_sigterm_is_a_failure(tmp_path, hvm, when):
    """It does not die of it, as the device model would log for ever. The image stays its part."""
    reading, writing = os.pipe()
    libxl = Libxl(hvm, writing)
    assert libxl.next() == (Number.SWITCH_QEMU_LOGDIRTY, struct.pack("=II", 7, 1))
    libxl.answer(0)
    assert libxl.next()[0] == Number.SUSPEND
    if when == "suspending":
        os.kill(libxl.pid, signal.SIGTERM)
        libxl.answer(1)
    else:
        libxl.answer(1)
        os.read(reading, 1)  # it writes; the pipe has not room for all
        os.kill(libxl.pid, signal.SIGTERM)
    assert libxl.next() == (Number.SWITCH_QEMU_LOGDIRTY, struct.pack("=II", 7, 0))
    libxl.answer(0)
    assert libxl.failed("saving failed: it was ended by SIGTERM", errno.EINTR)
    os.close(reading)
    os.close(writing)


def test_libxl_goes_away(tmp_path, hvm):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(hvm, file.fileno())
        assert libxl.next()[0] == Number.SWITCH_QEMU_LOGDIRTY
        libxl.hang_up()
        assert libxl.end() == 1


def test_libxl_goes_away_while_the_guest_suspends(tmp_path, hvm):
    with (tmp_path / "saved").open("wb", buffering=0) as file:
        libxl = Libxl(hvm, file.fileno())
        assert libxl.next()[0] == Number.SWITCH_QEMU_LOGDIRTY
        libxl.answer(0)
        assert libxl.next()[0] == Number.SUSPEND
        libxl.hang_up()
        assert libxl.next()[0] == Number.SWITCH_QEMU_LOGDIRTY  # it is tried
        assert libxl.end() == 1


# What is done here


def call(*, flags=0, callbacks=CALLBACKS, kind=0):
    words = ["helper", "--save-domain", "5", "-1", "7", str(flags), str(callbacks), str(kind)]
    return saver.Call.parse(words)


def test_arguments():
    assert call(flags=2) == saver.Call(5, 7, 2, 136, 0)
    assert saver.Call.parse(["h", "--save-domain", "5", "-1", str(2**64 - 1), "0", "8", "0"]) == (
        saver.Call(5, 2**32 - 1, 0, 8, 0)
    )


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        ({}, True),
        ({"flags": 2}, True),  # to verify what was saved live, and it is not
        ({"flags": 1}, False),
        ({"flags": 3}, False),
        ({"flags": 4}, False),  # nobody knows what that is
        ({"kind": 1}, False),
        ({"kind": 2}, False),
        ({"callbacks": 128}, False),  # libxl would not suspend it
    ],
)
def test_what_is_done_here(words, plain):
    assert call(**words).is_plain == plain
