"""xc_restore as xend runs it: arguments, what is on stdout, and where the stream is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys

import pytest
import savefiles
from fakes_xen import FakeXen
from savefiles import XTAB, Hvm, Legacy, Pv

from hotplug.restore import xc_restore
from hotplug.restore.pieces import Guest
from hotplug.restore.xc_restore import Call

STORE, CONSOLE = 7, 8  # pfns
WORDS = ["7", "3", "4", "0", "1", "0"]  # domid, channels, hvm, pae, apic
QEMU = b"QEVM" + bytes(range(200))


def call(fd, *, hvm=False, words=7):
    arguments = [str(fd), *WORDS, "0"][:words]
    arguments[4] = str(int(hvm))
    return Call.parse(arguments)


@pytest.fixture(autouse=True)
def device_model(monkeypatch, tmp_path):
    """Where the device model's state goes."""
    monkeypatch.setattr(xc_restore, "DEVICE_MODEL", str(tmp_path / "qemu-save.{}"))
    return tmp_path / "qemu-save.7"


class Done:
    """What became of a call."""

    def __init__(self, xen, stream, capsys, *, hvm=False, words=7, front=b"xend's"):
        self.xen = xen
        with memory_file(front + stream) as file:
            os.lseek(file, len(front), os.SEEK_SET)
            reading, writing = os.pipe()
            self.status = xc_restore.serve(xen, call(file, hvm=hvm, words=words), writing)
            os.close(writing)
            with open(reading, "rb") as pipe:
                self.stdout = pipe.read().decode()
            self.left = os.read(file, 1 << 20)
        self.stderr = capsys.readouterr().err


@contextlib.contextmanager
def memory_file(content):
    fd = os.memfd_create("stream")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def results(xen):
    return f"store-mfn {xen.p2m[STORE]}\nconsole-mfn {xen.p2m[CONSOLE]}\n"


LEGACY = {
    "of 4.0": Legacy(),
    "of 3.4": Legacy(tsc=False, vcpus=None),
    "without extended info": Legacy(extended_info=False),
    "32-bit guest": Legacy(width=4),
    "32-bit tools": Legacy(word=4, width=4, extv=True),
    "two vcpus": Legacy(vcpus=2, extv=True, xsave=600, unmapped=(12, 13)),
    "last checkpoint": Legacy(chunks=struct.pack("<i", -9)),
}


@pytest.mark.parametrize("tail", [b"", b"X", bytes(5000), b"\xff" * 5000])
@pytest.mark.parametrize("words", [7, 8])
@pytest.mark.parametrize("made", LEGACY.values(), ids=LEGACY)
def test_a_pv_guest(made, words, tail, capsys):
    """Whatever follows is not ours, and no reason for an error."""
    done = Done(FakeXen(max_vcpu_id=1), made.stream() + tail, capsys, words=words)
    assert (done.status, done.left) == (0, tail)
    assert done.stdout == results(done.xen)
    assert "ERROR" not in done.stderr
    there = {one.pfn for one in made.memory if savefiles.has_data(one.kind)}
    assert there == done.xen.p2m.keys()
    assert done.xen.seeded["store_domid"] == done.xen.seeded["console_domid"] == 0


@pytest.mark.parametrize("made", [Pv(), Pv(version=2), Pv(4)])
@pytest.mark.parametrize("front", [b"", savefiles.libxl_header() + savefiles.LIBXC_CONTEXT])
def test_a_stream_of_today(made, front, capsys):
    done = Done(FakeXen(), front + made.stream() + b"more", capsys, words=8)
    assert (done.status, done.left) == (0, b"more")
    assert done.stdout == results(done.xen)


def qemu(signature):
    size = b"" if signature == b"QemuDeviceModelRecord" else struct.pack("<I", len(QEMU))
    return signature + size + QEMU


SIGNATURES = [b"QemuDeviceModelRecord", b"DeviceModelRecord0002", b"RemusDeviceModelState"]


@pytest.mark.parametrize("signature", SIGNATURES)
def test_an_hvm_guest_of_3_4(signature, capsys, device_model):
    """xend reads the device model's state itself."""
    tail = qemu(signature)
    xen = FakeXen(is_hvm=True)
    done = Done(xen, Legacy(guest="hvm").stream() + tail, capsys, hvm=True)
    assert (done.status, done.left) == (0, tail)
    assert done.stdout == "store-mfn 65279\n"
    assert not device_model.exists()
    assert all(one.kind == XTAB or one.pfn in xen.p2m for one in savefiles.hvm_memory())


@pytest.mark.parametrize("signature", SIGNATURES)
def test_an_hvm_guest_of_4_0(signature, capsys, device_model):
    """It finds it in a file."""
    xen = FakeXen(is_hvm=True)
    tail = b"" if signature == SIGNATURES[0] else b"more"
    stream = Legacy(guest="hvm").stream() + qemu(signature) + tail
    done = Done(xen, stream, capsys, hvm=True, words=8)
    assert (done.status, done.left) == (0, tail)
    assert done.stdout == "store-mfn 65279\n"
    assert device_model.read_bytes() == QEMU
    assert device_model.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in device_model.parent.iterdir()] == [device_model.name]


