"""Every rule of the format: what breaks one, and what is only unusual."""

from __future__ import annotations

import struct

import pytest
import savefiles
from savefiles import (
    BROKEN,
    END,
    L1,
    L3,
    L4,
    NOTAB,
    PIN,
    STATIC_DATA_END,
    XALLOC,
    XTAB,
    Hvm,
    Legacy,
    Page,
    Pv,
    record,
)

from hotplug.restore import strict
from hotplug.restore.image import Image
from hotplug.restore.pieces import StreamError


@pytest.fixture
def verify(tmp_path):
    def run(content):
        path = tmp_path / "a.save"
        path.write_bytes(content)
        with path.open("rb") as file:
            return strict.verify(Image(file.fileno(), "a.save"))

    return run


def memory(**changes):
    """The usual pages of a PV guest but for some: p3=Page(...)."""
    usual = {f"p{one.pfn}": one for one in savefiles.pv_memory()}
    assert changes.keys() <= usual.keys() | {"more"}
    return list({**usual, **changes}.values())


def vcpus(*contexts):
    return b"".join(savefiles.vcpu_record(4, n, one) for n, one in enumerate(contexts))


def policy(body, kind=0x12):
    return {"policy": record(kind, body)}


@pytest.mark.parametrize(
    "content",
    [
        Pv().file(),
        Pv(width=4).file(),
        Pv(version=2, vcpus=3).file(),
        Pv(batch=1).file(),
        Pv().stream(),
        Hvm().file(),
        Hvm(version=2, emulator=None).file(),
        Legacy().xl_file(),
        Legacy(guest="hvm").xend_file(),
        Pv(parts={"vcpus": vcpus(savefiles.context(8, cr1=4 << 12))}).file(),  # not valid: no root
    ],
)
def test_nothing_to_say(verify, content):
    assert verify(content) == {}


