"""The headers of save files, and the frames of records."""

from __future__ import annotations

import struct

import pytest
import savefiles
from harness.parsing import parse, refuses_every_cut
from hypothesis import given
from hypothesis import strategies as st

from hotplug.restore import framing
from hotplug.restore.pieces import (
    Guest,
    Layer,
    LibxcHeader,
    LibxlHeader,
    Record,
    StreamError,
    XendHeader,
    XlHeader,
)

XL = savefiles.xl_header()
TEXT = XL[52:]
MAX_BODY = 134217728


def refused(parser, data):
    with pytest.raises(StreamError) as caught:
        parse(parser, data)
    return str(caught.value)


def test_xl_header():
    found = refuses_every_cut(framing.xl_header, XL)
    assert found.result == XlHeader(3, 0, XL[48:])
    assert framing.config(found.result.optional_data) == TEXT


def test_what_follows_a_header_is_not_touched():
    assert parse(framing.xl_header(), XL + b"LibxlFmt").left == b"LibxlFmt"
    assert parse(framing.libxl_header(), savefiles.libxl_header() + b"x").left == b"x"
    assert parse(framing.libxc_header(), savefiles.libxc_header(1) + b"x").left == b"x"


def test_xl_header_without_a_configuration_and_with_optional_flags():
    data = savefiles.xl_header(None, flags=2, optional_flags=7)
    assert parse(framing.xl_header(), data).result == XlHeader(2, 7, b"")


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"x", "no save file of xl"),
        (32, b"\1\2\3\4", "byte order"),
        (36, b"\4", "mandatory flags"),
        (44, struct.pack("<I", (16 << 20) + 1), "the limit is"),
        (48, struct.pack("<I", len(XL) - 51), "longer than"),
    ],
)
def test_xl_header_refused(at, value, words):
    data = XL[:at] + value + XL[at + len(value) :]
    assert words in refused(framing.xl_header(), data)


def test_optional_data_too_short_for_a_length():
    data = savefiles.xl_header(None)[:44] + struct.pack("<I", 3) + b"abc"
    assert "longer than" in refused(framing.xl_header(), data)


def test_xend_header():
    data = b"LinuxGuestRecord" + struct.pack(">i", 5) + b"(vm )"
    assert refuses_every_cut(framing.xend_header, data).result == XendHeader(b"(vm )")
    empty = b"LinuxGuestRecord" + bytes(4)
    assert parse(framing.xend_header(), empty).result == XendHeader(b"")
    assert "limit" in refused(framing.xend_header(), data[:16] + struct.pack(">i", -1))
    assert "xend" in refused(framing.xend_header(), b"LinuxGuestRecorX" + bytes(4))


def test_libxl_header():
    found = refuses_every_cut(framing.libxl_header, savefiles.libxl_header(2))
    assert found.result == LibxlHeader(2)
    assert "big-endian" in refused(framing.libxl_header(), savefiles.libxl_header(1))
    assert "version 3" in refused(framing.libxl_header(), b"LibxlFmt" + struct.pack(">II", 3, 0))
    assert "begin" in refused(framing.libxl_header(), b"LibxlFmT" + bytes(8))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("guest", [1, 2])
def test_libxc_header(version, guest):
    found = refuses_every_cut(framing.libxc_header, savefiles.libxc_header(guest, version))
    assert found.result == LibxcHeader(version, Guest(guest), (4, 17))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (savefiles.libxc_header(1, 1), "version 1"),
        (savefiles.libxc_header(1, 4), "version 4"),
        (savefiles.libxc_header(1, options=1), "big-endian"),
        (savefiles.libxc_header(1, shift=14), "2^14"),
        (savefiles.libxc_header(3), "type 3"),
        (savefiles.libxc_header(0), "type 0"),
        (b"\xfe" + savefiles.libxc_header(1)[1:], "begin"),
        (savefiles.libxc_header(1).replace(b"XENF", b"XENG"), "begin"),
    ],
)
def test_libxc_header_refused(data, words):
    assert words in refused(framing.libxc_header(), data)


def test_a_record_has_a_limit():
    limit = struct.pack("<II", 9, MAX_BODY)
    assert parse(framing.record_header(), limit).result == (9, MAX_BODY)
    words = refused(framing.record_header(), struct.pack("<II", 9, MAX_BODY + 1))
    assert "limit is 134217728" in words


@pytest.mark.parametrize("length", range(17))
def test_bodies_are_padded(length):
    body = bytes(range(1, length + 1))
    data = savefiles.record(9, body)[8:]
    assert parse(framing.body(length), data + b"x").left == b"x"
    assert parse(framing.body(length), data).result == (body, b"")
    loud = savefiles.record(9, body, pad=b"p")[8:]
    assert parse(framing.body(length), loud).result == (body, b"p" * (-length % 8))
    assert parse(framing.padding(length), loud[length:]).result == b"p" * (-length % 8)
    assert parse(framing.padding(length), data[length:]).result == b""


small = st.integers(0, 2**32 - 1)


@given(st.sampled_from([0, 1, 2, 3]), small, st.binary(max_size=40), st.binary(max_size=9))
def test_xl_headers_there_and_back(flags, optional, text, tail):
    data = struct.pack("<I", len(text)) + text + tail
    header = XlHeader(flags, optional, data)
    found = parse(framing.xl_header(), framing.pack(header))
    assert found.result == header
    assert framing.config(data) == text


@given(
    st.builds(
        LibxcHeader,
        st.sampled_from([2, 3]),
        st.sampled_from(list(Guest)),
        st.tuples(small, small),
        st.integers(0, 0x7FFF).map(lambda number: 2 * number),
        st.binary(min_size=6, max_size=6),
        st.integers(0, 65535),
    )
)
def test_libxc_headers_there_and_back(header):
    assert parse(framing.libxc_header(), framing.pack(header)).result == header


@given(small.filter(lambda number: not number & 1), st.binary(max_size=50))
def test_other_headers_there_and_back(options, config):
    header = LibxlHeader(options)
    assert parse(framing.libxl_header(), framing.pack(header)).result == header
    front = XendHeader(config)
    assert parse(framing.xend_header(), framing.pack(front)).result == front


@given(small, st.binary(max_size=50), st.binary(min_size=7, max_size=7))
def test_records_there_and_back(kind, body, noise):
    padding = noise[: -len(body) % 8]
    record = Record(Layer.LIBXC, kind, body, None, padding if any(padding) else b"")
    data = framing.pack(record)
    assert data == struct.pack("<II", kind, len(body)) + body + (
        padding if any(padding) else bytes(-len(body) % 8)
    )
    found = parse(framing.record_header(), data)
    assert found.result == (kind, len(body))
    assert parse(framing.body(len(body)), found.left).result == (body, record.padding)
