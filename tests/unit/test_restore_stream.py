"""The stream of libxc: its order, its end, and that nothing behind that is touched."""

from __future__ import annotations

import struct

import pytest
import savefiles
from harness.parsing import parse, refuses_every_cut
from savefiles import END, STATIC_DATA_END, Hvm, Page, Pv, record

from hotplug.restore.pieces import (
    Guest,
    LibxcHeader,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StaticDataInferred,
    StreamError,
)
from hotplug.restore.records import Libxc
from hotplug.restore.stream import libxc

PV_INFO = record(2, b"\x08\x04" + bytes(6))
BASIC = savefiles.vcpu_record(4, 0, savefiles.context(8))
P2M = savefiles.p2m_frames(16)
PAGE = savefiles.page_data([Page(0, 3, savefiles.page(3))])
HEADER, HVM_HEADER = savefiles.libxc_header(1), savefiles.libxc_header(2)
CONTEXT = record(9, b"x")


def refused(data):
    with pytest.raises(StreamError) as caught:
        parse(libxc(), data)
    return str(caught.value)


def kinds(found):
    return [piece.kind if isinstance(piece, Record) else type(piece) for piece in found.pieces]


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("version", [2, 3])
def test_a_pv_stream(width, version):
    made = Pv(width=width, version=version, vcpus=2)
    found = refuses_every_cut(libxc, made.stream())
    assert found.result == LibxcHeader(version, Guest.PV, (4, 17))
    begin = [StaticDataInferred] if version == 2 else [0x11, 0x12, 0x10]
    vcpu = [4, 5, 6, 0xC]
    assert kinds(found) == [LibxcHeader, 2, *begin, 3, *[Pages] * 4, 8, 7, *vcpu, *vcpu, 0]
    values = [piece.value for piece in found.pieces if isinstance(piece, Record)]
    assert values[0] == PvInfo(width, width // 8 + 3)
    assert P2mFrames(0, 15, (2,)) in values
    data = b"".join(one.data for one in made.memory if savefiles.has_data(one.kind))
    assert b"".join(found.bulks) == data


@pytest.mark.parametrize("version", [2, 3])
def test_an_hvm_stream(version):
    made = Hvm(version=version)
    found = refuses_every_cut(libxc, made.stream())
    begin = [StaticDataInferred] if version == 2 else [0x11, 0x12, 0x10]
    assert kinds(found) == [LibxcHeader, *begin, *[Pages] * 4, 8, 9, 0xA, 0]


def test_what_follows_the_end_belongs_to_others():
    assert parse(libxc(), Hvm().stream() + b"libxl's").left == b"libxl's"
    assert parse(libxc(), Pv().stream() + END).left == END


def test_a_header_may_have_been_read_already():
    data = Hvm().stream()
    assert parse(libxc(data[:8]), data[8:]).pieces == parse(libxc(), data).pieces


ORDER = [
    (HEADER + PV_INFO + PV_INFO, "a second X86_PV_INFO"),
    (HEADER + P2M, "P2M_FRAMES record before X86_PV_INFO"),
    (HEADER + BASIC, "VCPU_BASIC record before X86_PV_INFO"),
    (HEADER + record(7, bytes(4096)), "SHARED_INFO record before X86_PV_INFO"),
    (HEADER + PV_INFO + P2M, "P2M_FRAMES record before STATIC_DATA_END"),
    (HVM_HEADER + PAGE, "PAGE_DATA record before STATIC_DATA_END"),
    (HEADER + PV_INFO + STATIC_DATA_END + PAGE, "pages before X86_PV_P2M_FRAMES"),
    (HVM_HEADER + STATIC_DATA_END * 2, "has ended already"),
    (HVM_HEADER + STATIC_DATA_END + END, "without HVM_CONTEXT"),
    (HEADER + PV_INFO + STATIC_DATA_END + BASIC + END, "without X86_PV_P2M_FRAMES"),
    (HEADER + PV_INFO + STATIC_DATA_END + P2M + END, "without the state of vcpu 0"),
    (
        HEADER + PV_INFO + STATIC_DATA_END + P2M + savefiles.vcpu_record(4, 0, b"") + END,
        "without the state of vcpu 0",
    ),
    (
        HEADER + PV_INFO + STATIC_DATA_END + P2M + savefiles.page_data([Page(0, 16)]),
        "pfn 0x10; the guest's last is 0xf",
    ),
    (
        HVM_HEADER + STATIC_DATA_END + savefiles.page_data([Page(0, 1 << 28)]),
        "pfn 0x10000000; the guest's last",
    ),
    (HVM_HEADER + STATIC_DATA_END + PAGE + record(0x7F58485A, struct.pack("<II", 1, 0)), "after"),
    (HVM_HEADER + record(0x7F58485A, struct.pack("<II", 1, 0)) * 2, "a second DENSE"),
    (HVM_HEADER + PV_INFO, "X86_PV_INFO record in the stream of a guest of another type"),
    (HVM_HEADER + BASIC, "another type"),
    (HEADER + CONTEXT, "HVM_CONTEXT record in the stream of a guest of another type"),
    (HEADER + savefiles.params(), "another type"),
    (HVM_HEADER + record(0xB), "TOOLSTACK"),
    (HVM_HEADER + record(0xE), "checkpoints"),
    (HVM_HEADER + record(0xF, bytes(8)), "checkpoints"),
    (HVM_HEADER + record(0x13), "unknown type 0x00000013"),
    (HVM_HEADER + record(0x7FFFFFFF), "unknown type 0x7fffffff"),
    (HVM_HEADER + struct.pack("<II", 9, 134217729), "limit is 134217728"),
    (savefiles.libxc_header(2, 2) + STATIC_DATA_END * 2, "has ended already"),
    (savefiles.libxc_header(2, 2) + PAGE + STATIC_DATA_END, "has ended already"),
]


@pytest.mark.parametrize(("data", "words"), ORDER)
def test_order(data, words):
    assert words in refused(data)


def test_nothing_is_read_of_a_record_that_may_not_come():
    """So the guest is untouched, and no memory is taken for its body."""
    refused(HVM_HEADER + struct.pack("<II", 0xB, 134217728))


def test_optional_records_are_handed_on():
    stream = Hvm(parts={"tsc": record(0x80000005, b"abc")}).stream()
    assert Record("libxc", 0x80000005, b"abc") in parse(libxc(), stream).pieces


def test_padding_is_handed_on_if_it_is_not_zero():
    stream = Hvm(parts={"tsc": record(0x80000005, b"abc", pad=b"p")}).stream()
    assert Record("libxc", 0x80000005, b"abc", None, b"ppppp") in parse(libxc(), stream).pieces


def test_the_static_data_may_end_by_word_in_version_2_too():
    stream = Hvm(version=2, parts={"header": savefiles.libxc_header(2, 2) + STATIC_DATA_END})
    found = parse(libxc(), stream.stream())
    assert StaticDataInferred not in kinds(found)


def test_the_end_of_the_static_data_is_inferred_once():
    found = parse(libxc(), Pv(version=2, batch=1).stream())
    assert kinds(found).count(StaticDataInferred) == 1


def test_later_p2m_frames_extend_the_guest():
    more = savefiles.p2m_frames(600, (7,), start=590)
    pages = savefiles.page_data([Page(0, 599)])
    usual = Pv().usual()
    stream = Pv(parts={"pages": usual["pages"] + more + pages}).stream()
    assert len(parse(libxc(), stream).bulks) == 5


def test_dense_streams_are_understood():
    pages = record(0x7F58485A, struct.pack("<II", 1, 0)) + savefiles.page_data([Page(0xE, 2)])
    found = parse(libxc(), Hvm(parts={"pages": pages}).stream())
    assert Libxc.DENSE in kinds(found)


def test_verify_and_repeated_pfns_are_for_the_restorer():
    usual = Hvm().usual()
    stream = Hvm(parts={"pages": usual["pages"] + record(0xD) + usual["pages"]}).stream()
    assert kinds(parse(libxc(), stream)).count(Pages) == 8
