"""Streams of Xen 4.5 and older: read as if they were of today."""

from __future__ import annotations

import struct

import pytest
import savefiles
from harness.parsing import parse, refuses_every_cut
from hypothesis import given
from hypothesis import strategies as st
from savefiles import XTAB, Hvm, Legacy, Page, Pv

from hotplug.restore import legacy
from hotplug.restore.legacy import Choice
from hotplug.restore.pieces import (
    Blob,
    EmulatorXenstore,
    Guest,
    HvmParams,
    LegacyHeader,
    Pages,
    Record,
    StreamError,
    Vcpu,
)
from hotplug.restore.records import Libxc
from hotplug.restore.stream import libxc

EMPTY = struct.pack("<i", 0)


def chunk(number, layout="", *values):
    return struct.pack(f"<i{layout}", number, *values)


def parsed(made, choice=None, behind=b""):
    return parse(legacy.image(choice or Choice()), made.stream() + behind)


def refused(data, choice=None):
    with pytest.raises(StreamError) as caught:
        parse(legacy.image(choice or Choice()), data)
    return str(caught.value)


def memory(found):
    """Every page that was told, and its content."""
    pages, data = {}, b"".join(found.bulks)
    at = 0
    for piece in found.pieces:
        for entry in piece.entries if isinstance(piece, Pages) else ():
            kind = entry >> 60
            size = 4096 if savefiles.has_data(kind) else 0
            pages[entry & (1 << 52) - 1] = (kind, data[at : at + size])
            at += size
    return pages


def expected(pages, *, without=()):
    return {
        one.pfn: (one.kind, one.data if savefiles.has_data(one.kind) else b"")
        for one in pages
        if one.kind not in without
    }


def values(found, kind):
    return [
        piece.value if piece.value is not None else piece.body
        for piece in found.pieces
        if isinstance(piece, Record) and piece.layer == "libxc" and piece.kind == kind
    ]


PV_STREAMS = [
    {"word": word, "width": width, **more}
    for word, width in ((8, 8), (8, 4), (4, 4))
    for more in (
        {},
        {"extv": True},
        {"extv": True, "xsave": 600, "vcpus": 3, "unmapped": tuple(range(9))},
        {"vcpus": None, "tsc": False},
    )
] + [{"word": 8, "extended_info": False}, {"word": 4, "width": 4, "extended_info": False}]


@pytest.mark.parametrize("options", PV_STREAMS, ids=str)
def test_pv(options):
    made = Legacy(**options)
    choice = Choice(guest=None if made.extended_info else Guest.PV)
    found = refuses_every_cut(lambda: legacy.image(choice), made.stream())
    assert found.pieces[0] == LegacyHeader(made.word, 16, Guest.PV)
    assert memory(found) == expected(made.memory, without=[XTAB])
    number = made.vcpus or 1
    contexts = [savefiles.context(made.width, vcpu=vcpu) for vcpu in range(number)]
    assert values(found, Libxc.X86_PV_VCPU_BASIC) == [Vcpu(*one) for one in enumerate(contexts)]
    extended = [Vcpu(vcpu, bytes(range(128))) for vcpu in range(number)] if made.extv else []
    assert values(found, Libxc.X86_PV_VCPU_EXTENDED) == extended
    xsave = [Vcpu(vcpu, bytes(made.xsave - 16)) for vcpu in range(number)] if made.xsave else []
    assert values(found, Libxc.X86_PV_VCPU_XSAVE) == xsave
    assert values(found, Libxc.SHARED_INFO) == [savefiles.page(99)]
    assert len(values(found, Libxc.X86_TSC_INFO)) == made.tsc


@pytest.mark.parametrize("word", [4, 8])
def test_hvm(word):
    made = Legacy(guest="hvm", word=word, batch=4)
    found = refuses_every_cut(lambda: legacy.image(Choice(), bare=False), made.xl_file()[LENGTH:])
    assert found.pieces[0] == LegacyHeader(word, 31, Guest.HVM)
    assert memory(found) == expected(made.memory)
    assert values(found, Libxc.HVM_PARAMS) == [
        HvmParams(((12, 0xFEFC), (15, 0xFEFB))),
        HvmParams(((5, 0xFEFE), (6, 0xFEFD), (1, 0xFEFF))),
    ]
    assert values(found, Libxc.HVM_CONTEXT) == [b"hvm context" * 50]
    assert found.bulks[-1] == b"QEVM" + bytes(range(50))


LENGTH = len(savefiles.xl_header())


@pytest.mark.parametrize("made", [Legacy(), Legacy(width=4), Legacy(word=4, width=4)], ids=str)
def test_it_is_the_stream_that_today_would_have_been_written(made):
    """But for what an old stream cannot tell."""

    def told(pieces):
        wanted = (2, 3, 4, 7, 8, 0x10, 0)
        return {
            (piece.kind, piece.body)
            for piece in pieces
            if isinstance(piece, Record) and piece.layer == "libxc" and piece.kind in wanted
        }

    today = parse(libxc(), Pv(width=made.width).stream())
    assert told(parsed(made).pieces) == told(today.pieces)