def test_an_hvm_guest_of_today_has_no_device_model_there(capsys, device_model):
    done = Done(FakeXen(is_hvm=True), Hvm().stream() + b"X", capsys, hvm=True, words=8)
    assert (done.status, done.left) == (0, b"X")
    assert not device_model.exists()


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (b"", "truncated"),
        (SIGNATURES[1] + b"\1", "truncated"),
        (SIGNATURES[1] + b"\5\0\0\0QEVM", "truncated"),
        (b"something quite different", "the state of an unknown device model: b'something"),
        (SIGNATURES[1] + b"\xff" * 4, "a device model's state of 4294967295 bytes"),
    ],
)
def test_a_device_model_that_cannot_be(tail, said, capsys, device_model):
    stream = Legacy(guest="hvm").stream() + tail
    done = Done(FakeXen(is_hvm=True), stream, capsys, hvm=True, words=8)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("ERROR: restoring domain 7: ")
    assert said in done.stderr
    assert not list(device_model.parent.iterdir())


def test_too_much_of_a_device_model(capsys, monkeypatch):
    monkeypatch.setattr(xc_restore.framing, "MAX_BODY", 2000)
    stream = Legacy(guest="hvm").stream() + SIGNATURES[0] + bytes(2001)
    done = Done(FakeXen(is_hvm=True), stream, capsys, hvm=True, words=8)
    assert done.status == 1
    assert "more follows than there may be" in done.stderr


@pytest.mark.parametrize("made", [Legacy(), Pv()])
def test_truncated(made, capsys):
    stream = made.stream()
    for size in (0, 5, 100, len(stream) // 2, len(stream) - 1):
        done = Done(FakeXen(), stream[:size], capsys, words=8)
        assert (done.status, done.stdout) == (1, ""), size
        assert "ERROR: restoring domain 7: the image: truncated" in done.stderr


@pytest.mark.parametrize(
    ("chunk", "said"),
    [(-5, "tmem"), (-12, "compressed"), (-99, "unknown type -99")],
)
def test_what_no_longer_can_be_read(chunk, said, capsys):
    made = Legacy(chunks=struct.pack("<i", chunk))
    done = Done(FakeXen(), made.stream(), capsys)
    assert (done.status, done.stdout) == (1, "")
    assert said in done.stderr


def test_the_hypervisor_refuses(capsys):
    xen = FakeXen()
    xen.failures["pin"] = OSError(errno.EPERM, "page tables cannot be pinned")
    done = Done(xen, Legacy().stream(), capsys)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.endswith("ERROR: restoring domain 7: page tables cannot be pinned\n")


def test_another_kind_of_guest(capsys):
    done = Done(FakeXen(is_hvm=True), Legacy().stream(), capsys)
    assert done.status == 1
    assert "the image is of a guest of type PV, domain 7 is HVM or PVH" in done.stderr


def test_from_a_pipe(capfd):
    """Not a byte too many is taken, and the descriptor's flags are what they were."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        with open(writing, "wb") as pipe:
            pipe.write(Legacy().stream() + b"next")
        os._exit(0)
    os.close(writing)
    flags = fcntl.fcntl(reading, fcntl.F_GETFL)
    outward = os.dup(1)
    xen = FakeXen()
    assert xc_restore.serve(xen, call(reading, words=8), outward) == 0
    assert fcntl.fcntl(reading, fcntl.F_GETFL) == flags
    assert os.read(reading, 100) == b"next"
    os.close(reading)
    os.close(outward)
    os.waitpid(pid, 0)
    assert capfd.readouterr().out == results(xen)


# Arguments


def test_arguments():
    one = Call.parse(["5", "7", "3", "4", "1", "1", "1"])
    assert (one.fd, one.guest, one.takes_device_model) == (5, Guest.HVM, False)
    assert (one.request.domid, one.request.store_channel, one.request.console_channel) == (7, 3, 4)
    assert Call.parse(["5", "7", "3", "4", "0", "1", "1", "0"]).takes_device_model


def test_the_era_can_be_told():
    seven, eight = ["5", *WORDS], ["5", *WORDS, "0"]
    assert Call.parse(seven, "4.0").takes_device_model
    assert not Call.parse(eight, "3.4").takes_device_model


def run(*words, **variables):
    command = [sys.executable, "-m", "hotplug.restore.xc_restore", *words]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd="/"
    )


@pytest.mark.parametrize("words", [[], WORDS, ["0", *WORDS, "0", "0"], ["0", "seven", *WORDS[1:]]])
def test_arguments_that_cannot_be(words):
    done = run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("usage: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_xen_that_is_not_known(tmp_path):
    """There is none below the tests."""
    done = run("0", *WORDS, XEN_HOTPLUG_STOCK_XC_RESTORE=str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ERROR: ")
    assert "set XEN_HOTPLUG_STOCK_XC_RESTORE to Xen's own program" in done.stderr


def test_xens_own_program_does_it(tmp_path):
    stock = tmp_path / "xc_restore"
    stock.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    stock.chmod(0o755)
    done = run("0", *WORDS, XEN_HOTPLUG_STOCK_XC_RESTORE=str(stock))
    assert (done.returncode, done.stdout) == (1, f"0 {' '.join(WORDS)}\n")
