"""Restoring an HVM or PVH guest, step by step.

Such a guest addresses its memory by pfn, so nothing in it has to be changed; page tables in its
image are plain data. Its processors' and devices' state is one blob, its few special pages are
told by parameters. The device model's state is the toolstack's own.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hotplug.restore.memory import Memory
from hotplug.restore.pieces import HvmParams
from hotplug.restore.records import Libxc

if TYPE_CHECKING:
    from hotplug.restore.guest import Request, Results
    from hotplug.restore.pieces import Record
    from hotplug.restore.reading import Batch
    from hotplug.restore.xenlibs import Domain, Xen

# xen/include/public/hvm/params.h
STORE_PFN, STORE_EVTCHN, PAE_ENABLED, IOREQ_PFN, BUFIOREQ_PFN = 1, 2, 4, 5, 6
CONSOLE_PFN, CONSOLE_EVTCHN = 17, 18
CLEARED = (STORE_PFN, IOREQ_PFN, BUFIOREQ_PFN, CONSOLE_PFN)
# How far its memory may reach. The domain's limit is what it shall have now; before its balloon
# grew it may have had more, at higher pfns. A word is needed for each, and this keeps a guest that
# has put a page of its own at the end of all pfns from taking dom0's memory.
BALLOONED = 16  # times what it has
ALWAYS = 1 << 24  # pfns, 64 GB


class HvmGuest:
    """An HVM or PVH guest that is being restored."""

    def __init__(self, xen: Xen, domain: Domain, request: Request) -> None:
        self._xen = xen
        self._domain = domain
        self._request = request
        self.memory = Memory(xen, domain, max(ALWAYS, BALLOONED * domain.max_pages))
        self._context = b""
        self._params: list[tuple[int, int]] = []

    def record(self, record: Record) -> None:
        """A record that only HVM guests have."""
        if record.kind == Libxc.HVM_CONTEXT:
            self._context = record.body
        elif isinstance(record.value, HvmParams):
            self._params += record.value.params

    def batch(self, batch: Batch) -> None:
        """Pages: give them frames, clear those that are zero, copy the others."""
        for pages, again in self.memory.take(batch):
            self.memory.put(pages, again=again)

    def finish(self, types: bytearray) -> Results:  # noqa: ARG002 - as PvGuest's
        """Everything after the last record."""
        xen, domid = self._xen, self._domain.domid
        self.memory.settle()
        found = dict(self._params)
        special = {found[index] for index in CLEARED if index in found}
        self.memory.clear(array("Q", sorted(filter(self.memory.has, special))))
        for index, value in self._params:
            if index != PAE_ENABLED:
                xen.set_param(domid, index, value)
        xen.set_param(domid, STORE_EVTCHN, self._request.store_channel)
        xen.set_param(domid, CONSOLE_EVTCHN, self._request.console_channel)
        xen.set_hvm_context(domid, self._context)
        return found.get(STORE_PFN, 0), found.get(CONSOLE_PFN, 0)
