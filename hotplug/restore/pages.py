"""PAGE_DATA: types of pages, and the parser of a batch up to its page data.

A type is the upper nibble of an entry, as in Xen's XEN_DOMCTL_PFINFO_*, shifted.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from typing import TYPE_CHECKING

from hotplug.restore.loops import native
from hotplug.restore.pieces import PAGE_SIZE, Pages, StreamError
from hotplug.restore.records import MAX_PFNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hotplug.restore.pieces import Parser

NOTAB = 0x0
L1TAB, L2TAB, L3TAB, L4TAB = 0x1, 0x2, 0x3, 0x4
PINNED = 0x8  # a bit, on page tables
BROKEN, XALLOC, XTAB = 0xD, 0xE, 0xF
NAMES = {
    NOTAB: "normal",
    **{level: f"L{level} page table" for level in (L1TAB, L2TAB, L3TAB, L4TAB)},
    **{PINNED | level: f"L{level} page table, pinned" for level in (L1TAB, L2TAB, L3TAB, L4TAB)},
    BROKEN: "broken",
    XALLOC: "allocate-only",
    XTAB: "absent",
}
PAGE_TABLES = frozenset(NAMES) - {NOTAB, BROKEN, XALLOC, XTAB}
WITH_DATA = PAGE_TABLES | {NOTAB}
POPULATED = WITH_DATA | {XALLOC}

TYPE_SHIFT = 60
PFN_MASK = (1 << 52) - 1
RESERVED_MASK = ((1 << TYPE_SHIFT) - 1) & ~PFN_MASK
HEAD = struct.Struct("<II")  # count, reserved
# libxc reads any count that fits into a record. The savers write 1,024 entries and we no more; this
# is 40 MiB as Python has them.
MAX_ENTRIES = 1 << 20


def page_data(length: int, last: int | None = None) -> Parser[Pages]:
    """A PAGE_DATA record of this length, up to its page data; ``last``: the guest's last pfn."""
    if length < HEAD.size + 8:
        raise StreamError(f"a batch of pages in {length} bytes")
    count, reserved = HEAD.unpack((yield HEAD.size))
    if not count:
        raise StreamError("a batch of no pages")
    if count > MAX_ENTRIES:
        raise StreamError(f"a batch of {count} pages, the limit is {MAX_ENTRIES}")
    if HEAD.size + 8 * count > length:
        raise StreamError(f"a batch of {count} pages in {length} bytes")
    entries = array("Q", (yield 8 * count))  # as they are in the file: x86 has no other order
    if last is not None and native.highest(entries) <= last:
        data_pages = count  # of no special type: as good as always
    else:
        data_pages = count_data(entries)
        if last is not None:
            refuse_beyond(entries, last)
    expected = HEAD.size + 8 * count + data_pages * PAGE_SIZE
    if length != expected:
        raise StreamError(
            f"a batch of {count} pages, {data_pages} of them with data, in {length} bytes;"
            f" it should be {expected}"
        )
    return Pages(entries, data_pages, reserved)


def count_data(entries: Sequence[int]) -> int:
    """How many of the pages have data in the stream. StreamError for a type that does not exist."""
    if max(entries) < 1 << TYPE_SHIFT:
        return len(entries)
    kinds = Counter(types(entries))
    for kind in kinds:
        if kind not in NAMES:
            at = types(entries).index(kind)
            raise StreamError(
                f"page {at} of a batch, pfn {entries[at] & PFN_MASK:#x}, has the unknown type"
                f" {kind:#x}"
            )
    return sum(number for kind, number in kinds.items() if kind in WITH_DATA)


def types(entries: Iterable[int]) -> list[int]:
    return [entry >> TYPE_SHIFT for entry in entries]


def pfns(entries: Iterable[int]) -> list[int]:
    return [entry & PFN_MASK for entry in entries]


def entry(kind: int, pfn: int) -> int:
    return kind << TYPE_SHIFT | pfn


def with_data(entries: Sequence[int]) -> Sequence[int]:
    """Those entries that have data, in the order of the data."""
    if max(entries) < 1 << TYPE_SHIFT:
        return entries
    return [one for one in entries if one >> TYPE_SHIFT in WITH_DATA]


CHUNK = 1 << 15  # pfns in one of PfnSet's numbers


class PfnSet:
    """Which pfns occurred. 4 KiB for every 32,768 pfns, so 32 MiB at most."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}

    def add(self, numbers: Sequence[int]) -> int | None:
        """Add pfns; one that is there already, if there is one. The limit is MAX_PFNS."""
        double = None
        for start, stop in runs(numbers):
            for index in range(start // CHUNK, (stop - 1) // CHUNK + 1):
                low, high = max(start - index * CHUNK, 0), min(stop - index * CHUNK, CHUNK)
                bits = ((1 << (high - low)) - 1) << low
                chunk = self._chunks.get(index, 0)
                both = chunk & bits
                if both and double is None:
                    double = index * CHUNK + (both & -both).bit_length() - 1
                self._chunks[index] = chunk | bits
        return double

    def discard(self, pfn: int) -> None:
        if pfn in self:
            self._chunks[pfn // CHUNK] ^= 1 << pfn % CHUNK

    def __contains__(self, pfn: int) -> bool:
        return bool(self._chunks.get(pfn // CHUNK, 0) >> pfn % CHUNK & 1)

    def __len__(self) -> int:
        return sum(chunk.bit_count() for chunk in self._chunks.values())


def runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Consecutive numbers together, as (start, stop)."""
    if not numbers:
        return
    start = numbers[0]
    if numbers[-1] - start == len(numbers) - 1 and tuple(numbers) == tuple(
        range(start, numbers[-1] + 1)
    ):
        yield start, numbers[-1] + 1  # a whole batch: the usual case
        return
    stop = start
    for number in numbers:
        if number != stop:
            yield start, stop
            start = number
        stop = number + 1
    yield start, stop


def refuse_beyond(entries: Sequence[int], last: int) -> None:
    """The guest has pages up to pfn ``last``."""
    if max(entries) <= last:
        return
    for one in pfns(entries):
        if one > last:
            raise StreamError(f"a page with pfn {one:#x}; the guest's last is {last:#x}")


LAST_PFN = MAX_PFNS - 1
