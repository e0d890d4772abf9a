"""Streams of Xen 4.5 and older, told as the pieces that a stream of today would have.

So who restores, looks at or converts one needs to know nothing of them. There is no version and no
type in such a stream; what it does not tell is guessed, or told by ``Choice``. The truth is the
comment in Xen 4.17's tools/python/xen/migration/legacy.py, and xc_domain_save.c of Xen 3.4 to 4.5.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotplug.restore import framing, pages, records
from hotplug.restore.framing import MAGIC_SIZE, MAX_BODY, record
from hotplug.restore.pieces import (
    PAGE_SIZE,
    Blob,
    EmulatorXenstore,
    Guest,
    HvmParams,
    Layer,
    LegacyHeader,
    LibxcHeader,
    LibxlHeader,
    OrEnd,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StreamError,
    TscInfo,
    Vcpu,
)
from hotplug.restore.records import MAX_PFNS, Libxc, Libxl

if TYPE_CHECKING:
    from hotplug.restore.pieces import Parser

MARKER = struct.Struct("<i")
NUMBER = struct.Struct("<I")
BLOCK = struct.Struct("<4sI")  # of the extended info: name, size
TSC = struct.Struct("<IQII")  # mode, nsec, khz, incarnation
PARAM = struct.Struct("<IQ")  # padding, value
XSAVE = struct.Struct("<QQ")  # mask, size
MAGIC_PFNS = struct.Struct("<QQQ")  # ioreq, buffered ioreq, store
PHYSMAP = struct.Struct("<QQQI")  # offset, start, size, length of the name

MAX_BATCH = 1024  # pages; what every restorer of the time had room for
MAX_EXTENDED_INFO = 1 << 20  # bytes; some 5,300 are usual
MAX_XSAVE = 1 << 20  # bytes; the largest processors have some 11,000
MAX_TOOLSTACK = 1 << 20  # bytes
MAX_VCPU = 4095
PIECE = 1 << 16  # bytes read at a time of what has no meaning

TYPE_MASK, PFN_MASK = 0xF0000000, 0x0FFFFFFF
NOTHING = 0xF0000000  # savers of PV guests wrote this for every page that is not there

END, VERIFY, VCPUS, TSC_INFO, LAST_CHECKPOINT, TOOLSTACK = 0, -1, -2, -7, -9, -18
PARAMS = {  # chunks that are an HVM parameter of today
    -3: 12, -4: 15, -8: 17, -10: 19, -11: 9, -14: 34, -15: 27, -16: 28, -17: 29, -19: 32, -20: 33,
    -21: 36,
}  # fmt: skip
REFUSED = {-5: "tmem pages", -6: "tmem pages", -12: "compressed pages", -13: "compressed pages"}
OLDEST_MARKER = -21
IOREQ_PFN, BUFIOREQ_PFN, STORE_PFN = 5, 6, 1

TO_THE_END = b"QemuDeviceModelRecord"
WITH_LENGTH = (b"DeviceModelRecord0002", b"RemusDeviceModelState")
EXTENDED_SIZE = 128  # of a vcpu's extended state


@dataclass(frozen=True, slots=True)
class Choice:
    """What a legacy stream does not tell; None lets us guess."""

    word: int | None = None  # bytes in an unsigned long of the tools that saved it
    guest: Guest | None = None


@dataclass(slots=True)
class Facts:
    """What a stream has told about its guest so far."""

    header: LegacyHeader
    info: PvInfo
    extended: bool = False  # vcpus have extended state
    xsave: int = 0  # bytes of a vcpu's XSAVE state, 16 of them in front
    vcpus: tuple[int, ...] = (0,)
    params: dict[int, int] = field(default_factory=dict)
    keys: list[tuple[bytes, bytes]] = field(default_factory=list)
    last: bool = False  # no other checkpoint follows

    @property
    def word(self) -> int:
        return self.header.word


def image(choice: Choice, head: bytes = b"", *, bare: bool = True) -> Parser[None]:
    """A stream and the device model's state behind it, as libxl's stream of today.

    ``head``: what was read of it already. A bare stream may end without a device model's state.
    """
    header, marker = yield from begin(choice, head)
    yield header
    yield LibxlHeader(framing.LIBXL_CONVERTED)
    yield Record(Layer.LIBXL, Libxl.LIBXC_CONTEXT)
    keys = yield from stream(header, marker)
    if keys:
        value = EmulatorXenstore(0, 0, keys)
        body = records.pack_emulator_xenstore(value)
        yield Record(Layer.LIBXL, Libxl.EMULATOR_XENSTORE_DATA, body, value)
    if header.guest is Guest.HVM:
        yield from emulator(bare=bare)
    yield Record(Layer.LIBXL, Libxl.END)


def begin(choice: Choice, head: bytes = b"") -> Parser[tuple[LegacyHeader, bytes]]:
    """What a stream is; and its next four bytes."""
    if len(head) < MAGIC_SIZE:
        head += yield MAGIC_SIZE - len(head)
    word = choice.word or (4 if any(head[4:]) else 8)
    p2m_size = int.from_bytes(head[:word], "little")
    if not 0 < p2m_size <= MAX_PFNS:
        raise StreamError(
            f"this is no save file: it begins with {head!r}, as no save file of any Xen does"
        )
    marker = head[4:] if word == 4 else (yield 4)
    return LegacyHeader(word, p2m_size, choice.guest or guess(marker)), marker


def guess(marker: bytes) -> Guest:
    """The type of a guest, by what follows its size.

    For a PV guest that is the extended info, or the pfn of a frame in its kernel; for an HVM guest
    a chunk.
    """
    (number,) = MARKER.unpack(marker)
    chunk = OLDEST_MARKER <= number <= MAX_BATCH and number not in (END, VERIFY)
    return Guest.HVM if chunk else Guest.PV


def stream(
    header: LegacyHeader, marker: bytes, rounds: int = 1
) -> Parser[tuple[tuple[bytes, bytes], ...]]:
    """What libxc wrote, up to the last byte of it; keys for the device model.

    ``marker``: the four bytes behind those that made the header. ``rounds``: how many checkpoints
    there are, as from ``checkpoints``; what a later one tells is in the place of what was before.
    """
    facts, marker = yield from static_data(header, marker)
    for left in reversed(range(rounds)):
        yield from one_round(facts, marker)
        marker = b""
        if left and header.guest is Guest.HVM:
            yield from emulator(bare=False)
    yield record(Libxc.END)
    return tuple(facts.keys)


def checkpoints(header: LegacyHeader, marker: bytes) -> Parser[None]:
    """The same without an end of its own, but with END behind each checkpoint that is complete."""
    facts, marker = yield from static_data(header, marker)
    while not facts.last:
        yield from one_round(facts, marker)
        marker = b""
        if header.guest is Guest.HVM:
            yield from emulator(bare=False)
        yield record(Libxc.END)


def static_data(header: LegacyHeader, marker: bytes) -> Parser[tuple[Facts, bytes]]:
    """What comes once; and what was read already of what comes next."""
    facts = Facts(header, PvInfo(8, 4) if header.word == 8 else PvInfo(4, 3))
    yield LibxcHeader(framing.LIBXC_VERSIONS[-1], header.guest, (0, 1))
    if header.guest is Guest.HVM:
        yield record(Libxc.STATIC_DATA_END)
        return facts, marker
    number = marker + ((yield 4) if facts.word == 8 else b"")
    if number == b"\xff" * facts.word:
        yield from extended_info(facts)
        number = b""
    yield record(Libxc.X86_PV_INFO, records.pack_pv_info(facts.info), value=facts.info)
    yield record(Libxc.STATIC_DATA_END)
    yield from p2m_frames(facts, number)
    return facts, b""


def one_round(facts: Facts, marker: bytes) -> Parser[None]:
    yield from chunks(facts, marker)
    yield from (hvm_tail() if facts.header.guest is Guest.HVM else pv_tail(facts))


def extended_info(facts: Facts) -> Parser[None]:
    (left,) = NUMBER.unpack((yield NUMBER.size))
    if left > MAX_EXTENDED_INFO:
        raise StreamError(f"{left} bytes of extended info, the limit is {MAX_EXTENDED_INFO}")
    while left:
        name, size = BLOCK.unpack((yield BLOCK.size)) if left >= BLOCK.size else (b"", left)
        left -= BLOCK.size + size
        if left < 0:
            raise StreamError("a block of the extended info is longer than all of it")
        data = (yield size) if size else b""
        if name == b"vcpu":
            widths = {size: width for width, size in records.CONTEXT_SIZE.items()}
            if size not in widths:
                raise StreamError(f"a vcpu has {size} bytes of state, which tells no word size")
            facts.info = PvInfo(widths[size], 4 if widths[size] == 8 else 3)
        elif name == b"extv":
            facts.extended = True
        elif name == b"xcnt":
            facts.xsave = int.from_bytes(data[:4], "little")
            if not 2 * records.MIN_XSAVE <= facts.xsave <= MAX_XSAVE:
                raise StreamError(f"a vcpu has {facts.xsave} bytes of XSAVE state")


def p2m_frames(facts: Facts, first: bytes) -> Parser[None]:
    size = facts.header.p2m_size
    count = (size - 1) // (PAGE_SIZE // facts.info.width) + 1
    left = count * facts.word - len(first)
    data = first + ((yield left) if left else b"")
    frames = P2mFrames(0, size - 1, words(facts.word, data))
    yield record(Libxc.X86_PV_P2M_FRAMES, records.pack_p2m_frames(frames), value=frames)


def words(word: int, data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // word}{'Q' if word == 8 else 'I'}", data)


def chunks(facts: Facts, marker: bytes = b"") -> Parser[None]:
    while True:
        (number,) = MARKER.unpack(marker or (yield MARKER.size))
        marker = b""
        if number == END:
            break
        if number > 0:
            batch = yield from page_batch(facts, number)
            if batch is not None:
                yield batch
        elif number == VERIFY:
            yield record(Libxc.VERIFY)
        elif number == TSC_INFO:
            mode, nsec, khz, incarnation = TSC.unpack((yield TSC.size))
            tsc = TscInfo(mode, khz, nsec, incarnation)
            yield record(Libxc.X86_TSC_INFO, records.pack_tsc_info(tsc), value=tsc)
        elif number == LAST_CHECKPOINT:
            facts.last = True
        else:
            yield from note(facts, number)
    if facts.params:
        yield hvm_params(tuple(facts.params.items()))


def note(facts: Facts, number: int) -> Parser[None]:
    """A chunk that tells something for later."""
    if number == VCPUS:
        facts.vcpus = yield from online_vcpus()
    elif number == TOOLSTACK:
        (size,) = NUMBER.unpack((yield NUMBER.size))
        if size > MAX_TOOLSTACK:
            raise StreamError(f"{size} bytes of libxl's, the limit is {MAX_TOOLSTACK}")
        facts.keys += physmap((yield size), facts.word) if size else []
    elif number in PARAMS:
        if facts.header.guest is not Guest.HVM:
            raise StreamError(f"an HVM parameter (chunk {number}) of a PV guest")
        _, facts.params[PARAMS[number]] = PARAM.unpack((yield PARAM.size))
    elif number in REFUSED:
        raise StreamError(f"{REFUSED[number]} (chunk {number}) cannot be read")
    else:
        raise StreamError(f"a chunk of the unknown type {number}")


def hvm_params(params: tuple[tuple[int, int], ...]) -> Record:
    return record(Libxc.HVM_PARAMS, records.pack_hvm_params(params), value=HvmParams(params))


def page_batch(facts: Facts, count: int) -> Parser[Pages | None]:
    """None if it says nothing but that pages are not there."""
    if count > MAX_BATCH:
        raise StreamError(f"a batch of {count} pages, the limit is {MAX_BATCH}")
    told = [one for one in words(facts.word, (yield count * facts.word)) if one != NOTHING]
    if not told:
        return None
    if max(told) > TYPE_MASK | PFN_MASK:
        raise StreamError(f"an entry of {max(told):#x} in a batch of pages, it has only 32 bits")
    entries = array("Q", ((one & TYPE_MASK) << 32 | one & PFN_MASK for one in told))
    if len(set(pages.pfns(entries))) != len(entries):
        raise StreamError("a pfn occurs twice in a batch of pages")
    if facts.header.guest is Guest.PV:
        pages.refuse_beyond(entries, facts.header.p2m_size - 1)
    return Pages(entries, pages.count_data(entries))


def online_vcpus() -> Parser[tuple[int, ...]]:
    (last,) = MARKER.unpack((yield MARKER.size))
    if not 0 <= last <= MAX_VCPU:
        raise StreamError(f"the last vcpu has the number {last}, the limit is {MAX_VCPU}")
    bits = int.from_bytes((yield 8 * (last // 64 + 1)), "little")
    return tuple(vcpu for vcpu in range(last + 1) if bits >> vcpu & 1)


def physmap(data: bytes, word: int) -> list[tuple[bytes, bytes]]:
    """Where QEMU had its memory, which is keys in xenstore today.

    Tools of 64 bits wrote four bytes too many of each, those of 32 bits did not.
    """
    if len(data) < 8 or int.from_bytes(data[:4], "little") != 1:
        raise StreamError("libxl's own data has an unknown version")
    count = int.from_bytes(data[4:8], "little")
    keys: list[tuple[bytes, bytes]] = []
    at = 8
    for _ in range(count):
        if len(data) - at < PHYSMAP.size:
            raise StreamError("libxl's own data ends too early")
        offset, start, size, length = PHYSMAP.unpack_from(data, at)
        at += PHYSMAP.size
        name = data[at : at + length]
        at += length + (4 if word == 8 else 0)
        if at > len(data) or not name.endswith(b"\0"):
            raise StreamError("libxl's own data has a broken name")
        root = b"physmap/%x/" % offset
        keys += [
            (root + b"start_addr", b"%x" % start),
            (root + b"size", b"%x" % size),
            (root + b"name", name[:-1]),
        ]
    return keys


def pv_tail(facts: Facts) -> Parser[None]:
    (unmapped,) = NUMBER.unpack((yield NUMBER.size))
    if unmapped > facts.header.p2m_size:
        raise StreamError(f"{unmapped} pages are not mapped, of {facts.header.p2m_size}")
    left = unmapped * facts.word  # pages that were gone in the end; nothing was sent for them
    while left:
        left -= len((yield min(left, PIECE)))
    if 0 not in facts.vcpus:
        raise StreamError("the state of vcpu 0 is missing")
    for vcpu in facts.vcpus:
        basic = yield records.CONTEXT_SIZE[facts.info.width]
        yield vcpu_record(Libxc.X86_PV_VCPU_BASIC, vcpu, basic)
        if facts.extended:
            yield vcpu_record(Libxc.X86_PV_VCPU_EXTENDED, vcpu, (yield EXTENDED_SIZE))
        if facts.xsave:
            _, size = XSAVE.unpack((yield XSAVE.size))
            if size != facts.xsave - XSAVE.size:
                raise StreamError(f"vcpu {vcpu} has {size} bytes of XSAVE state, others differ")
            yield vcpu_record(Libxc.X86_PV_VCPU_XSAVE, vcpu, (yield size))
    yield record(Libxc.SHARED_INFO, (yield PAGE_SIZE))


def vcpu_record(kind: int, vcpu: int, blob: bytes) -> Record:
    state = Vcpu(vcpu, blob)
    return record(kind, records.pack_vcpu(state), value=state)


def hvm_tail() -> Parser[None]:
    ioreq, bufioreq, store = MAGIC_PFNS.unpack((yield MAGIC_PFNS.size))
    yield hvm_params(((IOREQ_PFN, ioreq), (BUFIOREQ_PFN, bufioreq), (STORE_PFN, store)))
    (size,) = NUMBER.unpack((yield NUMBER.size))
    if not 0 < size <= MAX_BODY:
        raise StreamError(f"an HVM context of {size} bytes, the limit is {MAX_BODY}")
    yield record(Libxc.HVM_CONTEXT, (yield size))


def emulator(*, bare: bool) -> Parser[None]:
    """The device model's state, if there is one."""
    signature = yield OrEnd(len(TO_THE_END)) if bare else len(TO_THE_END)
    if not signature:
        return
    if signature == TO_THE_END:
        yield Blob(0, 0, None)
    elif signature in WITH_LENGTH:
        (size,) = NUMBER.unpack((yield NUMBER.size))
        if size > MAX_BODY - framing.IDS.size:
            raise StreamError(f"a device model's state of {size} bytes, the limit is {MAX_BODY}")
        yield Blob(0, 0, size)
    else:
        raise StreamError(f"the state of an unknown device model: {signature!r}")
