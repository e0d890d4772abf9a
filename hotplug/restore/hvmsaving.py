"""What a save file says of an HVM or PVH guest, and how to get at its pages.

Such a guest addresses its memory by pfn, so nothing in it has to be changed. Its highest pfns hold
a few special pages below 4 GB, and between these and its memory there is nothing.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hotplug.restore.framing import record
from hotplug.restore.pieces import Guest
from hotplug.restore.records import Libxc, pack_hvm_params

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from hotplug.restore.pieces import Record
    from hotplug.restore.xenlibs import Domain, Xen
    from hotplug.restore.xenstate import State

# xen/include/public/hvm/params.h, in the order of Xen's own saver: the pages of the store, of
# ioreq, buffered ioreq, paging, monitor, sharing; the sized vm86 TSS, the console's page, where the
# ACPI ports are, Viridian, ident_pt, the address of the generation id, ioreq servers' first page
# and their number, the width of the x87 FIP, MCA capabilities.
PARAMS = (1, 5, 6, 27, 28, 29, 37, 17, 19, 9, 12, 34, 32, 33, 36, 38)


class HvmSource:
    """An HVM or PVH guest that is being saved. Use it in a ``with`` statement."""

    kind = Guest.HVM

    def __init__(self, _: Xen, state: State, domain: Domain) -> None:
        self._state = state
        self._domid = domain.domid
        self.pfns = 0  # how many there are; known after ``look``

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def look(self) -> None:
        """Find its memory. It must not run any more."""
        self.pfns = self._state.pfns(self._domid)

    def frames(self, start: int, end: int) -> array[int]:
        """Of a row of pfns: by them it is addressed."""
        return array("Q", range(start, end))

    def normalise(self, _data: memoryview, _tables: array[int]) -> bytearray:
        """Its page tables are plain data, so there are none."""
        return bytearray()

    # Records

    def info(self) -> Iterator[Record]:
        """Nothing comes first."""
        yield from ()

    def before_pages(self) -> Iterator[Record]:
        yield from ()

    def after_pages(self) -> Iterator[Record]:
        yield record(Libxc.HVM_CONTEXT, self._state.hvm_context(self._domid))
        params = [(index, self._state.param(self._domid, index)) for index in PARAMS]
        params = [(index, value) for index, value in params if value]
        if params:
            yield record(Libxc.HVM_PARAMS, pack_hvm_params(params))
