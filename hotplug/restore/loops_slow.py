"""The loops over pages in Python: what ``_native.c`` does, for where that could not be built.

Same names, arguments, results and errors, held to the same tests; _native.c says what they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096
EXTENT = 512  # pages of a superpage
INVALID = (1 << 64) - 1
PFN_MASK = (1 << 52) - 1
FRAME_MASK = 0x000FFFFFFFFFF000
PRESENT, SUPERPAGE = 1, 0x80
PIN, BROKEN, XALLOC, XTAB = 8, 13, 14, 15
RESERVED = range(5, 9)
ZERO = bytes(PAGE)


def is_table(kind: int) -> bool:
    return 1 <= kind & 7 <= 4 and kind < BROKEN


def highest(words: bytes | array[int]) -> int:
    return max(memoryview(words).cast("B").cast("Q"), default=0)


def classify(entries: array[int], types: bytearray, limit: int, kinds: bytearray) -> int:
    if len(types) < limit or len(kinds) < len(entries):
        raise ValueError("a buffer is too small")
    for entry in entries:
        if entry >> 60 in RESERVED:
            raise ValueError(
                f"pfn {entry & PFN_MASK} has the type {entry >> 60}, which is reserved"
            )
        if entry & PFN_MASK >= limit:
            raise ValueError(f"pfn {entry & PFN_MASK} is beyond the guest's last one, {limit - 1}")
    data = 0
    for index, entry in enumerate(entries):
        types[entry & PFN_MASK] = kinds[index] = entry >> 60
        data += entry >> 60 < BROKEN
    return data


def unpopulated(entries: array[int], p2m: array[int], out: array[int]) -> int:
    if len(out) < len(entries):
        raise ValueError("a buffer is too small")
    seen = set()
    count = 0
    for entry in entries:
        pfn = entry & PFN_MASK
        if entry >> 60 in (BROKEN, XTAB) or pfn >= len(p2m) or p2m[pfn] != INVALID or pfn in seen:
            continue
        seen.add(pfn)
        out[count] = pfn
        count += 1
    return count


def scatter(target: array[int], indices: array[int], values: array[int], row: int) -> None:
    if len(values) < len(indices) or any(index + row > len(target) for index in indices):
        raise ValueError("an index is out of range")
    for index, value in zip(indices, values, strict=False):
        target[index : index + row] = array("Q", range(value, value + row))


def superpages(pfns: array[int], heads: array[int], rest: array[int]) -> tuple[int, int]:
    if min(len(heads), len(rest)) < len(pfns):
        raise ValueError("a buffer is too small")
    found, others = 0, 0
    at = 0
    while at < len(pfns):
        first = pfns[at]
        row = pfns[at : at + EXTENT]
        if first % EXTENT == 0 and row == array("Q", range(first, first + EXTENT)):
            heads[found] = first
            found += 1
            at += EXTENT
        else:
            rest[others] = first
            others += 1
            at += 1
    return found, others


def gather(table: array[int], indices: array[int], out: array[int]) -> None:
    if len(out) < len(indices):
        raise ValueError("a buffer is too small")
    for place, index in enumerate(indices):
        if index >= len(table) or table[index] == INVALID:
            raise ValueError(f"pfn {index} has no frame")
        out[place] = table[index]


def find_zeros(data: memoryview, zeros: bytearray | memoryview) -> None:
    if len(data) // PAGE < len(zeros):
        raise ValueError("a buffer is too small")
    for index in range(len(zeros)):
        if data[index * PAGE : (index + 1) * PAGE] == ZERO:
            zeros[index] = 1


def find_zeros_in_file(
    fd: int, place: int, zeros: bytearray, buffer: bytearray, extent: array[int]
) -> None:
    if len(extent) < 2:
        raise ValueError("a buffer is too small")
    end = place + PAGE * len(zeros)
    at = 0
    while at < len(zeros):
        offset = place + PAGE * at
        if not extent[0] <= offset < extent[1]:
            extent[0], extent[1] = next_data(fd, offset, end)
        data, hole = min(max(extent[0], offset), end), min(extent[1], end)
        following = at + (data - offset) // PAGE
        zeros[at:following] = b"\1" * (following - at)
        at = following
        following = -(-(hole - place) // PAGE)
        for index in range(at, following if len(buffer) >= PAGE else at):
            page = os.pread(fd, PAGE, place + PAGE * index)
            if len(page) < PAGE:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
            zeros[index] |= page == ZERO
        at = max(at, following)


def next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
        return data, os.lseek(fd, data, os.SEEK_HOLE)
    except OSError as error:
        return end if error.errno == errno.ENXIO else offset, end


def place_pages(
    entries: array[int],
    zeros: bytearray,
    base: int,
    as_hvm: bool,  # noqa: FBT001 - as the one in C
    plain: array[int],
    zero: array[int],
    tables: array[int],
    places: array[int],
) -> tuple[int, int, int]:
    with_data = sum(entry >> 60 < BROKEN for entry in entries)
    if min(map(len, (plain, zero, tables, places))) < len(entries) or len(zeros) < with_data:
        raise ValueError("a buffer is too small")
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    plain_places, table_places = [], []
    page = -1
    for entry in entries:
        kind, pfn = entry >> 60, entry & PFN_MASK
        if kind == XALLOC:
            found[1].append(pfn)
        if kind >= BROKEN:
            continue
        page += 1
        if zeros[page]:
            found[1].append(pfn)
        elif not as_hvm and is_table(kind):
            found[2].append(pfn)
            table_places.append(base + page * PAGE)
        else:
            found[0].append(pfn)
            plain_places.append(base + page * PAGE)
    for row, pfns in zip((plain, zero, tables), found, strict=True):
        row[: len(pfns)] = array("Q", pfns)
    both = array("Q", plain_places + table_places)
    places[: len(both)] = both
    return len(found[0]), len(found[1]), len(found[2])


def read_pages(fd: int, address: int, places: array[int]) -> None:
    for index, place in enumerate(places):
        page = (ctypes.c_char * PAGE).from_address(address + index * PAGE)
        done = 0
        while done < PAGE:
            more = os.preadv(fd, [memoryview(page)[done:]], place + done)
            if not more:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
            done += more


def copy_pages(address: int, data: memoryview, places: array[int]) -> None:
    if any(place + PAGE > len(data) for place in places):
        raise ValueError("an offset is out of range")
    for index, place in enumerate(places):
        ctypes.memmove(address + index * PAGE, bytes(data[place : place + PAGE]), PAGE)


def missing(tables: array[int], p2m: array[int], out: array[int]) -> int:
    found: dict[int, None] = {}
    for entry in memoryview(tables).cast("B").cast("Q"):
        pfn = (entry & FRAME_MASK) // PAGE
        if not entry & PRESENT:
            continue
        if len(found) == len(out):
            break
        if pfn >= len(p2m):
            raise ValueError(f"a page table points to pfn {pfn}, the last one is {len(p2m) - 1}")
        if p2m[pfn] == INVALID:
            found[pfn] = None
    for place, pfn in enumerate(found):
        out[place] = pfn
    return len(found)


def localise(tables: array[int], p2m: array[int]) -> None:
    entries = memoryview(tables).cast("B").cast("Q")
    for entry in entries:
        pfn = (entry & FRAME_MASK) // PAGE
        if entry & PRESENT and (pfn >= len(p2m) or p2m[pfn] == INVALID):
            raise ValueError(f"a page table points to pfn {pfn}, which has no frame")
    for place, entry in enumerate(entries):
        if entry & PRESENT:
            frame = p2m[(entry & FRAME_MASK) // PAGE]
            entries[place] = entry & ~FRAME_MASK | frame * PAGE


def operations(command: int, frames: array[int]) -> bytes:
    return b"".join(struct.pack("<QQQ", command, frame, 0) for frame in frames)


def pinned(types: bytearray, level: int, out: array[int]) -> int:
    found = [pfn for pfn, kind in enumerate(types) if kind == PIN | level]
    if len(found) > len(out):
        raise ValueError("a buffer is too small")
    for place, pfn in enumerate(found):
        out[place] = pfn
    return len(found)


def describe(
    types: array[int], frames: array[int], first: int, entries: array[int], mapped: array[int]
) -> int:
    if min(len(frames), len(entries), len(mapped)) < len(types):
        raise ValueError("a buffer is too small")
    count = 0
    for place, word in enumerate(types):
        kind, rest = word >> 28, word & 0x0FFFFFFF
        if rest or kind > XTAB or kind in RESERVED:
            raise ValueError(f"pfn {first + place} has the unknown type {word}")
        entries[place] = kind << 60 | first + place
        if kind < BROKEN:
            mapped[count] = frames[place]
            count += 1
    return count


def runs(
    data: memoryview,
    entries: array[int],
    look: bool,  # noqa: FBT001 - as the one in C
    as_hvm: bool,  # noqa: FBT001
    out: array[int],
    tables: array[int],
) -> tuple[int, int]:
    kinds = [entry >> 60 for entry in entries if entry >> 60 < BROKEN]
    if min(len(out), len(tables)) < len(entries) or len(data) // PAGE < len(kinds):
        raise ValueError("a buffer is too small")
    count = tabled = 0
    for place, kind in enumerate(kinds):
        page = 1
        if not as_hvm and is_table(kind):
            page = 2
            tables[tabled] = kind << 60 | place
            tabled += 1
        elif look and data[place * PAGE : (place + 1) * PAGE] == ZERO:
            page = 0
        if count and out[count - 1] & 3 == page:
            out[count - 1] += 4
        else:
            out[count] = 4 | page
            count += 1
    return count, tabled


def normalise(
    data: memoryview,
    tables: array[int],
    levels: int,
    compat: int,
    m2p: memoryview,
    p2m: array[int],
    out: bytearray,
) -> None:
    frames = memoryview(m2p).cast("B").cast("Q")
    pages = memoryview(data).cast("B")
    if any((one & PFN_MASK) >= len(pages) // PAGE for one in tables) or (
        len(out) // PAGE < len(tables)
    ):
        raise ValueError("a buffer is too small")
    for place, one in enumerate(tables):
        at = (one & PFN_MASK) * PAGE
        table = struct.unpack_from("<512Q", pages, at)
        level = one >> 60 & 7
        result = normalised(table, level, xen_entries(table, level, levels, compat), frames, p2m)
        struct.pack_into("<512Q", out, place * PAGE, *result)


def xen_entries(table: Sequence[int], level: int, levels: int, compat: int) -> range:
    if (levels, level) == (4, 4):
        return range(256, 272)
    if (levels, level) == (3, 3):
        return range(4, 512)
    if (levels, level) == (3, 2) and (table[428] & FRAME_MASK) // PAGE == compat:
        return range(428, 512)
    return range(0)


def normalised(
    table: Sequence[int], level: int, xens: range, m2p: memoryview, p2m: array[int]
) -> list[int]:
    result = []
    for place, found in enumerate(table):
        entry = 0 if place in xens else found
        if entry & PRESENT:
            frame = (entry & FRAME_MASK) // PAGE
            what = f"entry {place} of a page table of level {level}"
            if level > 1 and entry & SUPERPAGE:
                raise ValueError(f"{what} maps a superpage")
            pfn = m2p[frame] if frame < len(m2p) else INVALID
            if pfn >= len(p2m) or p2m[pfn] != frame:
                raise ValueError(f"{what} maps a frame that is not the guest's")
            entry = entry & ~FRAME_MASK | pfn * PAGE
        result.append(entry)
    return result
