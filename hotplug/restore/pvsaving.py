"""What a save file says of a PV guest, and how to get at its pages.

Such a guest knows its memory by machine frames, which say nothing elsewhere. So frames become pfns:
in page tables, in the state of its processors, in the list of the pages that hold its p2m. A frame
is the guest's if the hypervisor's m2p and the guest's p2m agree about it.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from hotplug.errors import SaveError
from hotplug.restore import p2m, vcpus
from hotplug.restore.framing import record
from hotplug.restore.loops import native
from hotplug.restore.pieces import Guest, P2mFrames, PvInfo, StreamError, Vcpu
from hotplug.restore.records import Libxc, pack_p2m_frames, pack_pv_info, pack_vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from hotplug.restore.pieces import Record
    from hotplug.restore.xenlibs import Domain, Window, Xen
    from hotplug.restore.xenstate import State

PAGE = 4096
# How many pfns it may have: a word for each is kept here. What it may have now, and it may have had
# more before; and whoever has less than 64 GB may leave room for that.
BALLOONED, ALWAYS = 16, 1 << 24
NO_COMPAT = (1 << 64) - 1  # no entry of a page table names it


class PvSource:
    """A PV guest that is being saved. Use it in a ``with`` statement."""

    kind = Guest.PV

    def __init__(self, xen: Xen, state: State, domain: Domain) -> None:
        self._xen = xen
        self._state = state
        self._domain = domain
        domid = domain.domid
        self._width = xen.address_size(domid) // 8
        self._levels = vcpus.LEVELS[self._width]
        self._compat = NO_COMPAT if self._width == 8 else state.compat_m2p()
        self._window: Window = state.m2p()
        self._m2p = self._window.view()
        self._shared_info = b""
        self._p2m: array[int] = array("Q")
        self._frames = self._p2m  # that hold the p2m

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._m2p.release()
        self._window.unmap()

    @property
    def pfns(self) -> int:
        """How many there are. Known, as all that follows, after ``look``."""
        return len(self._p2m)

    def look(self) -> None:
        """Find its memory. It must not run any more."""
        self._shared_info = self._read(array("Q", [self._domain.shared_info_frame]))
        limit = max(ALWAYS, BALLOONED * self._domain.max_pages)
        guest = p2m.Guest(self._width, len(self._m2p) // 8, limit, self._read)
        place = p2m.find(guest, self._shared_info)
        content = self._read(place.frames)[: place.pfns * self._width]
        self._p2m = p2m.widened(content, self._width)
        self._frames = place.frames

    def _read(self, frames: array[int]) -> bytes:
        domid = self._domain.domid
        with self._xen.map(domid, frames, writable=False) as window, window.view() as view:
            return bytes(view)

    def frames(self, start: int, end: int) -> array[int]:
        """Of a row of pfns."""
        return self._p2m[start:end]

    def normalise(self, data: memoryview, tables: array[int]) -> bytearray:
        """Page tables as a save file has them; see ``native.normalise``."""
        out = bytearray(len(tables) * PAGE)
        try:
            native.normalise(data, tables, self._levels, self._compat, self._m2p, self._p2m, out)
        except ValueError as error:
            raise SaveError(f"{error}, so it cannot be saved", errno.ERANGE) from error
        return out

    def _pfn(self, frame: int, what: str) -> int:
        pfn = int.from_bytes(self._m2p[frame * 8 : frame * 8 + 8], "little")
        if frame * 8 >= len(self._m2p) or pfn >= self.pfns or self._p2m[pfn] != frame:
            raise SaveError(f"{what} is in frame {frame:#x}, which is not the guest's")
        return pfn

    # Records

    def info(self) -> Iterator[Record]:
        """What comes first of all."""
        yield record(Libxc.X86_PV_INFO, pack_pv_info(PvInfo(self._width, self._levels)))

    def before_pages(self) -> Iterator[Record]:
        pfns = tuple(self._pfn(frame, "the p2m") for frame in self._frames)
        yield record(Libxc.X86_PV_P2M_FRAMES, pack_p2m_frames(P2mFrames(0, self.pfns - 1, pfns)))

    def after_pages(self) -> Iterator[Record]:
        yield record(Libxc.SHARED_INFO, self._shared_info)
        domid = self._domain.domid
        for number in range(self._domain.max_vcpu_id + 1):
            if self._state.is_online(domid, number):
                yield from self._vcpu(number)

    def _vcpu(self, number: int) -> Iterator[Record]:
        state, domid = self._state, self._domain.domid
        try:
            context = state.context(domid, number)
            basic = vcpus.normalised(context, self._width, self._pfn, first=number == 0)
        except StreamError as error:
            raise SaveError(f"vcpu {number}: {error}") from error
        yield record(Libxc.X86_PV_VCPU_BASIC, pack_vcpu(Vcpu(number, basic)))
        for kind, blob in (
            (Libxc.X86_PV_VCPU_EXTENDED, state.extended(domid, number)),
            (Libxc.X86_PV_VCPU_XSAVE, state.xsave(domid, number)),
            (Libxc.X86_PV_VCPU_MSRS, state.msrs(domid, number)),
        ):
            if blob:
                yield record(kind, pack_vcpu(Vcpu(number, blob)))
