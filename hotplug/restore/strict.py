"""Every rule of the format, also those that the stock restorer does not mind or sees too late.

What it refuses at once, the parsers refuse. Here are reserved bits and padding, records that may be
there only once, and what a guest's own structures have to say about its pages.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotplug.restore import framing, pages, records, savefile, vcpus
from hotplug.restore.pages import (
    NOTAB,
    PAGE_TABLES,
    PFN_MASK,
    PINNED,
    POPULATED,
    RESERVED_MASK,
    PfnSet,
)
from hotplug.restore.pieces import (
    PAGE_SIZE,
    Guest,
    Layer,
    LibxcHeader,
    LibxlHeader,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StreamError,
    Vcpu,
    XlHeader,
)
from hotplug.restore.records import VCPU_KINDS, Libxc
from hotplug.restore.stream import STATIC_DATA_END_SINCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.restore.image import Image
    from hotplug.restore.legacy import Choice
    from hotplug.restore.pieces import Piece

STATIC_KINDS = (Libxc.STATIC_DATA_END, Libxc.X86_CPUID_POLICY, Libxc.X86_MSR_POLICY)
ONCE = (Libxc.SHARED_INFO, Libxc.X86_TSC_INFO)
# Reserved bytes of bodies: where they begin, how many, and after how many bytes they come again.
RESERVED = {
    Libxc.X86_PV_INFO: (2, 6, 0),
    **dict.fromkeys(VCPU_KINDS, (4, 4, 0)),
    Libxc.X86_TSC_INFO: (20, 4, 0),
    Libxc.HVM_PARAMS: (4, 4, 0),
    Libxc.X86_MSR_POLICY: (4, 4, 16),
}
MSRS_RESERVED = (12, 4, 16)  # of X86_PV_VCPU_MSRS, besides
TABLE = struct.Struct("<512Q")
PRESENT = 1
PTE_SHIFT = 12


@dataclass(slots=True)
class Knowledge:
    """What a file has said so far."""

    header: LibxcHeader | None = None
    info: PvInfo | None = None
    last_pfn: int = -1
    seen: set[int] = field(default_factory=set)
    pfns: PfnSet = field(default_factory=PfnSet)
    normal: PfnSet = field(default_factory=PfnSet)
    populated: PfnSet = field(default_factory=PfnSet)
    tables: dict[int, int] = field(default_factory=dict)  # pfn to level
    p2m: dict[int, int] = field(default_factory=dict)  # index to frame
    contexts: dict[int, bytes] = field(default_factory=dict)  # of vcpus
    notes: dict[str, int] = field(default_factory=dict)  # what is unusual, and how often

    def note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1


def verify(
    image: Image, choice: Choice | None = None, progress: Callable[[int], None] = lambda _: None
) -> dict[str, int]:
    """What is unusual in a file, and how often. StreamError at its first violation."""
    known = Knowledge()
    begin = image.offset
    for piece in image.pieces(savefile.parse(choice)):
        with image.place():
            check(known, piece)
        if isinstance(piece, Pages) and known.info is not None:
            check_tables(known, image, piece)
        progress(image.offset)
    if image.size is not None and 0 in known.contexts and known.info is not None:
        check_start_info(known, image, choice, begin)
    if image.size is not None and image.offset < image.size:
        known.note(f"{image.size - image.offset} bytes follow the end, from byte {image.offset}")
    return known.notes


def check(known: Knowledge, piece: Piece) -> None:
    match piece:
        case XlHeader():
            check_xl(known, piece)
        case LibxlHeader(options):
            if options & ~(framing.LIBXL_BIG_ENDIAN | framing.LIBXL_CONVERTED):
                raise StreamError(f"reserved options in libxl's header: {options:#x}")
        case LibxcHeader():
            check_libxc(known, piece)
        case Record(padding=padding) if padding:
            raise StreamError("the padding of a record is not zero")
        case Record(layer=Layer.LIBXC):
            check_record(known, piece)
        case Pages():
            check_pages(known, piece)


def check_xl(known: Knowledge, header: XlHeader) -> None:
    if header.optional_flags:
        known.note(f"the xl header has optional flags: {header.optional_flags:#x}")
    text = framing.config(header.optional_data)
    if any(header.optional_data[4 + len(text) :]):
        known.note("something follows the configuration in the xl header")
    if header.mandatory_flags & framing.XL_JSON:
        try:
            json.loads(text.rstrip(b"\0"))
        except (ValueError, RecursionError) as error:
            raise StreamError("the configuration in the xl header is no JSON") from error


def check_libxc(known: Knowledge, header: LibxcHeader) -> None:
    known.header = header
    if header.options & ~framing.LIBXC_BIG_ENDIAN or any(header.reserved):
        raise StreamError("reserved bits in libxc's image header")
    if header.domain_reserved:
        raise StreamError("reserved bits in libxc's domain header")


def check_record(known: Knowledge, found: Record) -> None:
    kind = found.kind
    if kind not in records.LIBXC_KINDS or kind == Libxc.FILLER:
        known.note(f"an optional record {records.name(kind)}, which verify-stream-v2 rejects")
        return
    name = records.name(kind)
    check_reserved(found)
    if kind in STATIC_KINDS:
        if known.header is not None and known.header.version < STATIC_DATA_END_SINCE:
            raise StreamError(f"a {name} record in a stream of version 2")
        if kind != Libxc.STATIC_DATA_END and Libxc.STATIC_DATA_END in known.seen:
            known.note(f"a {name} record after STATIC_DATA_END has no effect")
    if kind in ONCE and kind in known.seen:
        raise StreamError(f"a second {name} record")
    if kind == Libxc.DENSE:
        known.note("zero pages are left out, so the stock tools refuse the file")
    learn(known, found)
    if kind == Libxc.END:
        check_end(known)
    known.seen.add(kind)


def check_reserved(found: Record) -> None:
    places = [RESERVED[Libxc(found.kind)]] if found.kind in RESERVED else []
    if found.kind == Libxc.X86_PV_VCPU_MSRS:
        places.append(MSRS_RESERVED)
    size = len(found.body)
    for start, length, step in places:
        for at in range(start, size, step) if step else (start,):
            if any(found.body[at : at + length]):
                raise StreamError(f"reserved bits in a {records.name(found.kind)} record")


def learn(known: Knowledge, found: Record) -> None:
    match found.value:
        case PvInfo():
            known.info = found.value
        case P2mFrames(start, end, frames) if known.info is not None:
            known.last_pfn = max(known.last_pfn, end)
            first = start // (PAGE_SIZE // known.info.width)
            known.p2m.update(enumerate(frames, first))
        case Vcpu(vcpu, blob):
            if not blob:
                known.note(f"an empty {records.name(found.kind)} record")
            elif found.kind == Libxc.X86_PV_VCPU_BASIC:
                known.contexts[vcpu] = blob


def check_pages(known: Knowledge, batch: Pages) -> None:
    entries = batch.entries
    if batch.reserved:
        raise StreamError("reserved bits in a batch of pages")
    numbers = pages.pfns(entries)
    kinds = pages.types(entries)
    if any(one & RESERVED_MASK for one in entries):
        raise StreamError("reserved bits in an entry of a batch of pages")
    if known.pfns.add(numbers) is not None:
        known.note("a batch has pfns that occurred before")
        for pfn in numbers:
            known.normal.discard(pfn)
            known.populated.discard(pfn)
            known.tables.pop(pfn, None)
    known.normal.add([pfn for pfn, kind in zip(numbers, kinds, strict=True) if kind == NOTAB])
    known.populated.add(
        [pfn for pfn, kind in zip(numbers, kinds, strict=True) if kind in POPULATED]
    )
    tables = {
        pfn: kind & ~PINNED for pfn, kind in zip(numbers, kinds, strict=True) if kind in PAGE_TABLES
    }
    if tables and known.info is None:
        known.note("a batch has page tables of a guest that has none")
    known.tables.update(tables)
    known.seen.add(Libxc.PAGE_DATA)


def check_tables(known: Knowledge, image: Image, batch: Pages) -> None:
    """Page tables name pages that the guest has."""
    start = image.offset
    for index, one in enumerate(pages.with_data(batch.entries)):
        if one >> pages.TYPE_SHIFT not in PAGE_TABLES:
            continue
        image.skip(start + index * PAGE_SIZE - image.offset)
        named = max(present(TABLE.unpack(image.read(PAGE_SIZE))), default=0)
        if named > known.last_pfn:
            raise image.error(
                f"the page table with pfn {one & PFN_MASK:#x} names pfn {named:#x}; the guest's"
                f" last is {known.last_pfn:#x}"
            )


def present(table: Sequence[int]) -> list[int]:
    """The pfns that a page table names."""
    return [(pte & PFN_MASK) >> PTE_SHIFT for pte in table if pte & PRESENT]


def check_end(known: Knowledge) -> None:
    """What can be judged only when everything is known."""
    if Libxc.PAGE_DATA not in known.seen:
        known.note("the guest has no pages")
    if Libxc.X86_TSC_INFO not in known.seen:
        known.note("X86_TSC_INFO is missing, as it is in what Xen 3.4 saved")
    if known.header is not None and known.header.guest is Guest.HVM:
        if Libxc.HVM_PARAMS not in known.seen:
            known.note("HVM_PARAMS is missing")
        return
    if Libxc.SHARED_INFO not in known.seen:
        raise StreamError("the stream ends without SHARED_INFO")
    for frame in known.p2m.values():
        require_normal(known, frame, "a frame of the P2M table")
    for vcpu, context in known.contexts.items():
        check_context(known, vcpu, context)


def check_context(known: Knowledge, vcpu: int, context: bytes) -> None:
    if known.info is None:
        return
    named = vcpus.frames(context, known.info.width)
    if vcpu == 0:
        require_normal(known, named.start_info, "start_info")
    for frame in named.gdt:
        require_normal(known, frame, f"a frame of vcpu {vcpu}'s GDT")
    for pfn in named.page_tables:
        if known.tables.get(pfn) != known.info.levels:
            raise StreamError(
                f"vcpu {vcpu}'s page table is pfn {pfn:#x}, which is no L{known.info.levels} page"
                " table"
            )


def check_start_info(known: Knowledge, image: Image, choice: Choice | None, begin: int) -> None:
    """The pages that start_info names are there. It comes long before the vcpu that names it."""
    width = known.info.width if known.info is not None else 8
    wanted = vcpus.frames(known.contexts[0], width).start_info
    end, place = image.offset, begin
    content = b""
    image.offset = image.start = begin
    for piece in image.pieces(savefile.parse(choice)):
        numbers = pages.pfns(pages.with_data(piece.entries)) if isinstance(piece, Pages) else []
        if wanted in numbers:
            image.skip(numbers.index(wanted) * PAGE_SIZE)
            content, place = image.read(PAGE_SIZE), image.start  # of several, the last one counts
    image.offset, image.start = end, place
    named = vcpus.store_and_console(content, width)
    for pfn, what in zip(named, ("xenstore", "console"), strict=True):
        if pfn not in known.populated:
            raise image.error(
                f"start_info says that the page of the {what} is pfn {pfn:#x}, which is not there"
            )


def require_normal(known: Knowledge, pfn: int, what: str) -> None:
    if pfn not in known.normal:
        raise StreamError(f"{what} is pfn {pfn:#x}, which is no normal page")
