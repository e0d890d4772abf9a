"""A guest's memory while it is restored: which pfn has which frame, and what is in it.

Every page that the image has gets a frame before its content comes. What the image calls zero is
neither mapped nor copied but cleared, and so is what gets a frame for other reasons: the
hypervisor does not promise that a fresh frame is zero. It scrubs what a dead domain leaves, but
not what a living one gives back (populate_physmap, free_heap_pages in xen/common/page_alloc.c).
"""

from __future__ import annotations

import errno
from _queue import SimpleQueue  # queue's, without what that imports
from _thread import allocate_lock, start_new_thread
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import RestoreError
from hotplug.restore.loops import native
from hotplug.restore.pages import PFN_MASK, POPULATED, TYPE_SHIFT
from hotplug.restore.xenlibs import address_of, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hotplug.restore.reading import Batch, Part, Source
    from hotplug.restore.xenlibs import Domain, Window, Xen

PAGE = 4096
INVALID = (1 << 64) - 1  # in a p2m: no frame
ORDER, EXTENT = 9, 512  # pages of a superpage
ZERO = bytes(PAGE)
CLEAR_PAGE = 16  # MMUEXT_CLEAR_PAGE
WINDOW = 4096  # pages that are mapped at once
GROWTH = 1 << 20  # pfns that the p2m grows by at once, 8 MiB
# How many windows may wait to be unmapped, and batches to be cleared: a dom0 that is a PVH domain
# itself gives a page of its own for each that it has mapped.
WAITING = 6