def test_a_bare_stream_may_end_without_a_device_model():
    found = parsed(Legacy(guest="hvm"))
    assert found.pieces[-1] == Record("libxl", 0)
    assert not any(isinstance(piece, Blob) for piece in found.pieces)


@pytest.mark.parametrize("signature", [b"DeviceModelRecord0002", b"RemusDeviceModelState"])
def test_device_models_with_a_length(signature):
    state = signature + struct.pack("<I", 3) + b"abc"
    found = parsed(Legacy(guest="hvm"), behind=state + b"not ours")
    assert found.bulks[-1] == b"abc"
    assert found.left == b"not ours"


def test_what_follows_is_not_touched():
    """A restorer of Xen 4.0 took it for a further checkpoint."""
    for tail in (bytes(5000), b"garbage" * 99):
        assert parsed(Legacy(), behind=tail).left == tail


def test_guesses():
    assert parsed(Legacy(word=4, width=4)).pieces[0].word == 4
    assert parsed(Legacy(word=8)).pieces[0].word == 8
    kernel = (
        Legacy(extended_info=False)
        .stream()
        .replace(struct.pack("<Q", 2), struct.pack("<Q", 5000), 1)
    )
    assert parse(legacy.image(Choice()), kernel).pieces[0].guest is Guest.PV
    told = Choice(word=8, guest=Guest.HVM)
    assert parsed(Legacy(guest="hvm"), told).pieces[0] == LegacyHeader(8, 31, Guest.HVM)


@pytest.mark.parametrize("number", [-3, -4, -8, -10, -11, -14, -15, -16, -17, -19, -20, -21])
def test_chunks_that_are_parameters(number):
    index = {-3: 12, -4: 15, -8: 17, -10: 19, -11: 9, -14: 34, -15: 27, -16: 28, -17: 29}
    index |= {-19: 32, -20: 33, -21: 36}
    more = chunk(number, "IQ", 0, 77)
    found = parsed(Legacy(guest="hvm", chunks=more))
    assert (index[number], 77) in values(found, Libxc.HVM_PARAMS)[0].params
    assert "of a PV guest" in refused(Legacy(chunks=more).stream())


@pytest.mark.parametrize("number", [-5, -6, -12, -13])
def test_chunks_that_cannot_be_read(number):
    assert f"(chunk {number}) cannot be read" in refused(Legacy(chunks=chunk(number)).stream())


def test_other_chunks():
    found = parsed(Legacy(chunks=chunk(-1) + chunk(-9)))
    assert values(found, Libxc.VERIFY) == [b""]
    assert "unknown type -22" in refused(Legacy(chunks=chunk(-22)).stream())
    assert "batch of 1025 pages" in refused(Legacy(chunks=chunk(1025)).stream())


def test_vcpus():
    online = chunk(-2, "iQQ", 64, 1, 1)  # numbers 0 and 64
    made = Legacy(chunks=online, vcpus=2)
    assert [one.vcpu for one in values(parsed(made), Libxc.X86_PV_VCPU_BASIC)] == [0, 64]
    assert "limit is 4095" in refused(Legacy(chunks=chunk(-2, "i", 4096)).stream())
    assert "limit is 4095" in refused(Legacy(chunks=chunk(-2, "i", -1)).stream())
    missing = Legacy(chunks=chunk(-2, "iQ", 1, 2))
    assert "vcpu 0 is missing" in refused(missing.stream())


def toolstack(word, *maps, version=1):
    data = struct.pack("<II", version, len(maps))
    for offset, start, size, name in maps:
        data += struct.pack("<QQQI", offset, start, size, len(name)) + name
        data += bytes(4) if word == 8 else b""
    return chunk(-18, "I", len(data)) + data


@pytest.mark.parametrize("word", [4, 8])
def test_where_qemu_had_its_memory(word):
    more = toolstack(word, (0xF0, 0xA0000, 0x800, b"vga.ram\0"), (1, 2, 3, b"x\0"))
    found = parsed(Legacy(guest="hvm", word=word, chunks=more + chunk(-18, "I", 0)))
    (keys,) = (
        p.value for p in found.pieces if isinstance(getattr(p, "value", 0), EmulatorXenstore)
    )
    assert keys.pairs == (
        (b"physmap/f0/start_addr", b"a0000"),
        (b"physmap/f0/size", b"800"),
        (b"physmap/f0/name", b"vga.ram"),
        (b"physmap/1/start_addr", b"2"),
        (b"physmap/1/size", b"3"),
        (b"physmap/1/name", b"x"),
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (toolstack(8, version=2), "unknown version"),
        (chunk(-18, "I", 7) + bytes(7), "unknown version"),
        (chunk(-18, "IIII", 12, 1, 1, 0), "too early"),
        (toolstack(8, (1, 2, 3, b"no NUL")), "broken name"),
        (toolstack(4, (1, 2, 3, b"x\0")), "broken name"),
        (chunk(-18, "I", (1 << 20) + 1), "limit is 1048576"),
    ],
)
def test_where_qemu_had_its_memory_refused(more, words):
    assert words in refused(Legacy(guest="hvm", chunks=more).stream())


