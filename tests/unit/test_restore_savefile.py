"""Whole save files: xl's, xend's, bare streams; and what may not be in them."""

from __future__ import annotations

import struct

import pytest
import savefiles
from harness.parsing import parse, refuses_every_cut
from savefiles import CONFIG, END, LIBXC_CONTEXT, Hvm, Legacy, Pv, record

from hotplug.restore import savefile
from hotplug.restore.pieces import (
    Blob,
    EmulatorXenstore,
    LegacyHeader,
    LibxcHeader,
    LibxlHeader,
    Record,
    StreamError,
    XendHeader,
    XlHeader,
)

FRONT = savefiles.xl_header() + savefiles.libxl_header()


def refused(data):
    with pytest.raises(StreamError) as caught:
        parse(savefile.parse(), data)
    return str(caught.value)


def headers(found):
    return [type(piece) for piece in found.pieces if type(piece).__name__.endswith("Header")]


def test_a_pv_file():
    found = refuses_every_cut(savefile.parse, Pv().file())
    assert headers(found) == [XlHeader, LibxlHeader, LibxcHeader]
    assert found.pieces[-1] == Record("libxl", 0)


def test_an_hvm_file_with_a_device_model():
    found = refuses_every_cut(savefile.parse, Hvm().file())
    (blob,) = (piece for piece in found.pieces if isinstance(piece, Blob))
    assert blob == Blob(2, 0, 103)
    assert found.bulks[-1] == b"QEVM" + bytes(range(99))
    values = [getattr(piece, "value", None) for piece in found.pieces]
    assert EmulatorXenstore(2, 0, ((b"physmap/0/name", b"vga"),)) in values


def test_a_pvh_file():
    found = refuses_every_cut(savefile.parse, Hvm(emulator=None).file())
    assert not any(isinstance(piece, Blob) for piece in found.pieces)


def test_an_empty_state_of_a_device_model():
    found = parse(savefile.parse(), Hvm(emulator=b"").file())
    assert Blob(2, 0, 0) in found.pieces


@pytest.mark.parametrize("size", range(8))
def test_streams_at_any_alignment(size):
    config = {**CONFIG, "x": "y" * size}
    assert parse(savefile.parse(), Pv().file(config=config)).left == b""


def test_what_follows_the_end_is_left():
    assert parse(savefile.parse(), Pv().file(tail=b"tail")).left == b"tail"


def test_bare_streams():
    assert headers(parse(savefile.parse(), Pv().stream())) == [LibxcHeader]
    libxl = Hvm().file()[len(savefiles.xl_header()) :]
    assert headers(parse(savefile.parse(), libxl)) == [LibxlHeader, LibxcHeader]


def test_legacy_files():
    for data, front in (
        (Legacy().xl_file(), XlHeader),
        (Legacy().xend_file(), XendHeader),
        (Legacy(guest="hvm").xl_file(), XlHeader),
        (Legacy(guest="hvm", word=4).xl_file(), XlHeader),
    ):
        found = refuses_every_cut(savefile.parse, data)
        assert headers(found) == [front, LegacyHeader, LibxlHeader, LibxcHeader]
    found = parse(savefile.parse(), Legacy().stream())
    assert headers(found) == [LegacyHeader, LibxlHeader, LibxcHeader]


@pytest.mark.parametrize("guest", ["pv", "hvm"])
def test_xend_tells_the_type_of_the_guest(guest):
    """Though the stream looks like that of the other one."""
    made = Legacy(guest=guest, extended_info=False)
    found = parse(savefile.parse(), made.xend_file())
    (header,) = (piece for piece in found.pieces if isinstance(piece, LegacyHeader))
    assert header.guest.name.lower() == guest
    if guest == "hvm":
        assert found.bulks[-1] == b"QEVM" + bytes(range(50))
        assert Blob(0, 0, None) in found.pieces


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (FRONT + END, "without a stream of libxc"),
        (FRONT + LIBXC_CONTEXT + Pv().stream() + LIBXC_CONTEXT, "a second LIBXC_CONTEXT"),
        (FRONT + record(1, b"x"), "has to be empty"),
        (FRONT + record(0, b"x"), "has to be empty"),
        (FRONT + record(2, bytes(8)), "no device model"),
        (FRONT + LIBXC_CONTEXT + Pv().stream() + record(3, bytes(8)), "no device model"),
        (FRONT + LIBXC_CONTEXT + Hvm().stream() + record(3, bytes(7)), "in 7 bytes"),
        (FRONT + LIBXC_CONTEXT + Hvm().stream() + record(3, bytes(9), b"p"), "other than zeros"),
        (
            FRONT + LIBXC_CONTEXT + Hvm().stream() + struct.pack("<II", 2, (1 << 20) + 1),
            "limit is 1048576",
        ),
        (FRONT + record(4), "checkpoints"),
        (FRONT + record(5, bytes(8)), "checkpoints"),
        (FRONT + record(6), "does not know"),
        (FRONT + record(0x80000000), "does not know"),
        (b"\x7fELF" + bytes(range(1, 60)), "no save file"),
        (bytes(64), "no save file"),
    ],
)
def test_refused(data, words):
    assert words in refused(data)
