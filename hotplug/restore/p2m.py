"""Where a PV guest keeps its p2m, the row of words that tells the frame of each of its pfns.

shared_info tells (struct arch_shared_info in xen/include/public/arch-x86/xen.h): either by a tree
of three levels, whose upper two hold frames, or by an address with the page tables in which it
counts. The guest may have room for far more pfns than it will ever have. So where all that follows
in a level is the same frame, which says nothing but that there is nothing, the p2m ends: as where
Xen's own saver ends it, since the guest is told the number.

Everything here comes from the guest and nothing of it is believed.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import SaveError
from hotplug.restore.records import MAX_PFNS
from hotplug.restore.vcpus import LEVELS, root

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
INVALID = (1 << 64) - 1
FRAME_MASK = 0x000FFFFFFFFFF000
ARCH = {8: 3088, 4: 2316}  # offset of shared_info.arch
LETTERS = {8: "Q", 4: "I"}  # a word of the guest, for struct and array
ADDRESSES = {8: (1 << 48) - 1, 4: (1 << 32) - 1}  # the bits of an address that count
XENS = {8: (0xFFFF800000000000, 0xFFFF87FFFFFFFFFF), 4: (0xF5800000, 0xFFFFFFFF)}
ENTRY_BITS = 9  # a page table has 512 entries
L2 = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where the p2m is."""

    pfns: int  # that it tells of
    frames: array[int]  # that hold it


@dataclass(frozen=True, slots=True)
class Guest:
    """What has to be known of a guest to find its p2m."""

    width: int
    frames: int  # of the host: all are below
    limit: int  # so many pfns it may have
    read: Callable[[array[int]], bytes]  # the content of frames of the guest

    @property
    def per_frame(self) -> int:
        return PAGE // self.width

    def words(self, frames: array[int]) -> array[int]:
        """Frames full of words of the guest's width; what is invalid in 32 bits is so in 64."""
        return widened(self.read(frames), self.width)

    def believe(self, frames: array[int], what: str) -> None:
        if not frames or min(frames) == 0 or max(frames) >= self.frames:
            raise SaveError(f"the guest's p2m cannot be found: {what} names no frame of this host")

    def allow(self, pfns: int) -> int:
        if not 0 < pfns <= self.limit:
            raise SaveError(f"the guest says that it has {pfns} pages, the limit is {self.limit}")
        return pfns


def widened(content: bytes, width: int) -> array[int]:
    """Words of a guest as 64-bit ones."""
    found = array(LETTERS[width], content)
    if width == 8:
        return found
    return array("Q", (word if word != 0xFFFFFFFF else INVALID for word in found))


def find(guest: Guest, shared_info: bytes) -> Place:
    """Where the p2m is. SaveError if what the guest says of it cannot be."""
    layout = f"<6{LETTERS[guest.width]}"
    # max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation
    pfns, top, _, cr3, address, _ = struct.unpack_from(layout, shared_info, ARCH[guest.width])
    if not 0 < pfns <= MAX_PFNS:
        raise SaveError(f"the guest says that it has {pfns} pages, the limit is {MAX_PFNS}")
    if cr3:
        return by_address(guest, pfns, root(cr3, guest.width), address)
    return by_tree(guest, pfns, top)


def by_tree(guest: Guest, pfns: int, top: int) -> Place:
    per = guest.per_frame
    if pfns > per**3:
        raise SaveError(f"the guest says that it has {pfns} pages, more than its p2m can tell of")
    guest.believe(array("Q", [top]), "shared_info")
    middle = guest.words(array("Q", [top]))[: (pfns - 1) // per**2 + 1]
    guest.believe(middle, "the p2m's top level")
    kept = same_at_end(middle) + 1  # one of those that are alike remains
    pfns = guest.allow(min(pfns, kept * per**2))
    leaves = guest.words(middle[:kept])[: (pfns - 1) // per + 1]
    guest.believe(leaves, "the p2m's middle level")
    return Place(pfns, leaves)


def same_at_end(frames: array[int]) -> int:
    """The index of the first of the frames at the end that are all the same."""
    index = len(frames) - 1
    while index and frames[index - 1] == frames[-1]:
        index -= 1
    return index


def by_address(guest: Guest, pfns: int, frame: int, address: int) -> Place:
    refuse_address(guest, pfns, address)
    address &= ADDRESSES[guest.width]
    tables = array("Q", [frame])
    guest.believe(tables, "shared_info")
    base = 0  # number of the entry that the first table begins with, of all in its level
    for level in range(LEVELS[guest.width], 0, -1):
        shift = 12 + ENTRY_BITS * (level - 1)
        end = address + (pfns - 1) // guest.per_frame * PAGE
        first, last = address >> shift, end >> shift
        entries = array("Q", guest.read(tables))[first - base : last - base + 1]
        tables = array("Q", ((entry & FRAME_MASK) >> 12 for entry in entries))
        guest.believe(tables, f"a page table of level {level}")
        if level == L2:
            tables = without_end(tables)
            covered = ((first + len(tables)) << shift) - address
            pfns = guest.allow(min(pfns, covered // PAGE * guest.per_frame))
        base = first << ENTRY_BITS
    return Place(pfns, tables)


def refuse_address(guest: Guest, pfns: int, address: int) -> None:
    """The p2m is where a guest may have something."""
    last = address + ((pfns - 1) // guest.per_frame + 1) * PAGE - 1
    start, end = XENS[guest.width]
    beyond = last >> (8 * guest.width)
    if guest.width == 8:
        beyond = beyond or not (canonical(address) and canonical(last))
    if beyond or address % PAGE or (address <= end and last >= start):
        raise SaveError(f"the guest's p2m cannot be at {address:#x}")


def canonical(address: int) -> bool:
    return address >> 47 in (0, (1 << 17) - 1)


def without_end(tables: array[int]) -> array[int]:
    """Page tables of level 1 without those at the end that are all the same."""
    index = same_at_end(tables)
    return tables if index in (0, len(tables) - 1) else tables[:index]
