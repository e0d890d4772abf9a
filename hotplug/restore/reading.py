"""Reads a guest's image ahead of what is done with it.

A thread takes pieces from the image, sorts their pages and hands them over; meanwhile the
hypervisor is busy with those before, on another processor. Pages come in buffers that are used
again: few, so that a guest of any size needs the same memory here, and as large as a record of
Xen's own savers, so that they stay in the processor's cache.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.restore import stream
from hotplug.restore.loops import native
from hotplug.restore.pages import BROKEN, PFN_MASK, TYPE_SHIFT, XALLOC
from hotplug.restore.pieces import Guest, LibxcHeader, P2mFrames, Pages, Record, StaticDataInferred
from hotplug.restore.records import OPTIONAL
from hotplug.restore.xenlibs import words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from hotplug.restore.image import Image

PAGE = 4096
BATCH = 1024  # pages of one hand-over; Xen's savers have as many in a record
AHEAD = 3  # buffers: one is read, one waits, one is at work
WAITING = 4  # pieces that were read and wait; a record may be as large as 128 MB
KINDS = bytes(byte >> 4 for byte in range(256))  # types, of the highest bytes of entries


@dataclass(frozen=True, slots=True)
class Batch:
    """Some pages of a PAGE_DATA record."""

    entries: array[int]  # of all pages, those without data too: {type << 60 | pfn}
    plain: array[int]  # pfns of pages that are not zero
    offsets: array[int]  # of these in ``data``
    zero: array[int]  # pfns of pages that are
    tables: array[int]  # pfns of page tables
    table_data: bytes  # their pages
    data: memoryview  # given back by ``Reader.done``


@dataclass(frozen=True, slots=True)
class End:
    """Reading ended: the image did, or something is wrong with it."""

    error: BaseException | None = None


Item = Batch | LibxcHeader | Record | StaticDataInferred | End
NOTHING = array("Q")


class ClosedError(Exception):
    """Nobody wants more."""


class Reader:
    """The pieces of an image, from a thread of its own. Use it in a ``with`` statement."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._is_hvm = False
        self.types = bytearray()  # of each pfn of a PV guest, as the last record that has it says
        self._ready: queue.Queue[Item] = queue.Queue(WAITING)
        self._free: queue.Queue[memoryview] = queue.Queue()
        for _ in range(AHEAD):
            self._free.put(memoryview(bytearray(BATCH * PAGE)))
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread. One that waits for a pipe ends with the process."""
        self._closed = True
        self._free.put(memoryview(b""))
        while self._thread.is_alive() and self._image.size is not None:
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)

    def __iter__(self) -> Iterator[Batch | LibxcHeader | Record | StaticDataInferred]:
        """Everything in its order. What is wrong with the image is raised at its place."""
        self._thread.start()
        while not isinstance(item := self._ready.get(), End):
            yield item
        if item.error is not None:
            raise item.error

    def done(self, batch: Batch) -> None:
        """Its pages are not needed any more."""
        if len(batch.data):
            self._free.put(batch.data)

    def _run(self) -> None:
        try:
            for piece in self._image.pieces(stream.libxc()):
                if isinstance(piece, Pages):
                    self._pages(piece)
                elif isinstance(piece, LibxcHeader | Record | StaticDataInferred):
                    self._note(piece)
                    self._hand_over(piece)
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self._ready.put(End(error))
        else:
            self._ready.put(End())

    def _hand_over(self, item: Item) -> None:
        if isinstance(item, Record) and item.kind & OPTIONAL:
            return  # which nobody knows
        self._ready.put(item)
        if self._closed:
            raise ClosedError

    def _note(self, piece: LibxcHeader | Record | StaticDataInferred) -> None:
        """What is needed here of other records: what kind of guest it is, and its last pfn."""
        if isinstance(piece, LibxcHeader):
            self._is_hvm = piece.guest is Guest.HVM
        elif isinstance(piece, Record) and isinstance(piece.value, P2mFrames):
            self.types.extend(bytes(max(0, piece.value.end + 1 - len(self.types))))

    def _pages(self, pages: Pages) -> None:
        entries = array("Q", pages.entries)
        kinds = bytearray(len(entries))
        if self._is_hvm:
            kinds[:] = entries.tobytes()[7::8].translate(KINDS)
        else:
            native.classify(entries, self.types, len(self.types), kinds)
        for start in range(0, len(entries), BATCH):
            some = slice(start, start + BATCH)
            self._hand_over(self._batch(entries[some], kinds[some]))

    def _batch(self, entries: array[int], kinds: bytearray) -> Batch:
        """The next pages; those that are holes of the file are not read."""
        loaded, empty = entries, NOTHING
        if max(kinds) >= BROKEN:
            some = min(kinds) < BROKEN  # of an HVM guest's records, most have none
            loaded = array("Q", [e for e in entries if e >> TYPE_SHIFT < BROKEN] if some else ())
        if XALLOC in kinds:
            empty = array("Q", [e & PFN_MASK for e in entries if e >> TYPE_SHIFT == XALLOC])
        if not loaded:
            return Batch(entries, NOTHING, NOTHING, empty, NOTHING, b"", memoryview(b""))
        buffer = self._free.get()
        if self._closed:
            raise ClosedError
        data = buffer[: len(loaded) * PAGE]
        holes = self._fill(data)
        plain, zero, tables, kept = (words(len(loaded)) for _ in range(4))
        plains, zeros, tabled = native.sort_pages(
            loaded, data, holes, plain, zero, tables, kept, self._is_hvm
        )
        table_data = b"".join(data[at : at + PAGE] for at in kept[plains : plains + tabled])
        return Batch(
            entries=entries,
            plain=plain[:plains],
            offsets=kept[:plains],
            zero=zero[:zeros] + empty,
            tables=tables[:tabled],
            table_data=table_data,
            data=buffer,
        )

    def _fill(self, data: memoryview) -> bytearray:
        """Read pages; a byte for each, 1 if it was not read because the file has a hole there."""
        image = self._image
        holes = bytearray(len(data) // PAGE)
        at = 0
        while at < len(data):
            left = len(data) - at
            if hole := image.hole(left):
                mark_hole(data, holes, at, at + hole)
                image.skip(hole)
                at += hole
            else:
                size = image.data_ahead(left)
                image.read_into(data[at : at + size])
                at += size
        return holes


def mark_hole(data: memoryview, holes: bytearray, start: int, end: int) -> None:
    """Bytes of ``data`` are a hole: whole pages are marked, parts of pages become zero."""
    first, last = -(-start // PAGE), end // PAGE
    if first >= last:
        data[start:end] = bytes(end - start)
        return
    data[start : first * PAGE] = bytes(first * PAGE - start)
    data[last * PAGE : end] = bytes(end - last * PAGE)
    holes[first:last] = b"\1" * (last - first)
