"""What the state of a PV guest's vcpus says about the guest's memory, and the page start_info.

Offsets are those of struct vcpu_guest_context in Xen's public/arch-x86/xen.h and of struct
start_info in public/xen.h, for 64 and 32 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hotplug.restore.pieces import StreamError
from hotplug.restore.records import CONTEXT_SIZE

GDT_ENTRIES_MAX = 7168  # FIRST_RESERVED_GDT_ENTRY
GDT_PER_FRAME = 512
GUEST_CR1_VALID = 1  # bit of ctrlreg[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields are that hold pfns in a save file."""

    number: struct.Struct  # an unsigned long of the guest
    start_info: int  # user_regs.edx, of vcpu 0
    gdt_frames: int
    gdt_entries: int
    ctrlreg: int
    store: int  # of struct start_info
    console: int


LAYOUTS = {
    8: Layout(struct.Struct("<Q"), 616, 4832, 4960, 4984, store=56, console=72),
    4: Layout(struct.Struct("<I"), 524, 2640, 2704, 2716, store=44, console=52),
}


@dataclass(frozen=True, slots=True)
class Frames:
    """The pfns that a vcpu names."""

    start_info: int  # of vcpu 0 only; of others a register
    gdt: tuple[int, ...]
    page_tables: tuple[int, ...]  # roots: the kernel's, and the user's if there is one


def frames(context: bytes, width: int) -> Frames:
    """The frames that a vcpu's state names."""
    if len(context) != CONTEXT_SIZE[width]:
        raise StreamError(f"a vcpu has {len(context)} bytes of state, not {CONTEXT_SIZE[width]}")
    layout = LAYOUTS[width]

    def number(at: int) -> int:
        return int(layout.number.unpack_from(context, at)[0])

    entries = number(layout.gdt_entries)
    if entries > GDT_ENTRIES_MAX:
        raise StreamError(f"a GDT of {entries} entries, the limit is {GDT_ENTRIES_MAX}")
    gdt = tuple(
        number(layout.gdt_frames + width * index) for index in range(-(-entries // GDT_PER_FRAME))
    )
    cr1, cr3 = number(layout.ctrlreg + width), number(layout.ctrlreg + 3 * width)
    roots = [root(cr3, width)]
    if width == 8 and cr1 & GUEST_CR1_VALID:
        roots.append(root(cr1, width))
    return Frames(number(layout.start_info), gdt, tuple(roots))


def store_and_console(start_info: bytes, width: int) -> tuple[int, int]:
    """The pfns that the page start_info names."""
    layout = LAYOUTS[width]
    store, console = (
        int(layout.number.unpack_from(start_info, at)[0]) for at in (layout.store, layout.console)
    )
    return store, console


def root(register: int, width: int) -> int:
    """The pfn in cr3; of a 32-bit guest its upper bits are in the register's lower ones."""
    if width == 8:
        return register >> 12
    return (register >> 12 | register << 20) & 0xFFFFFFFF
