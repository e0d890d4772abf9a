"""Headers and frames of save files: xl's, xend's, libxl's and libxc's, read and written.

Accepted is what the stock tools accept; what they accept and the specification forbids, ``strict``
finds. Little-endian files only, like Xen on the processors it runs on.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hotplug.restore.pieces import (
    Blob,
    Guest,
    Layer,
    LibxcHeader,
    LibxlHeader,
    Pages,
    Record,
    StreamError,
    XendHeader,
    XlHeader,
)
from hotplug.restore.records import Libxc, Libxl

if TYPE_CHECKING:
    from hotplug.restore.pieces import Parser, Piece, Value

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
XL_HEADER = struct.Struct("<IIII")  # byteorder, mandatory and optional flags, length of the data
XL_BYTEORDER = 0x01020304
XL_JSON, XL_STREAM_V2 = 1, 2  # mandatory flags
MAX_OPTIONAL_DATA = 16 << 20  # bytes; a configuration has a few thousand

XEND_MAGIC = b"LinuxGuestRecord"
XEND_LENGTH = struct.Struct(">i")

LIBXL_MAGIC = b"LibxlFmt"
LIBXL_HEADER = struct.Struct(">II")  # version, options
LIBXL_VERSION = 2
LIBXL_BIG_ENDIAN, LIBXL_CONVERTED = 1, 2  # options

LIBXC_MARKER = b"\xff" * 8
LIBXC_HEADER = struct.Struct(">4sIH6s")  # after the marker: ident, version, options, reserved
LIBXC_DOMAIN = struct.Struct("<IHHII")  # type, page_shift, reserved, Xen's major and minor
LIBXC_IDENT = b"XENF"
LIBXC_VERSIONS = (2, 3)
LIBXC_BIG_ENDIAN = 1  # options
PAGE_SHIFT = 12

MAGIC_SIZE = 8  # enough to tell all of them, and legacy streams, apart
RECORD = struct.Struct("<II")  # type, length
MAX_BODY = 128 << 20  # bytes; REC_LENGTH_MAX of libxc
IDS = struct.Struct("<II")  # emulator, index
PAGES = struct.Struct("<II")  # count, reserved


def xl_header(head: bytes = b"") -> Parser[XlHeader]:
    """The header of xl with its optional data. ``head``: what was read of it already."""
    magic = head + (yield len(XL_MAGIC) - len(head))
    if magic != XL_MAGIC:
        raise StreamError("this is no save file of xl")
    byteorder, mandatory, optional, length = XL_HEADER.unpack((yield XL_HEADER.size))
    if byteorder != XL_BYTEORDER:
        raise StreamError(f"the xl header's byte order is {byteorder:#010x}, not little-endian")
    if mandatory & ~(XL_JSON | XL_STREAM_V2):
        raise StreamError(f"the xl header has mandatory flags that nobody knows: {mandatory:#x}")
    if length > MAX_OPTIONAL_DATA:
        raise StreamError(
            f"the xl header has {length} bytes of optional data, the limit is {MAX_OPTIONAL_DATA}"
        )
    data = (yield length) if length else b""
    if length:
        config(data)
    return XlHeader(mandatory, optional, data)


def config(data: bytes) -> bytes:
    """The configuration in optional data; what may follow it has no meaning."""
    if not data:
        return b""
    length = int.from_bytes(data[:4], "little")
    if len(data) < 4 or length > len(data) - 4:
        raise StreamError("the configuration is longer than the xl header's optional data")
    return data[4 : 4 + length]


def xend_header(head: bytes = b"") -> Parser[XendHeader]:
    magic = head + (yield len(XEND_MAGIC) - len(head))
    if magic != XEND_MAGIC:
        raise StreamError("this is no save file of xend")
    (length,) = XEND_LENGTH.unpack((yield XEND_LENGTH.size))
    if not 0 <= length <= MAX_OPTIONAL_DATA:
        raise StreamError(f"a configuration of {length} bytes, the limit is {MAX_OPTIONAL_DATA}")
    return XendHeader((yield length) if length else b"")


def libxl_header(head: bytes = b"") -> Parser[LibxlHeader]:
    magic = head + (yield len(LIBXL_MAGIC) - len(head)) if len(head) < MAGIC_SIZE else head
    if magic != LIBXL_MAGIC:
        raise StreamError("the stream of libxl does not begin here")
    version, options = LIBXL_HEADER.unpack((yield LIBXL_HEADER.size))
    if version != LIBXL_VERSION:
        raise StreamError(f"libxl's stream has version {version}, only {LIBXL_VERSION} is known")
    if options & LIBXL_BIG_ENDIAN:
        raise StreamError("libxl's stream is big-endian")
    return LibxlHeader(options)


def libxc_header(head: bytes = b"") -> Parser[LibxcHeader]:
    """Image header and domain header."""
    marker = head + (yield len(LIBXC_MARKER) - len(head)) if len(head) < MAGIC_SIZE else head
    ident, version, options, reserved = LIBXC_HEADER.unpack((yield LIBXC_HEADER.size))
    if marker != LIBXC_MARKER or ident != LIBXC_IDENT:
        raise StreamError("the stream of libxc does not begin here")
    if version not in LIBXC_VERSIONS:
        raise StreamError(f"libxc's stream has version {version}, only 2 and 3 are known")
    if options & LIBXC_BIG_ENDIAN:
        raise StreamError("libxc's stream is big-endian")
    guest, shift, domain_reserved, *xen = LIBXC_DOMAIN.unpack((yield LIBXC_DOMAIN.size))
    if shift != PAGE_SHIFT:
        raise StreamError(f"pages of 2^{shift} bytes; only 4096 is known")
    if guest not in tuple(Guest):
        raise StreamError(f"a guest of the unknown type {guest}")
    return LibxcHeader(version, Guest(guest), (xen[0], xen[1]), options, reserved, domain_reserved)


def record_header() -> Parser[tuple[int, int]]:
    """Type and length of the record that follows, of either layer."""
    kind, length = RECORD.unpack((yield RECORD.size))
    if length > MAX_BODY:
        raise StreamError(f"a record of {length} bytes, the limit is {MAX_BODY}")
    return kind, length


def padding(length: int) -> Parser[bytes]:
    """What fills a body of this length up to a multiple of 8; nothing if it is all zero."""
    size = -length % 8
    if not size:
        return b""
    filling = yield size
    return filling if any(filling) else b""


def body(length: int) -> Parser[tuple[bytes, bytes]]:
    """A body and its padding, see ``padding``."""
    if not length:
        return b"", b""
    padded = yield length + -length % 8
    filling = padded[length:]
    return padded[:length], filling if any(filling) else b""


# Writing


def record(
    kind: int, content: bytes = b"", layer: Layer = Layer.LIBXC, value: Value = None
) -> Record:
    """A record to be written."""
    return Record(layer, kind, content, value)


def pack(piece: Piece) -> bytes:
    """A piece as a file has it, without its bulk and what pads that."""
    match piece:
        case Record(_, kind, content, _, filling):
            end = filling or bytes(-len(content) % 8)
            return RECORD.pack(kind, len(content)) + content + end
        case Pages(entries, _, reserved):
            count = len(entries)
            length = PAGES.size + 8 * count + piece.bulk
            head = RECORD.pack(Libxc.PAGE_DATA, length) + PAGES.pack(count, reserved)
            return head + entries.tobytes()
        case Blob(emulator, index, int(bulk)):
            return RECORD.pack(Libxl.EMULATOR_CONTEXT, IDS.size + bulk) + IDS.pack(emulator, index)
    return pack_header(piece)


def pack_header(piece: Piece) -> bytes:
    """A header; nothing for pieces that only say what there would be."""
    match piece:
        case XlHeader(mandatory, optional, data):
            return XL_MAGIC + XL_HEADER.pack(XL_BYTEORDER, mandatory, optional, len(data)) + data
        case XendHeader(text):
            return XEND_MAGIC + XEND_LENGTH.pack(len(text)) + text
        case LibxlHeader(options):
            return LIBXL_MAGIC + LIBXL_HEADER.pack(LIBXL_VERSION, options)
        case LibxcHeader(version, guest, xen, options, reserved, domain_reserved):
            image = LIBXC_HEADER.pack(LIBXC_IDENT, version, options, reserved)
            domain = LIBXC_DOMAIN.pack(guest, PAGE_SHIFT, domain_reserved, *xen)
            return LIBXC_MARKER + image + domain
    return b""