def pages(*entries):
    return struct.pack(f"<i{len(entries)}Q", len(entries), *entries)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (pages(3, 4, 3), "pfn occurs twice"),
        (pages(3, 0x10000003), "pfn occurs twice"),
        (pages(16), "pfn 0x10; the guest's last is 0xf"),
        (pages(0x50000001), "unknown type 0x5"),
        (pages(1 << 32), "only 32 bits"),
    ],
)
def test_batches_refused(more, words):
    assert words in refused(Legacy(chunks=more).stream())


def test_absent_pages_of_pv_guests_are_dropped():
    found = parsed(Legacy(chunks=pages(*[0xF0000000] * 5)))
    assert found.pieces == parsed(Legacy()).pieces


def test_pages_may_be_told_again():
    again = Page(0, 7, savefiles.page(77))
    more = struct.pack("<iQ", 1, 7) + again.data
    assert memory(parsed(Legacy(chunks=more)))[7] == (0, savefiles.page(77))


def info(*blocks, total=None):
    content = b"".join(name + struct.pack("<I", len(data)) + data for name, data in blocks)
    size = len(content) if total is None else total
    return struct.pack("<QQI", 16, 2**64 - 1, size) + content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (info((b"vcpu", bytes(100))), "tells no word size"),
        (info((b"xcnt", struct.pack("<I", 31))), "XSAVE state"),
        (info((b"xcnt", struct.pack("<I", (1 << 20) + 1))), "XSAVE state"),
        (info((b"extv", b""), total=12), "longer than all"),
        (info((b"vcpu", bytes(5168)), total=100), "longer than all"),
        (info(total=(1 << 20) + 1), "limit is 1048576"),
        (struct.pack("<QQ", (1 << 28) + 1, 0), "no save file"),
        (struct.pack("<QQ", 0, 0), "no save file"),
        (Legacy(unmapped=(1,) * 17).stream(), "17 pages are not mapped, of 16"),
    ],
)
def test_beginnings_and_ends_refused(data, words):
    assert words in refused(data)


def test_unknown_blocks_are_skipped():
    usual = Legacy().stream()
    block = b"what" + struct.pack("<I", 5) + b"12345"
    size = struct.unpack_from("<I", usual, 16)[0]
    data = usual[:16] + struct.pack("<I", size + len(block)) + block + usual[20:]
    assert parse(legacy.image(Choice()), data).pieces == parsed(Legacy()).pieces


def test_xsave_states_differ():
    stream = Legacy(xsave=600, vcpus=2).stream()
    assert "others differ" in refused(stream.replace(struct.pack("<QQ", 7, 584), bytes(16)))


@pytest.mark.parametrize("size", [0, (128 << 20) + 1])
def test_sizes_of_hvm_contexts(size):
    stream = Legacy(guest="hvm").stream()
    usual = b"hvm context" * 50
    data = stream.replace(struct.pack("<I", len(usual)) + usual, struct.pack("<I", size))
    assert f"HVM context of {size} bytes" in refused(data)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (b"DeviceModelRecord0003" + bytes(4), "unknown device model"),
        (b"DeviceModelRecord0002" + struct.pack("<I", 128 << 20), "limit is"),
    ],
)
def test_device_models_refused(state, words):
    assert words in refused(Legacy(guest="hvm").stream() + state)


@given(
    st.lists(st.sampled_from([0, 1, 2, 9, 0xD, 0xE, 0xF]), min_size=1, max_size=40),
    st.sampled_from(["pv", "hvm"]),
    st.sampled_from([4, 8]),
    st.integers(1, 12),
)
def test_memory_there_and_back(drawn, guest, word, batch):
    made = Legacy(word=word, width=word, guest=guest, batch=batch)
    made.memory = [Page(kind, pfn, savefiles.page(pfn)) for pfn, kind in enumerate(drawn)]
    found = parsed(made, Choice(word, Guest.PV if guest == "pv" else Guest.HVM))
    gone = [XTAB] if guest == "pv" else []
    told = expected(made.memory, without=gone)
    if guest == "hvm" and drawn[0] == XTAB:
        del told[0]  # as bare as those of PV guests
    assert memory(found) == told


def test_the_writer_is_not_the_reader():
    """The samples of today's format and of the old one hold the same memory."""
    assert memory(parse(libxc(), Hvm().stream())) == memory(parsed(Legacy(guest="hvm")))
