"""Restoring a guest of whatever kind: what all images have in common.

The toolstack has made the domain, without memory. Here it gets its memory and its processors'
state, and the toolstack is told the two frames that it needs. Whatever fails, the toolstack
destroys the domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from hotplug.errors import RestoreError
from hotplug.restore import hvm, pv
from hotplug.restore.pieces import Guest, LibxcHeader, StaticDataInferred, TscInfo
from hotplug.restore.reading import Batch, Reader
from hotplug.restore.records import Libxc

if TYPE_CHECKING:
    from hotplug.restore.image import Image
    from hotplug.restore.pieces import Parser, Record
    from hotplug.restore.xenlibs import Domain, Xen

Results: TypeAlias = "tuple[int, int]"  # frames of xenstore's and the console's page


@dataclass(frozen=True, slots=True)
class Request:
    """What the toolstack asks for."""

    domid: int
    store_channel: int  # event channels
    store_domid: int
    console_channel: int
    console_domid: int


class Toolstack(Protocol):
    """Who is told of what happens."""

    def info(self, text: str) -> None: ...

    def progress(self, done: int, total: int) -> None:
        """Pages that have been restored, and how many the guest may have."""
        ...

    def static_data_done(self, *, cpuid_missing: bool, msrs_missing: bool) -> None:
        """RestoreError if the toolstack cannot make up for what is missing."""
        ...


class Player:
    """Does what the pieces of an image say, in their order."""

    def __init__(self, xen: Xen, domain: Domain, request: Request, toolstack: Toolstack) -> None:
        self._xen = xen
        self._domid = domain.domid
        self._max_pages = domain.max_pages
        self._toolstack = toolstack
        self._policies = {Libxc.X86_CPUID_POLICY: b"", Libxc.X86_MSR_POLICY: b""}
        self._verifying = False
        self._differing = 0
        self.guest: pv.PvGuest | hvm.HvmGuest
        kind = hvm.HvmGuest if domain.is_hvm else pv.PvGuest
        self.guest = kind(xen, domain, request)
        self._is_hvm = domain.is_hvm

    def play(self, reader: Reader) -> None:
        for piece in reader:
            if isinstance(piece, Batch):
                self._pages(piece)
            elif isinstance(piece, LibxcHeader):
                self._refuse_other(piece)
            elif isinstance(piece, StaticDataInferred):
                self._end_static_data()
            else:
                self._record(piece)
        if self._verifying:
            self._toolstack.info(f"{self._differing} pages differ from the image")

    def _refuse_other(self, header: LibxcHeader) -> None:
        if (header.guest is Guest.HVM) != self._is_hvm:
            kinds = {True: "HVM or PVH", False: "PV"}
            raise RestoreError(
                f"the image is of a guest of type {kinds[header.guest is Guest.HVM]},"
                f" domain {self._domid} is {kinds[self._is_hvm]}"
            )

    def _pages(self, batch: Batch) -> None:
        if self._verifying:
            self._differing += self.guest.memory.count_differing(batch)
            return
        self.guest.batch(batch)
        self._toolstack.progress(self.guest.memory.populated, self._max_pages)

    def _record(self, record: Record) -> None:
        if record.kind == Libxc.VERIFY:
            self._verifying = True
        elif record.kind in self._policies:
            self._policies[Libxc(record.kind)] = record.body
        elif record.kind == Libxc.STATIC_DATA_END:
            self._end_static_data()
        elif isinstance(record.value, TscInfo):
            tsc = record.value
            self._xen.set_tsc(self._domid, tsc.mode, tsc.khz, tsc.nsec, tsc.incarnation)
        else:
            self.guest.record(record)

    def _end_static_data(self) -> None:
        """The processor policies come before all memory, and after that say nothing."""
        leaves, msrs = self._policies.values()
        if leaves or msrs:
            self._xen.set_cpu_policy(self._domid, leaves, msrs)
        self._toolstack.static_data_done(cpuid_missing=not leaves, msrs_missing=not msrs)


def restore(
    xen: Xen,
    image: Image,
    request: Request,
    toolstack: Toolstack,
    parser: Parser[object] | None = None,
) -> Results:
    """Restore the guest whose image comes next. HotplugError, or OSError from Xen.

    ``parser``: of the image, if that is not a stream of libxc as it is today.
    """
    domain = xen.domain(request.domid)
    player = Player(xen, domain, request, toolstack)
    reader = Reader(image, parser)
    player.play(reader)
    store, console = player.guest.finish(reader.types)
    xen.seed_grants(
        request.domid,
        is_hvm=domain.is_hvm,
        console=console,
        store=store,
        console_domid=request.console_domid,
        store_domid=request.store_domid,
    )
    image.settle()
    memory = player.guest.memory
    toolstack.info(f"restored {memory.populated} pages, {memory.cleared} of them zero")
    return store, console