BROKEN_RULES = {
    "padding": (Hvm(parts={"tsc": record(0x80000001, b"x", b"p")}), "padding"),
    "image options": (Hvm(parts={"header": savefiles.libxc_header(2, options=2)}), "image header"),
    "image reserved": (
        Hvm(parts={"header": savefiles.libxc_header(2, reserved=b"\0\0\0\0\0\1")}),
        "image header",
    ),
    "domain": (Hvm(parts={"header": savefiles.libxc_header(2, dom=1)}), "domain header"),
    "info": (Pv(parts={"info": record(2, b"\x08\x04\0\0\0\0\0\1")}), "X86_PV_INFO"),
    "vcpu": (
        Pv(parts={"vcpus": record(4, struct.pack("<II", 0, 1) + savefiles.context(8))}),
        "X86_PV_VCPU_BASIC",
    ),
    "msrs": (
        Pv(parts={"tsc": savefiles.vcpu_record(0xC, 0, struct.pack("<IIQIIQ", 1, 0, 0, 2, 1, 0))}),
        "X86_PV_VCPU_MSRS",
    ),
    "tsc": (Hvm(parts={"tsc": record(8, bytes(20) + b"\1\0\0\0")}), "X86_TSC_INFO"),
    "params": (Hvm(parts={"params": record(0xA, struct.pack("<II", 0, 1))}), "HVM_PARAMS"),
    "msr policy": (
        Hvm(parts=policy(struct.pack("<IIQIIQ", 1, 0, 0, 2, 3, 0))),
        "reserved bits in a X86_MSR_POLICY",
    ),
    "batch": (
        Hvm(parts={"pages": savefiles.page_data([Page(NOTAB, 1)], reserved=1)}),
        "in a batch of pages",
    ),
    "entry": (Hvm(memory=[Page(NOTAB, 1 << 52 | 1)]), "in an entry of a batch"),
    "end of static data in version 2": (
        Hvm(version=2, parts={"header": savefiles.libxc_header(2, 2) + STATIC_DATA_END}),
        "STATIC_DATA_END record in a stream of version 2",
    ),
    "policy in version 2": (
        Hvm(version=2, parts={"header": savefiles.libxc_header(2, 2) + savefiles.CPUID}),
        "X86_CPUID_POLICY record in a stream of version 2",
    ),
    "two tsc": (Hvm(parts={"tsc": savefiles.tsc_info() * 2}), "a second X86_TSC_INFO"),
    "two shared": (
        Pv(parts={"shared": record(7, bytes(4096)) * 2}),
        "a second SHARED_INFO",
    ),
    "no shared": (Pv(parts={"shared": b""}), "without SHARED_INFO"),
    "p2m of a table": (
        Pv(memory=memory(p2=Page(L1, 2))),
        "P2M table is pfn 0x2, which is no normal",
    ),
    "p2m allocate-only": (Pv(memory=memory(p2=Page(XALLOC, 2))), "P2M table is pfn 0x2"),
    "p2m beyond": (Pv(parts={"p2m": savefiles.p2m_frames(16, (16,))}), "P2M table is pfn 0x10"),
    "start_info": (Pv(memory=memory(p0=Page(BROKEN, 0))), "start_info is pfn 0x0"),
    "gdt": (Pv(memory=memory(p1=Page(PIN | L1, 1))), "vcpu 0's GDT is pfn 0x1"),
    "gdt of a later vcpu": (
        Pv(parts={"vcpus": vcpus(savefiles.context(8), savefiles.context(8, vcpu=1, gdt=(9,)))}),
        "vcpu 1's GDT is pfn 0x9",
    ),
    "gdt too long": (
        Pv(parts={"vcpus": vcpus(savefiles.context(8, entries=7169))}),
        "GDT of 7169 entries",
    ),
    "cr3": (Pv(memory=memory(p3=Page(PIN | L3, 3))), "pfn 0x3, which is no L4"),
    "cr3 of 32 bits": (
        Pv(
            width=4, memory=memory(p0=Page(NOTAB, 0, savefiles.start_info(4)), p3=Page(PIN | L4, 3))
        ),
        "pfn 0x3, which is no L3",
    ),
    "user's cr3": (
        Pv(parts={"vcpus": vcpus(savefiles.context(8, cr1=4 << 12 | 1))}),
        "pfn 0x4, which is no L4",
    ),
    "xenstore": (
        Pv(memory=memory(p0=Page(NOTAB, 0, savefiles.start_info(store=9)))),
        "page of the xenstore is pfn 0x9, which is not there",
    ),
    "console": (
        Pv(
            width=4,
            memory=memory(
                p0=Page(NOTAB, 0, savefiles.start_info(4, console=16)), p3=Page(PIN | L3, 3)
            ),
        ),
        "page of the console is pfn 0x10, which is not there",
    ),
    "an entry of a page table": (
        Pv(memory=memory(p6=Page(L1, 6, savefiles.table(3, 16)))),
        "page table with pfn 0x6 names pfn 0x10; the guest's last is 0xf",
    ),
}


@pytest.mark.parametrize(("made", "words"), BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
def test_a_broken_rule(verify, made, words):
    with pytest.raises(StreamError) as caught:
        verify(made.file())
    assert words in str(caught.value)
    assert str(caught.value).startswith("a.save: at byte ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (savefiles.xl_header() + savefiles.libxl_header(4), "reserved options"),
        (Pv().file().replace(b'"type"', b"'type'"), "no JSON"),
        (Pv().file().replace(b'{"c_info"', b"[" * 5 + b"c_in"), "no JSON"),
        (
            Hvm().file(keys=record(2, struct.pack("<II", 2, 0) + b"ab\0c\0", b"p")),
            "padding of a record",
        ),
    ],
)
def test_broken_rules_of_the_outer_layers(verify, content, words):
    with pytest.raises(StreamError, match=words):
        verify(content)


def test_the_first_violation_has_its_place(verify):
    usual = Hvm().usual()
    stream = Hvm(parts={"pages": usual["pages"] + record(0x80000001, b"x", b"p") + record(0x13)})
    content = stream.file()
    with pytest.raises(StreamError) as caught:
        verify(content)
    at = content.index(struct.pack("<II", 0x80000001, 1))
    assert str(caught.value) == f"a.save: at byte {at}: the padding of a record is not zero"


