"""The three forms of a save file, and files rewritten from one into another.

- plain: what the stock savers write. Zero pages become holes where whole blocks are zero;
- sparse: the same records, but pages lie where a file has pages, so every zero page is a hole. The
  stock tools restore it; the records that move the pages are optional, so they skip them;
- dense: zero pages are left out and marked allocate-only, behind a record that makes the stock
  tools refuse the file. They would hand out such pages with whatever is in them.

Rewritten forwards and back to plain, a file is what it was, byte for byte, if it was plain and
nothing followed the configuration in its header.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from hotplug.restore import framing, pages, savefile, vcpus
from hotplug.restore.framing import pack, record
from hotplug.restore.pages import NOTAB, PFN_MASK, TYPE_SHIFT, WITH_DATA, XALLOC, PfnSet
from hotplug.restore.pieces import (
    PAGE_SIZE,
    Blob,
    Layer,
    LegacyHeader,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StreamError,
    Vcpu,
    XlHeader,
)
from hotplug.restore.records import DENSE_BODY, Libxc
from hotplug.restore.zeros import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hotplug.restore.image import Image
    from hotplug.restore.output import Output
    from hotplug.restore.pieces import Piece

COPY = 1 << 20  # bytes at a time


class Form(Enum):
    PLAIN = "plain"
    SPARSE = "sparse"
    DENSE = "dense"


@dataclass(slots=True)
class Rules:
    """What must not be compacted."""

    seen: PfnSet = field(default_factory=PfnSet)

    def check(self, piece: Piece) -> None:
        if isinstance(piece, LegacyHeader):
            raise StreamError("a stream of Xen 4.5 or older; convert the file first")
        if isinstance(piece, Record) and is_libxc(piece, Libxc.VERIFY):
            raise StreamError("a stream with a VERIFY record, whose pages occur twice")
        if isinstance(piece, Pages):
            double = self.seen.add(pages.pfns(piece.entries))
            if double is not None:
                raise StreamError(
                    f"pfn {double:#x} occurs a second time: a live migration's stream"
                )


def is_libxc(piece: Record, kind: Libxc) -> bool:
    return piece.layer is Layer.LIBXC and piece.kind == kind


def is_filler(piece: Record) -> bool:
    return is_libxc(piece, Libxc.FILLER) and not any(piece.body)


@dataclass(slots=True)
class Job:
    """A file on its way from one form to another."""

    image: Image
    output: Output
    form: Form
    keep: frozenset[int] = frozenset()  # pfns that have to stay what they are
    dense: bool = False  # the source is
    marked: bool = False  # the result is
    scanner: Scanner = field(init=False)

    def __post_init__(self) -> None:
        self.scanner = Scanner(self.image)


def rewrite(
    image: Image,
    output: Output,
    form: Form,
    *,
    keep: frozenset[int] = frozenset(),
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a file in another form. StreamError if it cannot be understood or has to stay."""
    job = Job(image, output, form, keep)
    rules = Rules()
    for piece in image.pieces(savefile.parse()):
        with image.place():
            if form is not Form.PLAIN or isinstance(piece, LegacyHeader):
                rules.check(piece)
            write(job, piece)
        progress(image.offset)
    if image.size is not None:
        copy(job, image.size - image.offset)  # it has no meaning, but it is not ours


def write(job: Job, piece: Piece) -> None:
    match piece:
        case XlHeader():
            job.output.write(pack(aligned(piece) if job.form is Form.SPARSE else trimmed(piece)))
        case Record() if is_filler(piece):
            pass
        case Record() if is_libxc(piece, Libxc.DENSE):
            job.dense = True
        case Pages() if job.form is Form.DENSE:
            write_dense(job, piece)
        case Pages():
            write_full(job, piece)
        case Blob(bulk=int(bulk)):
            job.output.write(pack(piece))
            copy(job, bulk)
            job.output.write(bytes(-bulk % 8))
        case _:
            job.output.write(pack(piece))


def aligned(header: XlHeader) -> XlHeader:
    """With zeros behind the configuration, so that what follows is at a multiple of 8."""
    return replace(header, optional_data=header.optional_data + bytes(padding(header)))


def padding(header: XlHeader) -> int:
    return -len(pack(header)) % 8


def trimmed(header: XlHeader) -> XlHeader:
    """Without what ``aligned`` added."""
    data = header.optional_data
    end = 4 + len(framing.config(data))
    bare = replace(header, optional_data=data[:end])
    return bare if data and aligned(bare) == header else header


