"""The bodies of records: their numbers and names, bytes to values, values to bytes.

What the stock tools refuse is refused. The order of records is ``stream``'s business.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from hotplug.restore.pieces import (
    PAGE_SIZE,
    EmulatorXenstore,
    HvmParams,
    P2mFrames,
    PvInfo,
    StreamError,
    TscInfo,
    Vcpu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.restore.pieces import Value

OPTIONAL = 1 << 31  # of a type: who does not know it may skip the record


class Libxl(IntEnum):
    """Types of libxl's records."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


class Libxc(IntEnum):
    """Types of libxc's records, and two of ours."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_PV_INFO = 0x02
    X86_PV_P2M_FRAMES = 0x03
    X86_PV_VCPU_BASIC = 0x04
    X86_PV_VCPU_EXTENDED = 0x05
    X86_PV_VCPU_XSAVE = 0x06
    SHARED_INFO = 0x07
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    TOOLSTACK = 0x0B
    X86_PV_VCPU_MSRS = 0x0C
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12
    # Mandatory, so that the stock tools refuse the file: allocate-only pages are zero pages here.
    DENSE = 0x7F58485A
    # Optional, so that they skip it: zeros that move the pages behind it to where a file has pages.
    FILLER = 0xFFFFFF01


LIBXL_KINDS, LIBXC_KINDS = frozenset(Libxl), frozenset(Libxc)
VCPU_KINDS = frozenset(
    {
        Libxc.X86_PV_VCPU_BASIC,
        Libxc.X86_PV_VCPU_EXTENDED,
        Libxc.X86_PV_VCPU_XSAVE,
        Libxc.X86_PV_VCPU_MSRS,
    }
)
PV_KINDS = VCPU_KINDS | {Libxc.X86_PV_INFO, Libxc.X86_PV_P2M_FRAMES, Libxc.SHARED_INFO}
HVM_KINDS = frozenset({Libxc.HVM_CONTEXT, Libxc.HVM_PARAMS})
EMPTY_KINDS = frozenset({Libxc.END, Libxc.VERIFY, Libxc.CHECKPOINT, Libxc.STATIC_DATA_END})

PV_INFO = struct.Struct("<BB6s")  # guest width, page-table levels, reserved
PAIR = struct.Struct("<II")  # the first two numbers of several bodies
TSC_INFO = struct.Struct("<IIQII")  # mode, khz, nsec, incarnation, reserved
CPUID_LEAF, MSR_ENTRY = 24, 16  # bytes
DENSE_VERSION = 1

PV_MODES = {PvInfo(4, 3), PvInfo(8, 4)}
CONTEXT_SIZE = {4: 2800, 8: 5168}  # struct vcpu_guest_context, by width
MAX_EXTENDED = 128  # bytes; the space in struct xen_domctl
MIN_XSAVE = 16  # xcr0, xcr0_accum
MAX_VCPUS = 8192  # Xen's MAX_VIRT_CPUS
# The savers refuse larger guests ("Cannot save this big a guest"): 1 TiB.
MAX_PFNS = 1 << 28
MAX_PARAMS = 1024  # HVM_NR_PARAMS is 39


def name(kind: int, kinds: type[Libxc | Libxl] = Libxc) -> str:
    """What a record is called."""
    return kinds(kind).name if kind in frozenset(kinds) else f"{kind:#010x}"


def pv_info(body: bytes) -> PvInfo:
    width, levels, _ = unpack(PV_INFO, body)
    if PvInfo(width, levels) not in PV_MODES:
        raise StreamError(f"a PV guest of width {width} with {levels} levels of page tables")
    return PvInfo(width, levels)


def p2m_frames(body: bytes, width: int) -> P2mFrames:
    start, end = unpack_head(PAIR, body)
    if start > end:
        raise StreamError(f"P2M frames from pfn {start:#x} to {end:#x}")
    if end >= MAX_PFNS:
        raise StreamError(f"a guest of {end + 1} pages, the limit is {MAX_PFNS}")
    per_frame = PAGE_SIZE // width
    count = end // per_frame - start // per_frame + 1
    if len(body) != PAIR.size + 8 * count:
        raise StreamError(
            f"P2M frames for pfn {start:#x} to {end:#x} in {len(body)} bytes,"
            f" it should be {PAIR.size + 8 * count}"
        )
    return P2mFrames(start, end, struct.unpack_from(f"<{count}Q", body, PAIR.size))


def vcpu(kind: int, body: bytes, width: int) -> Vcpu:
    """State of a vcpu. An empty one, as Xen 4.6 to 4.8 wrote them, says nothing."""
    number, _ = unpack_head(PAIR, body)
    if number >= MAX_VCPUS:
        raise StreamError(f"state of vcpu {number}; there are {MAX_VCPUS} at most")
    blob = body[PAIR.size :]
    size = len(blob)
    if not size:
        return Vcpu(number, b"")
    if kind == Libxc.X86_PV_VCPU_BASIC and size != CONTEXT_SIZE[width]:
        raise StreamError(f"vcpu {number} has {size} bytes of state, not {CONTEXT_SIZE[width]}")
    if kind == Libxc.X86_PV_VCPU_EXTENDED and size > MAX_EXTENDED:
        raise StreamError(f"vcpu {number} has {size} bytes of extended state, not {MAX_EXTENDED}")
    if kind == Libxc.X86_PV_VCPU_XSAVE and size < MIN_XSAVE:
        raise StreamError(f"vcpu {number} has {size} bytes of XSAVE state, which is too short")
    if kind == Libxc.X86_PV_VCPU_MSRS and size % MSR_ENTRY:
        raise StreamError(f"vcpu {number} has {size} bytes of MSRs, no multiple of {MSR_ENTRY}")
    return Vcpu(number, blob)


def tsc_info(body: bytes) -> TscInfo:
    mode, khz, nsec, incarnation, _ = unpack(TSC_INFO, body)
    return TscInfo(mode, khz, nsec, incarnation)


def hvm_params(body: bytes) -> HvmParams:
    count, _ = unpack_head(PAIR, body)
    if count > MAX_PARAMS or len(body) != PAIR.size + 16 * count:
        raise StreamError(f"{count} HVM parameters in {len(body)} bytes")
    numbers = struct.unpack_from(f"<{2 * count}Q", body, PAIR.size)
    return HvmParams(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def opaque(kind: int, body: bytes) -> None:
    """Check a body that has no value of its own."""
    size = len(body)
    if kind in EMPTY_KINDS and size:
        raise StreamError(f"a {name(kind)} record with {size} bytes; it has to be empty")
    if kind == Libxc.SHARED_INFO and size != PAGE_SIZE:
        raise StreamError(f"a SHARED_INFO record with {size} bytes, not {PAGE_SIZE}")
    if kind == Libxc.HVM_CONTEXT and not size:
        raise StreamError("an empty HVM_CONTEXT record")
    if kind == Libxc.X86_CPUID_POLICY and (not size or size % CPUID_LEAF):
        raise StreamError(f"a CPUID policy of {size} bytes, no multiple of {CPUID_LEAF}")
    if kind == Libxc.X86_MSR_POLICY and (not size or size % MSR_ENTRY):
        raise StreamError(f"an MSR policy of {size} bytes, no multiple of {MSR_ENTRY}")
    if kind == Libxc.DENSE and body != PAIR.pack(DENSE_VERSION, 0):
        raise StreamError("the file leaves zero pages out in a way that is unknown here")


WITHOUT_WIDTH: dict[int, Callable[[bytes], Value]] = {
    Libxc.X86_PV_INFO: pv_info,
    Libxc.X86_TSC_INFO: tsc_info,
    Libxc.HVM_PARAMS: hvm_params,
}


def value(kind: int, body: bytes, width: int) -> Value:
    """What the body of a known libxc record says; the width is that of a PV guest."""
    if kind == Libxc.X86_PV_P2M_FRAMES:
        return p2m_frames(body, width)
    if kind in VCPU_KINDS:
        return vcpu(kind, body, width)
    if kind in WITHOUT_WIDTH:
        return WITHOUT_WIDTH[kind](body)
    opaque(kind, body)
    return None


def emulator_xenstore(body: bytes) -> EmulatorXenstore:
    emulator, index = unpack_head(PAIR, body)
    text = body[PAIR.size :]
    if text and not text.endswith(b"\0"):
        raise StreamError("the device model's keys do not end with NUL")
    strings = text.split(b"\0")[:-1]
    if len(strings) % 2 or not all(strings[::2]):
        raise StreamError("the device model's keys and values are no pairs")
    return EmulatorXenstore(emulator, index, tuple(zip(strings[::2], strings[1::2], strict=True)))


def unpack(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) != layout.size:
        raise StreamError(f"a body of {len(body)} bytes, it should have {layout.size}")
    return layout.unpack(body)


def unpack_head(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < layout.size:
        raise StreamError(f"a body of {len(body)} bytes, it should have {layout.size} or more")
    return layout.unpack_from(body)


# Writing


def pack_pv_info(info: PvInfo) -> bytes:
    return PV_INFO.pack(info.width, info.levels, bytes(6))


def pack_p2m_frames(p2m: P2mFrames) -> bytes:
    return PAIR.pack(p2m.start, p2m.end) + struct.pack(f"<{len(p2m.frames)}Q", *p2m.frames)


def pack_vcpu(state: Vcpu) -> bytes:
    return PAIR.pack(state.vcpu, 0) + state.blob


def pack_tsc_info(tsc: TscInfo) -> bytes:
    return TSC_INFO.pack(tsc.mode, tsc.khz, tsc.nsec, tsc.incarnation, 0)


def pack_hvm_params(params: Sequence[tuple[int, int]]) -> bytes:
    return PAIR.pack(len(params), 0) + b"".join(struct.pack("<QQ", *pair) for pair in params)


def pack_emulator_xenstore(keys: EmulatorXenstore) -> bytes:
    strings = b"".join(key + b"\0" + text + b"\0" for key, text in keys.pairs)
    return PAIR.pack(keys.emulator, keys.index) + strings


DENSE_BODY = PAIR.pack(DENSE_VERSION, 0)
