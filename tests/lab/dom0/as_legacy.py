"""Writes a save file's guest as Xen 4.0's tools would have: as_legacy.py FORM IN OUT.

FORM is `xl`, for a file of xl with the old stream in it; or `inside`, for one of today with the old
stream in the place of libxc's, which nobody but a test would make. It knows PV guests of 64 bits.
"""

import os
import struct
import sys

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug.restore import framing, savefile
from hotplug.restore.image import Image
from hotplug.restore.pieces import LibxlHeader, P2mFrames, Pages, Record, TscInfo, Vcpu, XlHeader
from hotplug.restore.records import Libxc

CONTEXT = 5168  # bytes of a vcpu's state
WITH_DATA = 13  # types below have a page of data
NOTHING = 0xF0000000


def batch(image, pages):
    entries = [entry >> 60 << 28 | entry & (1 << 52) - 1 for entry in pages.entries]
    told = [NOTHING if entry >> 28 == 15 else entry for entry in entries]
    yield struct.pack(f"<i{len(told)}Q", len(told), *told)
    yield image.read(pages.bulk)


def front(form, header):
    """xl's header, and libxl's if the stream is inside of one."""
    flags = header.mandatory_flags if form == "inside" else header.mandatory_flags & ~2
    yield framing.pack(XlHeader(flags, 0, header.optional_data))
    if form == "inside":
        yield framing.pack(LibxlHeader(0)) + framing.RECORD.pack(1, 0)


def stream(form, image):
    vcpus, shared, tsc = {}, b"", None
    for piece in image.pieces(savefile.parse()):
        if isinstance(piece, XlHeader):
            yield from front(form, piece)
        elif isinstance(piece, Pages):
            yield from batch(image, piece)
        elif isinstance(piece, Record) and isinstance(piece.value, P2mFrames):
            yield begin(piece.value)
        elif isinstance(piece, Record) and isinstance(piece.value, Vcpu):
            vcpus.setdefault(piece.value.vcpu, {})[piece.kind] = piece.value.blob
        elif isinstance(piece, Record) and isinstance(piece.value, TscInfo):
            tsc = piece.value
        elif isinstance(piece, Record) and piece.kind == Libxc.SHARED_INFO:
            shared = piece.body
    yield struct.pack("<iIQII", -7, tsc.mode, tsc.nsec, tsc.khz, tsc.incarnation)
    yield struct.pack("<iiQ", -2, max(vcpus), sum(1 << vcpu for vcpu in vcpus))
    yield struct.pack("<iI", 0, 0)
    for _, state in sorted(vcpus.items()):
        yield state[Libxc.X86_PV_VCPU_BASIC]
        yield state[Libxc.X86_PV_VCPU_EXTENDED].ljust(128, b"\0")
    yield shared
    if form == "inside":
        yield framing.RECORD.pack(0, 0)


def begin(p2m):
    blocks = struct.pack("<4sI", b"vcpu", CONTEXT) + bytes(CONTEXT)
    blocks += struct.pack("<4sI", b"extv", 0)
    yields = struct.pack("<QQI", p2m.end + 1, 2**64 - 1, len(blocks)) + blocks
    return yields + struct.pack(f"<{len(p2m.frames)}Q", *p2m.frames)


form, source, target = sys.argv[1:]
image = Image(os.open(source, os.O_RDONLY), source)
with open(target, "wb") as out:
    out.writelines(stream(form, image))
