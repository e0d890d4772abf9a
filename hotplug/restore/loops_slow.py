"""The loops over pages in Python: what ``_native.c`` does, for where that could not be built.

Same names, arguments, results and errors, held to the same tests; _native.c says what they are.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

PAGE = 4096
INVALID = (1 << 64) - 1
PFN_MASK = (1 << 52) - 1
FRAME_MASK = 0x000FFFFFFFFFF000
PRESENT = 1
PIN, BROKEN, XTAB = 8, 13, 15
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


def scatter(target: array[int], indices: array[int], values: array[int]) -> None:
    if len(values) < len(indices) or any(index >= len(target) for index in indices):
        raise ValueError("an index is out of range")
    for index, value in zip(indices, values, strict=False):
        target[index] = value


def gather(table: array[int], indices: array[int], out: array[int]) -> None:
    if len(out) < len(indices):
        raise ValueError("a buffer is too small")
    for place, index in enumerate(indices):
        if index >= len(table) or table[index] == INVALID:
            raise ValueError(f"pfn {index} has no frame")
        out[place] = table[index]


def sort_pages(
    entries: array[int],
    data: memoryview,
    holes: bytearray,
    plain: array[int],
    zero: array[int],
    tables: array[int],
    kept: array[int],
    as_hvm: bool,  # noqa: FBT001 - as the one in C
) -> tuple[int, int, int]:
    rows = (plain, zero, tables, kept)
    sizes = (len(data) // PAGE, len(holes), *map(len, rows))
    if min(sizes) < len(entries):
        raise ValueError("a buffer is too small")
    plains, zeros, tabled = [], [], []
    for index, entry in enumerate(entries):
        if holes[index]:
            zeros.append(index)
        elif not as_hvm and is_table(entry >> 60):
            tabled.append(index)
        elif data[index * PAGE : (index + 1) * PAGE] == ZERO:
            zeros.append(index)
        else:
            plains.append(index)
    for row, indices in ((plain, plains), (zero, zeros), (tables, tabled)):
        for place, index in enumerate(indices):
            row[place] = entries[index] & PFN_MASK
    for place, index in enumerate((*plains, *tabled)):
        kept[place] = index * PAGE
    return len(plains), len(zeros), len(tabled)


def copy_pages(address: int, data: memoryview, offsets: array[int]) -> None:
    if any(offset + PAGE > len(data) for offset in offsets):
        raise ValueError("an offset is out of range")
    for place, offset in enumerate(offsets):
        ctypes.memmove(address + place * PAGE, bytes(data[offset : offset + PAGE]), PAGE)


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
