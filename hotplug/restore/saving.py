"""Saving a guest of whatever kind: what all images have in common.

The guest is suspended, its image is written, record for record as Xen's own saver writes it
(tools/libs/guest/xg_sr_save.c), and the toolstack destroys it or lets it go on. Whatever fails, the
toolstack lets it go on.

A regular file gets holes for zero pages. Where the file allows it, which is up to the headers that
others have written, pages lie where a file has pages, so that every zero page is a hole; see
``forms``. And batches of pages that are not there, of which HVM guests have very many, are left
out. A restorer of whatever make finds the same guest in it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotplug.errors import SaveError
from hotplug.restore.forms import fill
from hotplug.restore.framing import LIBXC_VERSIONS, PAGES, RECORD, pack, record
from hotplug.restore.hvmsaving import HvmSource
from hotplug.restore.loops import native
from hotplug.restore.pieces import LibxcHeader, TscInfo
from hotplug.restore.pvsaving import PvSource
from hotplug.restore.records import Libxc, pack_tsc_info
from hotplug.restore.xenlibs import words

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from hotplug.restore.output import Output
    from hotplug.restore.pieces import Record
    from hotplug.restore.xenlibs import Domain, Xen
    from hotplug.restore.xenstate import State

PAGE = 4096
BATCH = 1024  # pages of one record, as Xen's own savers have them
WINDOW = 4096  # pages that are mapped at once
ALIGNMENT = 8  # bytes; of records among each other
ZEROS, TABLES = 0, 2  # kinds of runs, of native.runs


class Toolstack(Protocol):
    """Who is told of what happens."""

    def info(self, text: str) -> None: ...

    def progress(self, done: int, total: int) -> None:
        """Pages that have been saved, and how many the guest may have."""
        ...

    def suspend(self) -> None:
        """Have the guest suspend itself. SaveError if it does not."""
        ...

    def log_dirty(self, *, enable: bool) -> bool:
        """Have the device model log what it writes to, or not any more; whether it does."""
        ...


@dataclass(slots=True)
class Job:
    """A guest on its way into an image."""

    xen: Xen
    state: State
    domain: Domain
    source: PvSource | HvmSource
    output: Output
    aligned: bool = False  # pages can lie where a file has pages
    pages: int = 0
    zeros: int = 0

    @property
    def domid(self) -> int:
        return self.domain.domid

    def write(self, records: Iterable[Record]) -> None:
        for one in records:
            self.output.write(pack(one))


def save(
    xen: Xen,
    state: State,
    output: Output,
    domid: int,
    release: tuple[int, int],
    toolstack: Toolstack,
) -> None:
    """Suspend a guest and write its image. HotplugError, or OSError from Xen or the file."""
    domain = xen.domain(domid)
    with contextlib.ExitStack() as undo:
        undo.callback(state.stop_dirty_log, domid)
        if domain.is_hvm:
            if not toolstack.log_dirty(enable=True):
                raise SaveError("the device model does not log what it writes to")
            undo.callback(toolstack.log_dirty, enable=False)
        source = (HvmSource if domain.is_hvm else PvSource)(xen, state, domain)
        undo.enter_context(source)
        job = Job(xen, state, domain, source, output)
        job.aligned = output.sparse and output.offset % ALIGNMENT == 0
        suspend(job, toolstack)
        source.look()
        write(job, release, toolstack)
    output.settle()
    toolstack.info(f"saved {job.pages} pages, {job.zeros} of them as holes")


def suspend(job: Job, toolstack: Toolstack) -> None:
    toolstack.suspend()
    if not job.xen.domain(job.domid).suspended:
        raise SaveError(f"domain {job.domid} has not suspended itself")


def write(job: Job, release: tuple[int, int], toolstack: Toolstack) -> None:
    """The image, from its header to its END."""
    source, domid = job.source, job.domid
    job.output.write(pack(LibxcHeader(LIBXC_VERSIONS[-1], source.kind, release)))
    job.write(source.info())
    leaves, msrs = job.state.policy(domid)
    if leaves:
        job.write([record(Libxc.X86_CPUID_POLICY, leaves)])
    if msrs:
        job.write([record(Libxc.X86_MSR_POLICY, msrs)])
    job.write([record(Libxc.STATIC_DATA_END)])
    job.write(source.before_pages())
    for start in range(0, source.pfns, WINDOW):
        write_window(job, start, min(start + WINDOW, source.pfns))
        toolstack.progress(start, source.pfns)
    mode, khz, nsec, incarnation = job.state.tsc(domid)
    tsc = TscInfo(mode, khz, nsec, incarnation)
    job.write([record(Libxc.X86_TSC_INFO, pack_tsc_info(tsc))])
    job.write(source.after_pages())
    job.write([record(Libxc.END)])


def write_window(job: Job, start: int, end: int) -> None:
    """Some pages in a row, mapped all at once."""
    frames = job.source.frames(start, end)
    entries, mapped = words(len(frames)), words(len(frames))
    types = job.state.types(job.domid, frames)
    try:
        count = native.describe(types, frames, start, entries, mapped)
    except ValueError as error:
        raise SaveError(str(error)) from error
    if not count:
        if not job.output.sparse:
            for at in range(0, len(entries), BATCH):
                write_head(job, entries[at : at + BATCH], 0)
        return
    job.pages += count
    window = job.xen.map(job.domid, mapped[:count], writable=False)
    with window, window.view() as view:
        at = 0
        for first in range(0, len(entries), BATCH):
            at += write_batch(job, entries[first : first + BATCH], view[at * PAGE :])


def write_batch(job: Job, entries: array[int], data: memoryview) -> int:
    """A PAGE_DATA record; how many pages it has. They are the first of ``data``."""
    runs, tables = words(len(entries)), words(len(entries))
    count, tabled = native.runs(data, entries, job.output.sparse, job.domain.is_hvm, runs, tables)
    total = sum(run >> 2 for run in runs[:count])
    if not total and job.output.sparse:
        return 0
    write_head(job, entries, total)
    normal = memoryview(job.source.normalise(data, tables[:tabled]))
    at = table = 0
    for run in runs[:count]:
        size = (run >> 2) * PAGE
        if run & 3 == ZEROS:
            job.output.zeros(size)
            job.zeros += run >> 2
        elif run & 3 == TABLES:
            job.output.write(normal[table : table + size])
            table += size
        else:
            job.output.write(data[at : at + size])
        at += size
    return total


def write_head(job: Job, entries: array[int], pages: int) -> None:
    """A PAGE_DATA record up to its pages."""
    size = PAGES.size + entries.itemsize * len(entries)
    if job.aligned and pages:
        fill(job.output, -(job.output.offset + RECORD.size + size) % PAGE)
    head = RECORD.pack(Libxc.PAGE_DATA, size + pages * PAGE) + PAGES.pack(len(entries), 0)
    job.output.write(head + entries.tobytes())
