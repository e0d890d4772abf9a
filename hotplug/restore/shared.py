"""Two pages that a PV guest and Xen have in common: shared_info and start_info.

Pure functions over their bytes (xen/include/public/xen.h); offsets differ for 32-bit guests. Of
shared_info the guest's image counts for the vcpus and the ``arch`` part; event channels start
anew, and the wall clock is Xen's. In start_info, frames and event channels are this host's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VCPUS, VCPU_SIZE = 32, 64  # vcpu_info[] and bytes of each
START_INFO_SIZE = 128  # bytes that are looked at


@dataclass(frozen=True, slots=True)
class InfoLayout:
    """struct shared_info: offset and size in bytes."""

    word: str  # struct's letter for a guest's word
    selector: int  # evtchn_pending_sel, within vcpu_info
    pending: slice
    mask: slice
    arch: slice
    frame_list: int  # pfn_to_mfn_frame_list_list


@dataclass(frozen=True, slots=True)
class StartLayout:
    """struct start_info."""

    word: str
    pages: int
    shared: int
    flags: int
    store: int
    store_channel: int
    console: int
    console_channel: int


INFO = {
    8: InfoLayout("Q", 8, slice(2048, 2560), slice(2560, 3072), slice(3088, 3136), 3096),
    4: InfoLayout("I", 4, slice(2048, 2176), slice(2176, 2304), slice(2316, 2344), 2320),
}
START = {
    8: StartLayout("Q", 32, 40, 48, 56, 64, 72, 80),
    4: StartLayout("I", 32, 36, 40, 44, 48, 52, 56),
}


def merged_info(width: int, current: bytes, saved: bytes) -> bytes:
    """The new shared_info: what Xen has made, with what the image has."""
    layout = INFO[width]
    page = bytearray(current)
    vcpus = slice(0, VCPUS * VCPU_SIZE)
    page[vcpus] = saved[vcpus]
    page[layout.arch] = saved[layout.arch]
    struct.pack_into(f"<{layout.word}", page, layout.frame_list, 0)
    for vcpu in range(VCPUS):
        struct.pack_into(f"<{layout.word}", page, vcpu * VCPU_SIZE + layout.selector, 0)
    page[layout.pending] = bytes(layout.pending.stop - layout.pending.start)
    page[layout.mask] = b"\xff" * (layout.mask.stop - layout.mask.start)
    return bytes(page)


@dataclass(frozen=True, slots=True)
class Start:
    """What a guest is told at its start, and the frames that it shares."""

    page: bytes  # the first START_INFO_SIZE bytes
    store: int  # mfn
    console: int  # mfn


def new_start(
    width: int,
    saved: bytes,
    *,
    pages: int,
    shared_frame: int,
    frame: Callable[[int, str], int],
    store_channel: int,
    console_channel: int,
) -> Start:
    """start_info for this host; ``frame`` finds the frame of a pfn."""
    layout = START[width]
    word = f"<{layout.word}"
    page = bytearray(saved[:START_INFO_SIZE])
    store = frame(struct.unpack_from(word, page, layout.store)[0], "xenstore's page")
    console = frame(struct.unpack_from(word, page, layout.console)[0], "the console's page")
    for at, value in (
        (layout.pages, pages),
        (layout.shared, shared_frame << 12),
        (layout.store, store),
        (layout.console, console),
    ):
        struct.pack_into(word, page, at, value)
    for at, value in (
        (layout.flags, 0),
        (layout.store_channel, store_channel),
        (layout.console_channel, console_channel),
    ):
        struct.pack_into("<I", page, at, value)
    return Start(bytes(page), store, console)
