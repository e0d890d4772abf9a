"""Xen's own tools for save files: what we write they accept, what they convert we convert alike.

Both are programs of Python 2 that were made to run under 3, not everywhere with success: the
converter takes no file with a header of xl, the verifier no keys of a device model. So they get
what is inside of the one and without the other.
"""

from __future__ import annotations

import glob
import os
import struct
import subprocess

import pytest
import savefiles
from fakes_xen import FakeSaving, FakeState, FakeToolstack, FakeXen, prepare
from savefiles import BROKEN, XALLOC, Hvm, Legacy, Page, Pv

from hotplug import cli
from hotplug.restore.guest import Request, restore
from hotplug.restore.image import Image
from hotplug.restore.output import Output
from hotplug.restore.saving import save

(*_, XEN) = sorted(glob.glob("/usr/lib/xen-*/bin/convert-legacy-stream"))
FOLDER = os.path.dirname(os.path.dirname(XEN))


def xen(program, *words):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{FOLDER}/lib/python"}
    command = ["/usr/bin/python3", "-W", "ignore", f"{FOLDER}/bin/{program}", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def ours(*words):
    assert cli.main(["savefile", *map(str, words)]) == 0


def accepts(path, layout="xl"):
    done = xen("verify-stream-v2", "-i", path, "-f", layout)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def put(path, content):
    path.write_bytes(content)
    return path


WITHOUT_KEYS = {"keys": b""}
FILES = {
    "pv": Pv(vcpus=2).file(),
    "pv32": Pv(width=4).file(),
    "version 2": Pv(version=2).file(),
    "hvm": Hvm().file(**WITHOUT_KEYS),
    "pvh": Hvm(emulator=None).file(),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_expanded_files_are_accepted(folder, content):
    original = put(folder / "original", content)
    assert accepts(original) == (True, "")
    for words in ([], ["--dense"]):
        ours("compact", *words, original, folder / "small")
        assert not accepts(folder / "small")[0]  # it knows no optional records, and not ours
        ours("expand", folder / "small", folder / "full")
        assert accepts(folder / "full") == (True, "")


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_in_place_they_stay_acceptable(folder, content):
    path = put(folder / "file", content)
    ours("compact", "--in-place", path)
    assert accepts(path) == (True, "")


GUESTS = {
    "pv": (Pv(vcpus=2), FakeXen(max_vcpu_id=1)),
    "pv32": (Pv(width=4), FakeXen()),
    "pvh": (Hvm(emulator=None), FakeXen(is_hvm=True)),
}


@pytest.mark.parametrize(("guest", "host"), GUESTS.values(), ids=GUESTS)
def test_what_we_save_is_accepted(folder, guest, host):
    """To a file, which has holes, where fillers are of no use; and to a pipe."""
    original = put(folder / "original", guest.stream())
    with original.open("rb", buffering=0) as file:
        image = Image(file.fileno(), "it")
        restore(host, image, Request(7, 3, 0, 4, 0), FakeToolstack())
    state = FakeState(host) if host.info.is_hvm else prepare(host, guest)
    with (folder / "saved").open("w+b", buffering=0) as file:
        file.write(b"odd")
        output = Output(file.fileno(), "it", shared=True)
        save(host, state, output, 7, (4, 17), FakeSaving(host))
    bare = put(folder / "bare", (folder / "saved").read_bytes()[3:])
    assert accepts(bare, "libxc") == (True, "")
    command = ("sh", "-c", 'cat >"$1"', "-", folder / "piped")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as piped:
        output = Output(piped.stdin.fileno(), "it", shared=True)
        save(host, state, output, 7, (4, 17), FakeSaving(host))
    assert accepts(folder / "piped", "libxc") == (True, "")


# The converter refuses a stream without extended info.
STREAMS = {
    "pv": Legacy(),
    "pv, two vcpus": Legacy(vcpus=2, extv=True, xsave=600, unmapped=(3, 4, 5)),
    "pv, 32-bit guest": Legacy(width=4),
    "pv, 32-bit tools": Legacy(word=4, width=4, extv=True),
    "pv, broken": Legacy(memory=[*savefiles.pv_memory(), Page(BROKEN, 16), Page(XALLOC, 17)]),
    "pv, of 3.4": Legacy(tsc=False),
    "hvm": Legacy(guest="hvm"),
    "hvm, 32-bit tools": Legacy(guest="hvm", word=4),
    "hvm, parameters": Legacy(
        guest="hvm", chunks=b"".join(struct.pack("<iIQ", n, 0, 9) for n in (-8, -10, -11, -14))
    ),
}


@pytest.mark.parametrize("made", STREAMS.values(), ids=STREAMS)
def test_conversions_are_alike(folder, made):
    """Theirs and ours, byte for byte: so the independent writer of the samples is right, too."""
    front = savefiles.xl_header(flags=1)
    old = put(folder / "old", made.xl_file())
    inner = put(folder / "inner", made.xl_file()[len(front) :])
    words = ("-w", 8 * made.word, "-g", made.guest, "-f", "libxl")
    done = xen("convert-legacy-stream", "-i", inner, "-o", folder / "theirs", *words)
    assert done.returncode == 0, done.stderr
    ours("convert", old, folder / "ours")
    theirs = savefiles.xl_header(flags=3) + (folder / "theirs").read_bytes()
    assert (folder / "ours").read_bytes() == theirs
    assert accepts(folder / "ours") == (True, "")


@pytest.mark.parametrize("made", STREAMS.values(), ids=STREAMS)
def test_converted_files_of_xend_are_accepted(folder, made):
    ours("convert", put(folder / "old", made.xend_file()), folder / "new")
    assert accepts(folder / "new") == (True, "")


def test_without_extended_info(folder):
    """As Xen before 3.3 wrote 64-bit guests; Xen's converter refuses it."""
    old = put(folder / "old", Legacy(extended_info=False).xend_file())
    ours("convert", old, folder / "new")
    assert accepts(folder / "new") == (True, "")


def test_keys_of_a_device_model(folder):
    """The verifier compares bytes with a string there, and calls every such record broken."""
    data = struct.pack("<IIQQQI", 1, 1, 0xF0, 0xA0000, 0x800, 8) + b"vga.ram\0" + bytes(4)
    made = Legacy(guest="hvm", chunks=struct.pack("<iI", -18, len(data)) + data)
    inner = put(folder / "inner", made.xl_file()[len(savefiles.xl_header(flags=1)) :])
    done = xen("convert-legacy-stream", "-i", inner, "-o", folder / "theirs",
               "-w", "64", "-g", "hvm", "-f", "libxl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours("convert", put(folder / "old", made.xl_file()), folder / "ours")
    theirs = savefiles.xl_header(flags=3) + (folder / "theirs").read_bytes()
    assert (folder / "ours").read_bytes() == theirs
    assert "not NUL terminated" in accepts(folder / "ours")[1]