def invalid(count: int) -> array[int]:
    return array("Q", (INVALID,)) * count


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages by what is to be done with them: pfns, and where the data is."""

    source: Source
    plain: array[int]
    plain_places: array[int]
    zero: array[int]
    tables: array[int]
    table_places: array[int]

    def read_tables(self) -> array[int]:
        """The page tables, one after the other."""
        return read(self.source, self.table_places)


def read(source: Source, places: array[int]) -> array[int]:
    """Pages, as words."""
    found = words(len(places) * PAGE // 8)
    source.read(address_of(found), places)
    return found


def sort(parts: list[Part], source: Source, *, as_hvm: bool) -> Pages:
    """Pages of which none comes twice."""
    found = Pages(source, *(array("Q") for _ in range(5)))
    for part in parts:
        plain, zero, tables, places = (words(len(part.entries)) for _ in range(4))
        plains, zeros, tabled = native.place_pages(
            part.entries, part.zeros, part.place, as_hvm, plain, zero, tables, places
        )
        found.plain.extend(plain[:plains])
        found.plain_places.extend(places[:plains])
        found.zero.extend(zero[:zeros])
        found.tables.extend(tables[:tabled])
        found.table_places.extend(places[plains : plains + tabled])
    return found


class Background:
    """What is done beside the rest, in its order, by another processor if there is one."""

    def __init__(self) -> None:
        self._due: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()  # as many as may still be put there
        for _ in range(WAITING):
            self._room.put(None)
        self._error: Exception | None = None
        self._begun = False

    def start(self, work: Callable[[], object]) -> None:
        """It waits for its turn, and so do we if too much does."""
        if not self._begun:
            try:
                start_new_thread(self._run, ())  # a threading.Thread waits until it has begun
            except RuntimeError:  # this process may have no more
                work()
                return
            self._begun = True
        self._room.get()
        self._due.put(work)

    def _run(self) -> None:
        """A thread's life: the process ends without it."""
        while True:
            work = self._due.get()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                self._error = self._error or error
            self._room.put(None)

    def wait(self) -> None:
        """Until all is done; raises what went wrong first."""
        if self._begun:
            done = allocate_lock()
            done.acquire()
            self._room.get()
            self._due.put(done.release)
            done.acquire()
        self.check()

    def check(self) -> None:
        """Raises what went wrong so far."""
        error, self._error = self._error, None
        if error is not None:
            raise error


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
        self._background = Background()

    def grow(self, pfns: int) -> None:
        """Make room for so many pfns; in steps, or it would take twice the room for a moment."""
        while pfns > len(self.p2m):
            self.p2m.extend(invalid(min(pfns - len(self.p2m), GROWTH)))

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

    def take(self, batch: Batch) -> Iterator[tuple[Pages, bool]]:
        """Give frames to pages; then these by what is to be done with them.

        And whether some of them may have come before, as they do in images of guests that ran
        meanwhile. In that case they come in groups, and each has to be dealt with before the next.
        """
        entries = array("Q", b"".join(part.entries for part in batch.parts))
        self._reach(entries)
        if self._populate_entries(entries) == sum(part.frames for part in batch.parts):
            yield sort(batch.parts, batch.source, as_hvm=self._is_hvm), False
            return
        self.settle()
        for part in batch.parts:
            for piece in part.pieces():
                yield sort([piece], batch.source, as_hvm=self._is_hvm), True

    def put(self, pages: Pages, *, again: bool) -> None:
        """Clear the pages that are zero, fill those that are plain.

        If none of them has come before, they are cleared while the next ones are read.
        """
        self._background.check()
        if again or self._is_hvm:
            self.clear(pages.zero)
        elif pages.zero:
            self.cleared += len(pages.zero)
            operations = native.operations(CLEAR_PAGE, self.frames(pages.zero))
            self._background.start(lambda: self._xen.clear(self._domid, operations))
        if pages.plain:
            self._install(pages)
        if again:
            self.settle()

    def settle(self) -> None:
        """Wait until what is to be zero is, and nothing of the guest is mapped any more."""
        self._background.wait()

    def _reach(self, entries: array[int]) -> None:
        """Make room for the pfns of entries that get frames; the others may be anything."""
        if not self._limit:
            return  # nor is there one beyond the last, which the image has told
        last: int = native.highest(entries)
        if last > PFN_MASK:  # some have a type
            needed = (e & PFN_MASK for e in entries if e >> TYPE_SHIFT in POPULATED)
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
        self.settle()
        found = sort(batch.parts, batch.source, as_hvm=self._is_hvm)
        wanted = memoryview(
            read(batch.source, found.plain_places).tobytes() + ZERO * len(found.zero)
        )
        if not wanted:
            return 0
        with self.map(found.plain + found.zero, writable=False) as window, window.view() as view:
            return sum(
                view[at : at + PAGE] != wanted[at : at + PAGE] for at in range(0, len(wanted), PAGE)
            )

    def _populate_entries(self, entries: array[int]) -> int:
        """Give a frame to each entry that needs one and has none; how many these are."""
        room = words(len(entries))
        count: int = native.unpopulated(entries, self.p2m, room)
        if count:
            self.populate(room[:count])
        return count

    def populate(self, pfns: array[int]) -> None:
        """Give frames to pfns that have none; in superpages where they are a row."""
        heads, rest = words(len(pfns)), words(len(pfns))
        rows, others = native.superpages(pfns, heads, rest)
        rest = rest[:others]
        if rows:
            heads = heads[:rows]
            for head in heads[self._superpages(heads) :]:
                rest.extend(range(head, head + EXTENT))
        if rest:
            self._pages(rest)

    def _superpages(self, heads: array[int]) -> int:
        """As many superpages as there are; how many that is."""
        frames = heads[:]
        done = self._xen.populate(self._domid, frames, ORDER)
        native.scatter(self.p2m, heads[:done], frames, EXTENT)
        self.populated += done * EXTENT
        return done

    def _pages(self, pfns: array[int]) -> None:
        frames = pfns[:]
        done = self._xen.populate(self._domid, frames)
        if done != len(pfns):
            raise RestoreError(
                f"the host has no memory for {len(pfns) - done} of the guest's pages",
                errno.ENOMEM,
            )
        native.scatter(self.p2m, pfns, frames, 1)
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

    def _install(self, pages: Pages) -> None:
        """Read plain pages into the guest; they are mapped until ``settle``, perhaps."""
        for start in range(0, len(pages.plain), WINDOW):
            some = slice(start, start + WINDOW)
            window = self.map(pages.plain[some])
            try:
                pages.source.read(window.address, pages.plain_places[some])
            finally:
                self._background.start(window.unmap)

    def localise(self, tables: array[int]) -> None:
        """Frames for pfns in page tables. What they point to gets a frame if it has none."""
        room = words(min(len(self.p2m), len(tables)))
        try:
            while count := native.missing(tables, self.p2m, room):
                pfns = room[:count]
                self.populate(pfns)
                self.clear(pfns)
            native.localise(tables, self.p2m)
        except ValueError as error:
            raise RestoreError(str(error), errno.ERANGE) from error