UNUSUAL = {
    "optional": (
        Hvm(parts={"tsc": savefiles.tsc_info() + record(0x80000001) * 2}).file(),
        {"an optional record 0x80000001, which verify-stream-v2 rejects": 2},
    ),
    "filler": (
        Hvm(parts={"tsc": savefiles.tsc_info() + record(0xFFFFFF01, bytes(8))}).file(),
        {"an optional record FILLER, which verify-stream-v2 rejects": 1},
    ),
    "dense": (
        Hvm(
            parts={"static": STATIC_DATA_END + record(0x7F58485A, struct.pack("<II", 1, 0))},
        ).file(),
        {"zero pages are left out, so the stock tools refuse the file": 1},
    ),
    "twice": (
        Hvm(memory=[*savefiles.hvm_memory(), Page(NOTAB, 5)]).file(),
        {"a batch has pfns that occurred before": 1},
    ),
    "late policy": (
        Hvm(parts={"tsc": savefiles.tsc_info() + savefiles.CPUID}).file(),
        {"a X86_CPUID_POLICY record after STATIC_DATA_END has no effect": 1},
    ),
    "no tsc": (
        Hvm(parts={"tsc": b""}).file(),
        {"X86_TSC_INFO is missing, as it is in what Xen 3.4 saved": 1},
    ),
    "no params": (Hvm(parts={"params": b""}).file(), {"HVM_PARAMS is missing": 1}),
    "no pages": (Hvm(parts={"pages": b""}).file(), {"the guest has no pages": 1}),
    "empty vcpu": (
        Pv(parts={"tsc": savefiles.tsc_info() + savefiles.vcpu_record(6, 3, b"")}).file(),
        {"an empty X86_PV_VCPU_XSAVE record": 1},
    ),
    "page tables of an HVM guest": (
        Hvm(memory=[Page(L1, 5)]).file(),
        {"a batch has page tables of a guest that has none": 1},
    ),
    "flags": (
        savefiles.xl_header(optional_flags=5) + Hvm().file()[len(savefiles.xl_header()) :],
        {"the xl header has optional flags: 0x5": 1},
    ),
    "behind the configuration": (
        savefiles.xl_header(tail=b"1234") + Hvm().file()[len(savefiles.xl_header()) :],
        {"something follows the configuration in the xl header": 1},
    ),
    "behind the end": (
        Hvm().file(tail=b"tail"),
        {f"4 bytes follow the end, from byte {len(Hvm().file())}": 1},
    ),
}


@pytest.mark.parametrize(("content", "notes"), UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual(verify, content, notes):
    assert verify(content) == notes


def test_the_last_type_of_a_page_counts(verify):
    """As it does for the restorer of a live migration's stream."""
    again = Page(NOTAB, 2, savefiles.page(2))
    first = memory(p2=Page(L1, 2))
    assert len(verify(Pv(memory=[*first, again]).file())) == 1
    with pytest.raises(StreamError, match="P2M table"):
        verify(Pv(memory=[*memory(), Page(L1, 2)]).file())


def test_the_last_start_info_counts(verify):
    """Where it was absent at first, or named other pages."""
    for first in (Page(XTAB, 0), Page(NOTAB, 0, savefiles.start_info(store=9))):
        again = Page(NOTAB, 0, savefiles.start_info())
        assert len(verify(Pv(memory=[*memory(p0=first), again]).file())) == 1
        bad = Page(NOTAB, 0, savefiles.start_info(store=9))
        with pytest.raises(StreamError, match="xenstore is pfn 0x9"):
            verify(Pv(memory=[*memory(p0=first), bad]).file())


def test_what_follows_a_violation_is_not_looked_at(verify):
    content = Pv(parts={"info": record(2, b"\x08\x04\0\0\0\0\0\1")}).file()
    cut = content[: content.index(b"XENF") + 60]
    with pytest.raises(StreamError, match="X86_PV_INFO"):
        verify(cut + END)
