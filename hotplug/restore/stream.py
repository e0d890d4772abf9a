"""The stream of libxc: its records in their order, up to END and not a byte further.

Refused is what the stock restorer refuses, before anything that depends on it is handed on. The
truth is Xen's docs/specs/libxc-migration-stream.pandoc and tools/libs/guest/xg_sr_restore.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotplug.restore import framing, pages, records
from hotplug.restore.pieces import (
    Guest,
    Layer,
    LibxcHeader,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StaticDataInferred,
    StreamError,
    Vcpu,
)
from hotplug.restore.records import OPTIONAL, Libxc

if TYPE_CHECKING:
    from hotplug.restore.pieces import Parser

NEED_INFO = records.VCPU_KINDS | {Libxc.X86_PV_P2M_FRAMES, Libxc.SHARED_INFO}
STATIC_DATA_END_SINCE = 3  # version of the stream


@dataclass(slots=True)
class Order:
    """What has been seen of a stream, and so what may come."""

    header: LibxcHeader
    width: int = 0  # of a PV guest, once it is known
    last_pfn: int = -1
    seen: set[int] = field(default_factory=set)  # types of records
    static_data: bool = True  # may still come
    vcpu0: bool = False

    @property
    def infers(self) -> bool:
        """The end of the static data has not been told and never will be."""
        return self.static_data and self.header.version < STATIC_DATA_END_SINCE

    def allow(self, kind: int) -> None:
        """Whether a record of this type may come now; before its body is read."""
        if kind not in records.LIBXC_KINDS:
            if not kind & OPTIONAL:
                raise StreamError(f"a mandatory record of the unknown type {kind:#010x}")
            return
        name = Libxc(kind).name
        foreign = records.HVM_KINDS if self.header.guest is Guest.PV else records.PV_KINDS
        if kind in foreign:
            raise StreamError(f"a {name} record in the stream of a guest of another type")
        if kind == Libxc.TOOLSTACK:
            raise StreamError("a TOOLSTACK record, which nobody reads any more")
        if kind in (Libxc.CHECKPOINT, Libxc.CHECKPOINT_DIRTY_PFN_LIST):
            raise StreamError(f"a {name} record: the stream has checkpoints (Remus or COLO)")
        self._allow_now(kind, name)

    def _allow_now(self, kind: int, name: str) -> None:
        if kind in (Libxc.X86_PV_INFO, Libxc.DENSE) and kind in self.seen:
            raise StreamError(f"a second {name} record")
        if kind == Libxc.DENSE and Libxc.PAGE_DATA in self.seen:
            raise StreamError(f"a {name} record after pages")
        if kind == Libxc.STATIC_DATA_END and not self.static_data:
            raise StreamError("STATIC_DATA_END, but the static data has ended already")
        if kind in NEED_INFO and not self.width:
            raise StreamError(f"a {name} record before X86_PV_INFO")
        if kind in (Libxc.PAGE_DATA, Libxc.X86_PV_P2M_FRAMES) and self.static_data:
            raise StreamError(f"a {name} record before STATIC_DATA_END")
        if kind == Libxc.PAGE_DATA and self.header.guest is Guest.PV and not self._has_p2m:
            raise StreamError("pages before X86_PV_P2M_FRAMES")

    @property
    def _has_p2m(self) -> bool:
        return Libxc.X86_PV_P2M_FRAMES in self.seen

    def note(self, found: Record) -> None:
        """A record that was allowed has been read."""
        self.seen.add(found.kind)
        if found.kind == Libxc.STATIC_DATA_END:
            self.static_data = False
        match found.value:
            case PvInfo(width=width):
                self.width = width
            case P2mFrames(end=end):
                self.last_pfn = max(self.last_pfn, end)
            case Vcpu(vcpu=0, blob=blob) if found.kind == Libxc.X86_PV_VCPU_BASIC and blob:
                self.vcpu0 = True

    def finish(self) -> None:
        """END has come: is all there that a guest needs?"""
        if self.header.guest is Guest.HVM:
            if Libxc.HVM_CONTEXT not in self.seen:
                raise StreamError("the stream ends without HVM_CONTEXT")
            return
        if not self._has_p2m:
            raise StreamError("the stream ends without X86_PV_P2M_FRAMES")
        if not self.vcpu0:
            raise StreamError("the stream ends without the state of vcpu 0")


def libxc(head: bytes = b"") -> Parser[LibxcHeader]:
    """All of a stream; what its header was. ``head``: what was read of it already."""
    header = yield from framing.libxc_header(head)
    yield header
    order = Order(header)
    if header.guest is Guest.HVM:
        order.last_pfn = pages.LAST_PFN
    kind: int = -1
    while kind != Libxc.END:
        kind, length = yield from framing.record_header()
        if order.infers and kind in (Libxc.PAGE_DATA, Libxc.X86_PV_P2M_FRAMES):
            order.static_data = False
            yield StaticDataInferred()
        order.allow(kind)
        if kind == Libxc.PAGE_DATA:
            yield (yield from batch(order, length))
        else:
            yield (yield from record(order, kind, length))
    return header


def batch(order: Order, length: int) -> Parser[Pages]:
    found = yield from pages.page_data(length, order.last_pfn)
    order.seen.add(Libxc.PAGE_DATA)
    return found


def record(order: Order, kind: int, length: int) -> Parser[Record]:
    body, padding = yield from framing.body(length)
    value = records.value(kind, body, order.width)
    found = Record(Layer.LIBXC, kind, body, value, padding)
    order.note(found)
    if kind == Libxc.END:
        order.finish()
    return found
