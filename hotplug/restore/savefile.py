"""A whole save file: whose headers are in front, which streams follow, up to the last END.

Understood are the files of xl (today's, and those around a legacy stream), those of xend, and the
bare streams that the helpers of both write.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hotplug.restore import framing, legacy, records
from hotplug.restore.framing import IDS, MAGIC_SIZE, XL_STREAM_V2
from hotplug.restore.pieces import Blob, Guest, Layer, Record, StreamError
from hotplug.restore.records import Libxl
from hotplug.restore.stream import libxc

if TYPE_CHECKING:
    from hotplug.restore.legacy import Choice
    from hotplug.restore.pieces import Parser

MAX_KEYS = 1 << 20  # bytes of the device model's keys; a few hundred are usual
HVM_IMAGE = re.compile(rb"\(image\s*\(hvm\b")


def parse(choice: Choice | None = None) -> Parser[None]:
    """Every piece of a file. ``choice`` is what a legacy stream does not tell about itself."""
    choice = choice or legacy.Choice()
    head = yield MAGIC_SIZE
    if framing.XL_MAGIC.startswith(head):
        header = yield from framing.xl_header(head)
        yield header
        if header.mandatory_flags & XL_STREAM_V2:
            yield from libxl()
        else:
            yield from legacy.image(choice, bare=False)
    elif framing.XEND_MAGIC.startswith(head):
        front = yield from framing.xend_header(head)
        yield front
        yield from legacy.image(xend_choice(choice, front.config), bare=False)
    elif head == framing.LIBXL_MAGIC:
        yield from libxl(head)
    elif head == framing.LIBXC_MARKER:
        yield from libxc(head)
    else:
        yield from legacy.image(choice, head)


def xend_choice(choice: Choice, config: bytes) -> Choice:
    """What xend's configuration says about the guest, unless it has been told."""
    if choice.guest is not None:
        return choice
    return legacy.Choice(choice.word, Guest.HVM if HVM_IMAGE.search(config) else Guest.PV)


def libxl(head: bytes = b"") -> Parser[None]:
    """The stream of libxl with that of libxc in it."""
    header = yield from framing.libxl_header(head)
    yield header
    guest: Guest | None = None
    kind: int = -1
    while kind != Libxl.END:
        kind, length = yield from framing.record_header()
        if kind == Libxl.LIBXC_CONTEXT:
            if guest is not None:
                raise StreamError("a second LIBXC_CONTEXT record")
            yield record(kind, length)
            guest = (yield from libxc()).guest
        elif kind in (Libxl.EMULATOR_XENSTORE_DATA, Libxl.EMULATOR_CONTEXT):
            if guest is not Guest.HVM:
                raise StreamError(f"{Libxl(kind).name} for a guest that has no device model")
            yield from emulator(kind, length)
        else:
            yield record(kind, length)
    if guest is None:
        raise StreamError("libxl's stream ends without a stream of libxc")


def record(kind: int, length: int) -> Record:
    """A record of libxl that only marks a place."""
    if kind in (Libxl.CHECKPOINT_END, Libxl.CHECKPOINT_STATE):
        raise StreamError(f"a {Libxl(kind).name} record: the stream has checkpoints")
    if kind not in records.LIBXL_KINDS:
        raise StreamError(f"a record of the type {kind:#010x}, which libxl does not know")
    if length:
        raise StreamError(f"a {Libxl(kind).name} record with {length} bytes; it has to be empty")
    return Record(Layer.LIBXL, kind)


def emulator(kind: int, length: int) -> Parser[None]:
    """State of the device model: its keys, or what it wrote itself."""
    if kind == Libxl.EMULATOR_CONTEXT:
        if length < IDS.size:
            raise StreamError(f"a device model's state in {length} bytes")
        number, index = IDS.unpack((yield IDS.size))
        yield Blob(number, index, length - IDS.size)
        if (yield from framing.padding(length)):
            raise StreamError("the device model's state is padded with other than zeros")
        return
    if length > MAX_KEYS:
        raise StreamError(f"{length} bytes of keys for the device model, the limit is {MAX_KEYS}")
    body, padding = yield from framing.body(length)
    yield Record(Layer.LIBXL, kind, body, records.emulator_xenstore(body), padding)
