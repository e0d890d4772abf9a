"""The loops over pages in Python: what ``_native.c`` does, for where that could not be built.

Same names, arguments, results and errors, held to the same tests; _native.c says what they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array

PAGE = 4096
EXTENT = 512  # pages of a superpage
INVALID = (1 << 64) - 1
PFN_MASK = (1 << 52) - 1
FRAME_MASK = 0x000FFFFFFFFFF000
PRESENT = 1
PIN, BROKEN, XALLOC, XTAB = 8, 13, 14, 15
RESERVED = range(5, 9)
ZERO = bytes(PAGE)


def is_table(kind: int) -> bool:
    return 1 <= kind & 7 <= 4 and kind < BROKEN


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


def missing(tables: bytearray, p2m: array[int], out: array[int]) -> int:
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


def localise(tables: bytearray, p2m: array[int]) -> None:
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
