"""The state of a PV guest's vcpus: what it says of the guest's memory, also with frames for pfns.

And what the page start_info names.

Offsets are those of struct vcpu_guest_context in Xen's public/arch-x86/xen.h and of struct
start_info in public/xen.h, for 64 and 32 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.restore.pieces import StreamError
from hotplug.restore.records import CONTEXT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

GDT_ENTRIES_MAX = 7168  # FIRST_RESERVED_GDT_ENTRY
GDT_PER_FRAME = 512
GUEST_CR1_VALID = 1  # bit of ctrlreg[1]
FLAGS = 512  # bytes; where vcpu_guest_context.flags is, for both widths
ONLINE = 1 << 5  # VGCF_online
LEVELS = {8: 4, 4: 3}  # of page tables, by width


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


def localised(
    context: bytes, width: int, frame: Callable[[int, str, int], int], *, start: int | None
) -> bytes:
    """A vcpu's state with frames in the place of pfns, and online.

    ``frame`` takes a pfn, what it is, and the level of page table that it has to be, 0 for none.
    ``start`` is the frame of start_info, for vcpu 0.
    """
    layout = LAYOUTS[width]
    found = frames(context, width)
    state = bytearray(context)

    def put(at: int, value: int) -> None:
        layout.number.pack_into(state, at, value)

    put(FLAGS, int(layout.number.unpack_from(state, FLAGS)[0]) | ONLINE)
    if start is not None:
        put(layout.start_info, start)
    for index, pfn in enumerate(found.gdt):
        put(layout.gdt_frames + width * index, frame(pfn, "a vcpu's GDT", 0))
    kernel, *user = found.page_tables
    mfn = frame(kernel, "a vcpu's page table", LEVELS[width])
    put(layout.ctrlreg + 3 * width, register(mfn, width))
    for pfn in user:
        mfn = frame(pfn, "a vcpu's user page table", LEVELS[width])
        put(layout.ctrlreg + width, register(mfn, width))
    return bytes(state)


def register(mfn: int, width: int) -> int:
    """The cr3 for a frame, the inverse of ``root``."""
    if width == 8:
        return mfn << 12
    if mfn >> 32:
        raise StreamError(f"frame {mfn:#x} is beyond what a 32-bit guest can address")
    return (mfn << 12 | mfn >> 20) & 0xFFFFFFFF


def normalised(context: bytes, width: int, pfn: Callable[[int, str], int], *, first: bool) -> bytes:
    """A vcpu's state with pfns in the place of frames, as a save file has it.

    ``pfn`` takes a frame and what it is; ``first``: it is vcpu 0, which names start_info.
    """
    layout = LAYOUTS[width]
    state = bytearray(context[: CONTEXT_SIZE[width]])

    def get(at: int) -> int:
        return int(layout.number.unpack_from(state, at)[0])

    def put(at: int, value: int) -> None:
        layout.number.pack_into(state, at, value)

    if first:
        put(layout.start_info, pfn(get(layout.start_info), "start_info"))
    entries = get(layout.gdt_entries)
    if entries > GDT_ENTRIES_MAX:
        raise StreamError(f"a GDT of {entries} entries, the limit is {GDT_ENTRIES_MAX}")
    for index in range(-(-entries // GDT_PER_FRAME)):
        at = layout.gdt_frames + width * index
        put(at, pfn(get(at), "a vcpu's GDT"))
    at = layout.ctrlreg + 3 * width
    put(at, register(pfn(root(get(at), width), "a vcpu's page table"), width))
    at = layout.ctrlreg + width
    if width == 8 and get(at):
        user = pfn(root(get(at), width), "a vcpu's user page table")
        put(at, register(user, width) | GUEST_CR1_VALID)
    return bytes(state)
