"""A guest's memory while it is restored: which pfn has which frame, and what is in it.

Every page that the image has gets a frame before its content comes. What the image calls zero is
neither mapped nor copied but cleared, and so is what gets a frame for other reasons: the
hypervisor does not promise that a fresh frame is zero. It scrubs what a dead domain leaves, but
not what a living one gives back (populate_physmap, free_heap_pages in xen/common/page_alloc.c).
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from hotplug.errors import RestoreError
from hotplug.restore.loops import native
from hotplug.restore.pages import PFN_MASK, POPULATED, TYPE_SHIFT
from hotplug.restore.xenlibs import words

if TYPE_CHECKING:
    from hotplug.restore.reading import Batch
    from hotplug.restore.xenlibs import Domain, Window, Xen

PAGE = 4096
INVALID = (1 << 64) - 1  # in a p2m: no frame
ORDER, EXTENT = 9, 512  # pages of a superpage
ZERO = bytes(PAGE)
CLEAR_PAGE = 16  # MMUEXT_CLEAR_PAGE
WINDOW = 4096  # pages that are mapped at once


def invalid(count: int) -> array[int]:
    return array("Q", (INVALID,)) * count


class Memory:
    """The frames of one domain.

    ``p2m`` has a word for each pfn: its mfn (of a PV domain), or itself (of others, whose frames
    are addressed by pfn); INVALID if it has no frame.
    """

    def __init__(self, xen: Xen, domain: Domain, limit: int = 0) -> None:
        """``limit``: so many pfns there may be without ``grow`` being called for them."""
        self._xen = xen
        self._domid = domain.domid
        self._is_hvm = domain.is_hvm
        self._limit = limit
        self.p2m = invalid(0)
        self.populated = 0
        self.cleared = 0

    def grow(self, pfns: int) -> None:
        """Make room for so many pfns."""
        if pfns > len(self.p2m):
            self.p2m.extend(invalid(pfns - len(self.p2m)))

    def frame(self, pfn: int, what: str) -> int:
        """The frame of a pfn that must have one."""
        frame = self.p2m[pfn] if pfn < len(self.p2m) else INVALID
        if frame == INVALID:
            raise RestoreError(f"{what} is in pfn {pfn:#x}, which the image does not have")
        return frame

    def frames(self, pfns: array[int]) -> array[int]:
        """The frames of pfns that must have some."""
        found = words(len(pfns))
        try:
            native.gather(self.p2m, pfns, found)
        except ValueError as error:
            raise RestoreError(f"{error} in domain {self._domid}") from error
        return found

    def has(self, pfn: int) -> bool:
        return pfn < len(self.p2m) and self.p2m[pfn] != INVALID

    def take(self, batch: Batch) -> None:
        """Give frames to pages, clear those that are zero, copy those that are plain."""
        self._reach(batch)
        self.populate_entries(batch.entries)
        self.clear(batch.zero)
        if batch.plain:
            self.install(batch.plain, batch.data, batch.offsets)

    def _reach(self, batch: Batch) -> None:
        """Make room for the pfns of a batch that get frames; the others may be anything."""
        last = max(batch.entries)
        if last > PFN_MASK:  # some have a type
            needed = (e & PFN_MASK for e in batch.entries if e >> TYPE_SHIFT in POPULATED)
            last = max(needed, default=0)
        if last >= max(self._limit, len(self.p2m)):
            raise RestoreError(
                f"the image has a page with pfn {last:#x}, beyond what domain {self._domid} may"
                " have",
                errno.ERANGE,
            )
        self.grow(last + 1)

    def count_differing(self, batch: Batch) -> int:
        """How many pages are not what the image has, after a VERIFY record; not page tables."""
        wanted = [batch.data[at : at + PAGE] for at in batch.offsets]
        wanted += [memoryview(ZERO)] * len(batch.zero)
        if not wanted:
            return 0
        with self.map(batch.plain + batch.zero, writable=False) as window, window.view() as view:
            return sum(
                view[index * PAGE : (index + 1) * PAGE] != page for index, page in enumerate(wanted)
            )

    def populate_entries(self, entries: array[int]) -> None:
        """Give a frame to each entry of a record that needs one and has none."""
        room = words(len(entries))
        count = native.unpopulated(entries, self.p2m, room)
        if count:
            self.populate(room[:count])

    def populate(self, pfns: array[int]) -> None:
        """Give frames to pfns that have none; in superpages where they are a row."""
        start, end = aligned_row(pfns)
        if start < end:
            taken = self._superpages(pfns[start:end])
            pfns = pfns[:start] + pfns[start + taken :]
        if pfns:
            self._pages(pfns)

    def _superpages(self, pfns: array[int]) -> int:
        """As many superpages as there are; how many pages that makes."""
        heads = pfns[::EXTENT]
        done = self._xen.populate(self._domid, heads, ORDER)
        for index in range(done):
            first, frame = pfns[index * EXTENT], heads[index]
            row = array("Q", range(frame, frame + EXTENT))
            self.p2m[first : first + EXTENT] = row
        self.populated += done * EXTENT
        return done * EXTENT

    def _pages(self, pfns: array[int]) -> None:
        frames = pfns[:]
        done = self._xen.populate(self._domid, frames)
        if done != len(pfns):
            raise RestoreError(
                f"the host has no memory for {len(pfns) - done} of the guest's pages",
                errno.ENOMEM,
            )
        native.scatter(self.p2m, pfns, frames)
        self.populated += done

    def clear(self, pfns: array[int]) -> None:
        """Make pages zero."""
        if not pfns:
            return
        self.cleared += len(pfns)
        if self._is_hvm:  # whose frames the hypervisor does not clear for us
            for start in range(0, len(pfns), WINDOW):
                with self.map(pfns[start : start + WINDOW]) as window:
                    window.clear()
            return
        self._xen.clear(self._domid, native.operations(CLEAR_PAGE, self.frames(pfns)))

    def map(self, pfns: array[int], *, writable: bool = True) -> Window:
        return self._xen.map(self._domid, self.frames(pfns), writable=writable)

    def install(self, pfns: array[int], data: memoryview, offsets: array[int]) -> None:
        """Copy pages of ``data`` into the guest."""
        for start in range(0, len(pfns), WINDOW):
            some = pfns[start : start + WINDOW]
            with self.map(some) as window:
                native.copy_pages(window.address, data, offsets[start : start + WINDOW])

    def localise(self, tables: bytearray) -> None:
        """Frames for pfns in page tables. What they point to gets a frame if it has none."""
        room = words(min(len(self.p2m), len(tables) // 8))
        try:
            while count := native.missing(tables, self.p2m, room):
                pfns = room[:count]
                self.populate(pfns)
                self.clear(pfns)
            native.localise(tables, self.p2m)
        except ValueError as error:
            raise RestoreError(str(error), errno.ERANGE) from error


def aligned_row(pfns: array[int]) -> tuple[int, int]:
    """The part of a row of consecutive pfns that superpages can cover, as indices."""
    count = len(pfns)
    if count < EXTENT or pfns[-1] - pfns[0] != count - 1:
        return 0, 0
    start = -pfns[0] % EXTENT
    end = start + (count - start) // EXTENT * EXTENT
    return (start, end) if end > start else (0, 0)
