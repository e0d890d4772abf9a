"""What a save file consists of, as values: headers, records, batches of pages.

Every parser of this package is a generator without I/O. It yields wishes and pieces:

- a number: it wants exactly so many bytes, and is sent them;
- ``OrEnd``: the same, but is sent ``b""`` if the stream ends here;
- a piece: this has been found. What is sent back is ignored.

A piece with a ``bulk`` is followed by so many bytes that the parser does not want to see: whoever
drives it has to consume them before going on, read, copied or skipped (``image.Image`` does). So
the pages of a guest pass through no parser. Names and numbers are those of Xen's
docs/specs/libxc-migration-stream.pandoc and libxl-migration-stream.pandoc.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from array import array

PAGE_SIZE = 4096


class StreamError(HotplugError):
    """A save file breaks a rule of its format. Parsers say what, ``image.Image`` adds where."""


class Layer(StrEnum):
    """Whose record it is."""

    LIBXL = "libxl"
    LIBXC = "libxc"


class Guest(IntEnum):
    """The type in the domain header."""

    PV = 1
    HVM = 2  # and PVH


@dataclass(frozen=True, slots=True)
class OrEnd:
    """A wish for bytes that may be missing altogether."""

    size: int


@dataclass(frozen=True, slots=True)
class XlHeader:
    """What xl puts in front: flags, and the guest's configuration."""

    mandatory_flags: int
    optional_flags: int
    optional_data: bytes


@dataclass(frozen=True, slots=True)
class XendHeader:
    """What xend puts in front: the configuration as S-expressions."""

    config: bytes


@dataclass(frozen=True, slots=True)
class LegacyHeader:
    """A stream of Xen 4.5 or older follows, told as the records that today's would have."""

    word: int  # size in bytes of the unsigned long of the tools that saved it
    p2m_size: int
    guest: Guest


@dataclass(frozen=True, slots=True)
class LibxlHeader:
    """Begins the stream of libxl."""

    options: int


@dataclass(frozen=True, slots=True)
class LibxcHeader:
    """Image header and domain header of libxc."""

    version: int
    guest: Guest
    xen: tuple[int, int]  # major 0: made by a converter
    options: int = 0
    reserved: bytes = bytes(6)
    domain_reserved: int = 0


@dataclass(frozen=True, slots=True)
class PvInfo:
    """The word size in bytes of a PV guest, and the levels of its page tables."""

    width: int
    levels: int


@dataclass(frozen=True, slots=True)
class P2mFrames:
    """The frames that hold a part of the guest's table from pfn to mfn."""

    start: int
    end: int  # the last pfn of the part
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vcpu:
    """State of one vcpu; which, says the record. An empty blob says nothing."""

    vcpu: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class TscInfo:
    """How the guest sees the time stamp counter."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class HvmParams:
    """HVM parameters as (index, value), in the order of the file."""

    params: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class EmulatorXenstore:
    """Keys and values for the device model, relative to its directory."""

    emulator: int
    index: int
    pairs: tuple[tuple[bytes, bytes], ...]


Value: TypeAlias = PvInfo | P2mFrames | Vcpu | TscInfo | HvmParams | EmulatorXenstore | None


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was read whole. ``value`` is what the body says, where that is not opaque."""

    layer: Layer
    kind: int
    body: bytes = b""
    value: Value = None
    padding: bytes = b""  # those bytes of it that are not zero, or nothing


@dataclass(frozen=True, slots=True)
class StaticDataInferred:
    """Here a stream of version 2 would say STATIC_DATA_END if it had that record."""


@dataclass(frozen=True, slots=True)
class Pages:
    """A PAGE_DATA record up to its page data, which is the bulk.

    An entry holds the page's type in bits 63-60 and its pfn in bits 51-0. The bulk has the pages of
    those entries whose type carries data, in their order.
    """

    entries: array[int]
    data_pages: int
    reserved: int = 0

    @property
    def bulk(self) -> int:
        return self.data_pages * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Blob:
    """A record EMULATOR_CONTEXT: the device model's state is the bulk; None is the file's rest."""

    emulator: int
    index: int
    bulk: int | None


Piece: TypeAlias = (
    XlHeader
    | XendHeader
    | LegacyHeader
    | LibxlHeader
    | LibxcHeader
    | Record
    | StaticDataInferred
    | Pages
    | Blob
)
T = TypeVar("T")
Parser: TypeAlias = Generator[int | OrEnd | Piece, bytes, T]
