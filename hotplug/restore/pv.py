"""Restoring a PV guest, step by step.

A PV guest knows its memory by machine frames, so pfns in the image become frames: in page tables,
in the state of its processors, in the list that tells the guest its own frames (p2m).

The order is forced by the hypervisor's types: a frame that dom0 has mapped writable cannot become a
page table or a GDT. So every window is unmapped before the processors' state is set and page tables
are pinned.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import RestoreError
from hotplug.restore import shared, vcpus
from hotplug.restore.loops import native
from hotplug.restore.memory import Memory
from hotplug.restore.pages import L1TAB, L4TAB, NOTAB, PINNED
from hotplug.restore.pieces import P2mFrames, PvInfo, Vcpu
from hotplug.restore.records import Libxc
from hotplug.restore.xenlibs import PIN_L1, words

if TYPE_CHECKING:
    from hotplug.restore.guest import Request, Results
    from hotplug.restore.pieces import Record
    from hotplug.restore.reading import Batch
    from hotplug.restore.xenlibs import Domain, Xen

PAGE, ENTRIES = 4096, 512  # bytes of a page, and words, as in a page table
# Page tables that are kept here until they are written, 16 MB: most guests have no more, and then
# each pfn that they point to has its frame already, of a superpage where that can be.
TABLES = 4096


@dataclass(frozen=True, slots=True)
class Tables:
    """Page tables: pfns, and their entries one after the other."""

    pfns: array[int]
    entries: array[int]

    def without(self, pfns: set[int]) -> Tables:
        if pfns.isdisjoint(self.pfns):
            return self
        kept = [index for index, pfn in enumerate(self.pfns) if pfn not in pfns]
        entries = array("Q")
        for index in kept:
            entries.extend(self.entries[index * ENTRIES : (index + 1) * ENTRIES])
        return Tables(array("Q", (self.pfns[index] for index in kept)), entries)


class PvGuest:
    """A PV guest that is being restored."""

    def __init__(self, xen: Xen, domain: Domain, request: Request) -> None:
        self._xen = xen
        self._domain = domain
        self._request = request
        self.memory = Memory(xen, domain)
        self._width = 0
        self._frames: array[int] = array("Q")  # pfns of the pages of the guest's own p2m
        self._tables: list[Tables] = []  # that wait to be written
        self._vcpus: dict[tuple[int, int], bytes] = {}  # by record type and number
        self._types = bytearray()

    def record(self, record: Record) -> None:
        """A record that only PV guests have."""
        match record.value:
            case PvInfo(width=width):
                self._set_width(width)
            case P2mFrames(start, end, frames):
                self._take_frames(start, end, frames)
            case Vcpu(vcpu=number, blob=blob) if blob:
                self._take_vcpu(record.kind, number, blob)
        if record.kind == Libxc.SHARED_INFO:
            self._set_shared_info(record.body)

    def _set_width(self, width: int) -> None:
        self._width = width
        domid = self._domain.domid
        if self._xen.address_size(domid) != width * 8:
            self._xen.set_address_size(domid, width * 8)

    def _take_frames(self, start: int, end: int, frames: tuple[int, ...]) -> None:
        self.memory.grow(end + 1)
        per_frame = PAGE // self._width
        first, need = start // per_frame, end // per_frame + 1
        self._frames.extend(words(max(0, need - len(self._frames))))
        self._frames[first : first + len(frames)] = array("Q", frames)

    def _take_vcpu(self, kind: int, number: int, blob: bytes) -> None:
        if number > self._domain.max_vcpu_id:
            raise RestoreError(
                f"the image has vcpu {number}, but the domain's last one is"
                f" {self._domain.max_vcpu_id}"
            )
        self._vcpus[kind, number] = blob

    def _set_shared_info(self, body: bytes) -> None:
        frame = [self._domain.shared_info_frame]
        with self._xen.map(self._domain.domid, frame) as window, window.view() as view:
            view[:] = shared.merged_info(self._width, bytes(view), body)

    def batch(self, batch: Batch) -> None:
        """Pages: give them frames, clear those that are zero, copy the others."""
        for pages, again in self.memory.take(batch):
            if again:
                self._forget_tables({*pages.plain, *pages.zero, *pages.tables})
            self.memory.put(pages, again=again)
            if pages.tables:
                self._tables.append(Tables(pages.tables, pages.read_tables()))
        if sum(len(tables.pfns) for tables in self._tables) >= TABLES:
            self._write_tables()

    def _forget_tables(self, pfns: set[int]) -> None:
        """Pages that have come again, with other content."""
        self._tables = [tables.without(pfns) for tables in self._tables]

    def finish(self, types: bytearray) -> Results:
        """Everything after the last record."""
        self._types = types
        self.memory.settle()
        self._write_tables()
        results = self._set_vcpus()
        self._pin()
        self._write_p2m()
        return results

    def _write_tables(self) -> None:
        """Those that wait, whatever type they have by now: nothing else is in their frames."""
        for tables in self._tables:
            if tables.pfns:
                self.memory.localise(tables.entries)
                with self.memory.map(tables.pfns) as window, window.view() as view:
                    view[:] = memoryview(tables.entries).cast("B")
        self._tables.clear()

    def _frame(self, pfn: int, what: str, level: int = NOTAB) -> int:
        """The frame of a page that must be of a type."""
        kind = self._types[pfn] if pfn < len(self._types) else NOTAB
        if (kind & ~PINNED if level else kind) != level:
            wanted = f"a page table of level {level}" if level else "a plain page"
            raise RestoreError(f"{what} is in pfn {pfn:#x}, which is of type {kind}, not {wanted}")
        return self.memory.frame(pfn, what)

    def _set_vcpus(self) -> Results:
        width = self._width
        xen, domid = self._xen, self._domain.domid
        store = console = 0
        for number in range(self._domain.max_vcpu_id + 1):
            basic = self._vcpus.get((Libxc.X86_PV_VCPU_BASIC, number))
            if basic is not None:
                start = None
                if number == 0:
                    info = vcpus.frames(basic, width).start_info
                    start, store, console = self._write_start(info)
                state = vcpus.localised(basic, width, self._frame, start=start)
                xen.set_context(domid, number, state)
            for kind, put in (
                (Libxc.X86_PV_VCPU_EXTENDED, xen.set_extended),
                (Libxc.X86_PV_VCPU_XSAVE, xen.set_xsave),
                (Libxc.X86_PV_VCPU_MSRS, xen.set_msrs),
            ):
                blob = self._vcpus.get((kind, number))
                if blob is not None:
                    put(domid, number, blob)
        return store, console

    def _write_start(self, pfn: int) -> tuple[int, int, int]:
        """start_info's frame, and those of the pages of xenstore and the console."""
        frame = self._frame(pfn, "start_info")
        with self._xen.map(self._domain.domid, [frame]) as window, window.view() as view:
            start = shared.new_start(
                self._width,
                bytes(view[: shared.START_INFO_SIZE]),
                pages=len(self.memory.p2m),
                shared_frame=self._domain.shared_info_frame,
                frame=self.memory.frame,
                store_channel=self._request.store_channel,
                console_channel=self._request.console_channel,
            )
            view[: len(start.page)] = start.page
        return frame, start.store, start.console

    def _pin(self) -> None:
        for level in range(L1TAB, L4TAB + 1):
            room = words(self._types.count(PINNED | level))
            if native.pinned(self._types, level, room):
                frames = self.memory.frames(room)
                operations = native.operations(PIN_L1 + level - L1TAB, frames)
                self._xen.pin(self._domain.domid, operations)

    def _write_p2m(self) -> None:
        frames = array("Q", [self._frame(pfn, "the p2m") for pfn in self._frames])
        p2m = self.memory.p2m
        content = memoryview(p2m).cast("B")
        if self._width == 4:
            content = memoryview(array("I", (frame & 0xFFFFFFFF for frame in p2m))).cast("B")
        with self._xen.map(self._domain.domid, frames) as window, window.view() as view:
            view[: len(content)] = content