def copy(job: Job, size: int) -> None:
    while size:
        part = job.image.read(min(size, COPY))
        size -= len(part)
        if any(part):
            job.output.write(part)
        else:
            job.output.zeros(len(part))


def write_full(job: Job, batch: Pages) -> None:
    """A batch with its zero pages."""
    if job.dense:
        entries = array(
            "Q",
            (one & PFN_MASK if one >> TYPE_SHIFT == XALLOC else one for one in batch.entries),
        )
        full = replace(batch, entries=entries, data_pages=pages.count_data(entries))
    else:
        full = batch
    if job.form is Form.SPARSE and full.data_pages:
        head = 16 + 8 * len(full.entries)
        fill(job.output, -(job.output.offset + head) % PAGE_SIZE)
    job.output.write(pack(full))
    for count, in_source in in_order(batch, dense=job.dense):
        if in_source:
            copy_pages(job, count)
        else:
            job.output.zeros(count * PAGE_SIZE)


def fill(output: Output, size: int) -> None:
    """Move what comes next by so many bytes, a multiple of 8."""
    if size:
        output.write(framing.RECORD.pack(Libxc.FILLER, size - framing.RECORD.size))
        output.zeros(size - framing.RECORD.size)


def in_order(batch: Pages, *, dense: bool) -> Iterator[tuple[int, bool]]:
    """The pages that a full batch has: how many are alike, and whether the source has them."""
    if not dense:
        yield batch.data_pages, True
        return
    there = [
        kind != XALLOC for kind in pages.types(batch.entries) if kind in WITH_DATA or kind == XALLOC
    ]
    start = 0
    for at in range(1, len(there) + 1):
        if at == len(there) or there[at] != there[start]:
            yield at - start, there[start]
            start = at


def copy_pages(job: Job, count: int) -> None:
    for alike, data in job.scanner.runs(count):
        if data is None:
            job.output.zeros(alike * PAGE_SIZE)
        else:
            job.output.write(data)


def write_dense(job: Job, batch: Pages) -> None:
    """A batch without its zero pages."""
    if not job.dense and XALLOC in pages.types(batch.entries):
        raise StreamError(
            "a page is allocate-only already, so it could not be told from a zero one"
        )
    if not job.marked:
        job.output.write(pack(record(Libxc.DENSE, DENSE_BODY)))
        job.marked = True
    entries = array("Q")
    data: list[bytes | memoryview] = []
    rest = iter(batch.entries)
    for count, found in job.scanner.runs(batch.data_pages):
        kept = [False] * count
        for index in range(count):
            entry = next_with_data(rest, entries)
            kept[index] = found is not None or not may_leave_out(entry, job.keep)
            entries.append(entry if kept[index] else entry | XALLOC << TYPE_SHIFT)
        data.append(found.tobytes() if found is not None else bytes(sum(kept) * PAGE_SIZE))
    entries.extend(rest)
    content = b"".join(data)
    count = len(content) // PAGE_SIZE
    job.output.write(pack(replace(batch, entries=entries, data_pages=count)))
    job.output.write(content)


def next_with_data(rest: Iterator[int], passed: array[int]) -> int:
    """The next entry that has data; those before it are put where they belong."""
    for entry in rest:
        if entry >> TYPE_SHIFT in WITH_DATA:
            return entry
        passed.append(entry)
    raise StreamError("fewer pages than the batch said")


def may_leave_out(entry: int, keep: frozenset[int]) -> bool:
    """Zero pages that a restorer has to find of the type they are, have to stay."""
    return entry >> TYPE_SHIFT == NOTAB and entry & PFN_MASK not in keep


def named_frames(image: Image) -> frozenset[int]:
    """The pfns of those pages of a PV guest whose type the restorer checks."""
    named: set[int] = set()
    width = 0
    for piece in image.pieces(savefile.parse()):
        match piece:
            case Record(value=PvInfo(width=width)):
                pass
            case Record(value=P2mFrames(frames=frames)):
                named.update(frames)
            case Record(kind=Libxc.X86_PV_VCPU_BASIC, value=Vcpu(vcpu, blob)) if blob:
                with image.place():
                    frames_of_it = vcpus.frames(blob, width)
                named.update(frames_of_it.gdt, [frames_of_it.start_info] if vcpu == 0 else [])
    return frozenset(named)
