"""xc_restore as xend runs it: arguments, what is on stdout, and where the stream is left."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys

import pytest
import savefiles
from fakes_xen import FakeXen, pipe_with
from savefiles import NOTAB, XTAB, Hvm, Legacy, Page, Pv, page

from hotplug.restore import xc_restore
from hotplug.restore.pieces import Guest
from hotplug.restore.xc_restore import Call

STORE, CONSOLE = 7, 8  # pfns
WORDS = ["7", "3", "4", "0", "1", "0"]  # domid, channels, hvm, pae, apic
QEMU = b"QEVM" + bytes(range(200))


def call(fd, *, hvm=False, words=7, **variables):
    arguments = [str(fd), *WORDS, "0"][:words]
    arguments[4] = str(int(hvm))
    return Call.parse(arguments, variables)


@pytest.fixture(autouse=True)
def device_model(monkeypatch, tmp_path):
    """Where the device model's state goes."""
    monkeypatch.setattr(xc_restore, "DEVICE_MODEL", str(tmp_path / "qemu-save.{}"))
    return tmp_path / "qemu-save.7"


class Done:
    """What became of a call."""

    def __init__(self, xen, stream, capsys, *, hvm=False, words=7, **variables):
        front = b"xend's"
        self.xen = xen
        with memory_file(front + stream) as file:
            os.lseek(file, len(front), os.SEEK_SET)
            reading, writing = os.pipe()
            self.status = xc_restore.serve(
                xen, call(file, hvm=hvm, words=words, **variables), writing
            )
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


# Checkpoints

REMUS = {"XEN_HOTPLUG_CHECKPOINTS": "1"}


def round_of(made, pages, *, last=False, qemu=b""):
    """A checkpoint behind the first: pages that have changed, and the tail."""
    changed = dataclasses.replace(made, memory=pages, chunks=struct.pack("<i", -9) if last else b"")
    tail = made.pv_tail() if made.guest == "pv" else made.hvm_tail()
    return changed.pages() + changed.chunks + struct.pack("<i", 0) + tail + qemu


def content(xen, pfn):
    return xen.pages[xen.p2m[pfn]]


def changed(number):
    return [Page(NOTAB, 14, page(number))]


FIRST = Legacy()
SECOND, THIRD = round_of(FIRST, changed(50)), round_of(FIRST, changed(60))
LAST = round_of(FIRST, changed(60), last=True)


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        (b"", 14),
        (SECOND, 50),
        (SECOND + THIRD, 60),
        (SECOND + THIRD[:-1], 50),  # the other host died
        (SECOND + THIRD[:3000], 50),
        (SECOND + b"\x77" * 5000, 50),
        (SECOND + LAST + SECOND, 60),
    ],
)
def test_the_last_complete_checkpoint_counts(more, counts, capsys):
    done = Done(FakeXen(), FIRST.stream() + more, capsys, words=8, **REMUS)
    assert (done.status, done.stdout) == (0, results(done.xen))
    assert content(done.xen, 14) == page(counts)
    alone = Done(FakeXen(), FIRST.stream() + more, capsys, words=8)
    assert (alone.status, alone.left) == (0, more)
    assert content(alone.xen, 14) == page(14)


def test_checkpoints_from_a_pipe(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(xc_restore, "SPOOL", str(tmp_path))
    xen = FakeXen()
    with pipe_with(FIRST.stream() + SECOND + THIRD[:-1]) as reading:
        assert xc_restore.serve(xen, call(reading, words=8, **REMUS), 1) == 0
    assert content(xen, 14) == page(50)
    assert capfd.readouterr().out == results(xen)
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_an_hvm_guest(capsys, device_model):
    """Each has its device model's state, and the last one's is kept."""
    made = Legacy(guest="hvm")
    state = lambda text: SIGNATURES[2] + struct.pack("<I", len(text)) + text  # noqa: E731
    stream = made.stream() + state(b"first")
    stream += round_of(made, [Page(NOTAB, 4, page(40))], qemu=state(b"second"))
    third = round_of(made, [Page(NOTAB, 4, page(41))], qemu=state(b"third"))
    xen = FakeXen(is_hvm=True)
    done = Done(xen, stream + third[:-1], capsys, hvm=True, words=8, **REMUS)
    assert (done.status, done.left) == (0, third[:-1])
    assert content(xen, 4) == page(40)
    assert device_model.read_bytes() == b"second"


def test_checkpoints_of_which_none_is_complete(capsys):
    done = Done(FakeXen(), FIRST.stream()[:-1], capsys, words=8, **REMUS)
    assert (done.status, done.stdout) == (1, "")
    assert "truncated" in done.stderr


def test_a_stream_of_today_has_none(capsys):
    done = Done(FakeXen(), Pv().stream() + b"more", capsys, words=8, **REMUS)
    assert (done.status, done.left) == (0, b"more")


# Arguments


def test_arguments():
    one = Call.parse(["5", "7", "3", "4", "1", "1", "1"], {})
    assert (one.fd, one.guest, one.takes_device_model) == (5, Guest.HVM, False)
    assert (one.request.domid, one.request.store_channel, one.request.console_channel) == (7, 3, 4)
    assert Call.parse(["5", "7", "3", "4", "0", "1", "1", "0"], {}).takes_device_model


def test_the_era_can_be_told():
    seven, eight = ["5", *WORDS], ["5", *WORDS, "0"]
    assert Call.parse(seven, {"XEN_HOTPLUG_XEND": "4.0"}).takes_device_model
    assert not Call.parse(eight, {"XEN_HOTPLUG_XEND": "3.4"}).takes_device_model


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


def test_a_xen_with_other_calls(tmp_path, monkeypatch):
    """Its libraries are known, and it refuses what they ask for."""

    class Other(FakeXen):
        def domain(self, _domid):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    became = []
    monkeypatch.setenv(xc_restore.STOCK, "/usr/lib/xen/xc_restore")
    monkeypatch.setattr(xc_restore, "Xen", Other)
    monkeypatch.setattr(xc_restore, "apart", lambda: 1)
    monkeypatch.setattr(os, "execve", lambda path, argv, _: became.append((path, argv)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "image").write_bytes(Pv().stream())
    with (tmp_path / "image").open("rb") as file:
        number = file.fileno()
        assert xc_restore.main(["xc_restore", str(number), *WORDS]) == 1
        assert file.tell() == 0
    stock = "/usr/lib/xen/xc_restore"
    assert became == [(stock, [stock, str(number), *WORDS])]


def test_xens_own_program_does_it(tmp_path):
    stock = tmp_path / "xc_restore"
    stock.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    stock.chmod(0o755)
    done = run("0", *WORDS, XEN_HOTPLUG_STOCK_XC_RESTORE=str(stock))
    assert (done.returncode, done.stdout) == (1, f"0 {' '.join(WORDS)}\n")
