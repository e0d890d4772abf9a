"""Reads a guest's image: its records, and its pages in batches.

Zero pages are found before anything is copied. Those in holes of a file are never read. The other
pages of a file are looked at in steps that stay in the processor's cache, and what is not zero is
read once more, straight into the guest's memory: that is cheaper than to copy everything twice.
Where most of a file is holes nothing is looked at, for somebody has put zero pages there. Of a pipe
all is read into a buffer.

There is no thread that reads ahead: what the kernel and the hypervisor do takes the time, and on
two processors at once that took longer as often as not.
"""

from __future__ import annotations

import os
import stat
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotplug.restore import stream
from hotplug.restore.loops import native
from hotplug.restore.pages import BROKEN, PFN_MASK, TYPE_SHIFT, XALLOC, XTAB
from hotplug.restore.pieces import Guest, LibxcHeader, P2mFrames, Pages, Record, StaticDataInferred
from hotplug.restore.records import OPTIONAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hotplug.restore.image import Image
    from hotplug.restore.pieces import Parser

PAGE = 4096
PART = 1024  # pages that are read at once of a pipe; Xen's savers have as many in a record
BATCH = 8192  # pages that are handed over at once, of a file: fewer and larger calls of Xen's
STEP = 64  # pages that are looked at at once: they stay in the cache until the last is
SPARSE = 3 / 4  # of a file's size on the disk; if it is less, its data is taken for not zero
KINDS = bytes(byte >> 4 for byte in range(256))  # types, of the highest bytes of entries


class Source(Protocol):
    """Where the data of pages is."""

    def read(self, address: int, places: array[int]) -> None:
        """Pages, one after the other to an address."""
        ...


class FileSource:
    """Places are offsets in the file."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def read(self, address: int, places: array[int]) -> None:
        with self._image.named():
            native.read_pages(self._image.fd, address, places)


class BufferSource:
    """Places are offsets in what was read of a pipe."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PART * PAGE))

    def read(self, address: int, places: array[int]) -> None:
        native.copy_pages(address, self.buffer, places)


@dataclass(frozen=True, slots=True)
class Part:
    """Pages in a row of one PAGE_DATA record."""

    entries: array[int]  # of all pages, those without data too: {type << 60 | pfn}
    frames: int  # how many of them need a frame
    zeros: bytearray  # a byte for each page of data: not 0 if the page is zero
    place: int  # of the first page of data

    def pieces(self) -> Iterator[Part]:
        """The same in pieces in none of which a pfn comes twice."""
        seen: set[int] = set()
        start = data = first = 0
        for index, entry in enumerate(self.entries):
            if entry & PFN_MASK in seen:
                yield self._piece(start, index, first, data)
                seen.clear()
                start, first = index, data
            seen.add(entry & PFN_MASK)
            data += entry >> TYPE_SHIFT < BROKEN
        yield self._piece(start, len(self.entries), first, data)

    def _piece(self, start: int, end: int, first: int, last: int) -> Part:
        entries, zeros = self.entries[start:end], self.zeros[first:last]
        return Part(entries, len(entries), zeros, self.place + first * PAGE)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages to be restored."""

    parts: list[Part]
    source: Source


class Reader:
    """The pieces of an image, in their order."""

    def __init__(self, image: Image, parser: Parser[object] | None = None) -> None:
        self._image = image
        self._parser = parser or stream.libxc()
        self._is_hvm = False
        self.types = bytearray()  # of each pfn of a PV guest, as the last record that has it says
        self._pipe = BufferSource() if image.size is None else None
        self._step = bytearray(0 if is_sparse(image) else STEP * PAGE)
        self._extent = array("Q", (0, 0))  # of the file, between two holes

    def __iter__(self) -> Iterator[Batch | LibxcHeader | Record | StaticDataInferred]:
        """Everything in its order. What is wrong with the image is raised at its place."""
        with self._image.named():
            yield from self._pieces()

    def _pieces(self) -> Iterator[Batch | LibxcHeader | Record | StaticDataInferred]:
        parts: list[Part] = []
        source = self._pipe or FileSource(self._image)
        most = BATCH if self._pipe is None else 1  # there is one buffer
        for piece in self._image.pieces(self._parser):
            if isinstance(piece, Pages):
                for part in self._parts(piece):
                    parts.append(part)
                    if sum(len(one.entries) for one in parts) >= most:
                        yield Batch(parts, source)
                        parts = []
            elif isinstance(piece, Record) and piece.kind & OPTIONAL:
                continue  # nobody knows it
            elif isinstance(piece, LibxcHeader | Record | StaticDataInferred):
                if parts:
                    yield Batch(parts, source)
                    parts = []
                self._note(piece)
                yield piece

    def _note(self, piece: LibxcHeader | Record | StaticDataInferred) -> None:
        """What is needed here of other records: what kind of guest it is, and its last pfn."""
        if isinstance(piece, LibxcHeader):
            self._is_hvm = piece.guest is Guest.HVM
        elif isinstance(piece, Record) and isinstance(piece.value, P2mFrames):
            self.types.extend(bytes(max(0, piece.value.end + 1 - len(self.types))))

    def _parts(self, pages: Pages) -> Iterator[Part]:
        entries = pages.entries
        kinds = bytearray(len(entries))
        if self._is_hvm:
            kinds[:] = entries.tobytes()[7::8].translate(KINDS)
        else:
            native.classify(entries, self.types, len(self.types), kinds)
        if pages.data_pages == len(entries) <= PART:
            yield self._part(entries, len(entries), len(entries))
            return
        for start in range(0, len(entries), PART):
            some = kinds[start : start + PART]
            frames = len(some) - some.count(BROKEN) - some.count(XTAB)
            with_data = frames - some.count(XALLOC)
            yield self._part(entries[start : start + PART], frames, with_data)

    def _part(self, entries: array[int], frames: int, with_data: int) -> Part:
        zeros = bytearray(with_data)
        place = self._image.offset
        if self._pipe is not None:
            place = 0
            data = self._pipe.buffer[: with_data * PAGE]
            self._image.read_into(data)
            native.find_zeros(data, zeros)
        elif zeros:
            native.find_zeros_in_file(self._image.fd, place, zeros, self._step, self._extent)
            self._image.skip(with_data * PAGE)
        return Part(entries, frames, zeros, place)


def is_sparse(image: Image) -> bool:
    """Whether much of a file is holes."""
    status = os.fstat(image.fd)
    return stat.S_ISREG(status.st_mode) and status.st_blocks * 512 < SPARSE * status.st_size
