"""Save files, written by the specification alone: nothing here comes from what is tested."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

NOTAB, L1, L2, L3, L4, PIN, BROKEN, XALLOC, XTAB = 0, 1, 2, 3, 4, 8, 0xD, 0xE, 0xF
ZERO = bytes(4096)
CONFIG = {"c_info": {"type": "pv", "name": "test guest"}, "b_info": {}}
CONTEXT = {8: 5168, 4: 2800}
# start_info, gdt_frames, gdt_ents, ctrlreg: of the public struct vcpu_guest_context
FIELDS = {8: (616, 4832, 4960, 4984, "<Q"), 4: (524, 2640, 2704, 2716, "<I")}


def has_data(kind):
    return kind <= 4 or 9 <= kind <= 12


def page(number):
    """A page that is not zero, and different for each number."""
    return struct.pack("<Q", number * 0x9E3779B97F4A7C15 % 2**64 | 1) * 512


def half_zero(number):
    """Zero but for its last byte."""
    return bytes(4095) + bytes([number % 255 + 1])


@dataclass
class Page:
    kind: int
    pfn: int
    data: bytes = ZERO


def table(*pfns):
    """A page table with present entries, and one that is not present and names nothing."""
    entries = [pfn << 12 | 0x8000000000000067 for pfn in pfns]
    return struct.pack("<512Q", *entries, 0xFFFFFFFFF << 12, *[0] * (511 - len(pfns)))


def start_info(width=8, store=7, console=8):
    """A page start_info that is a page(1) but for what it names."""
    data = bytearray(page(1))
    _, _, _, _, number = FIELDS[width]
    struct.pack_into(number, data, 56 if width == 8 else 44, store)
    struct.pack_into(number, data, 72 if width == 8 else 52, console)
    return bytes(data)


def pv_memory(width=8):
    """Small, with pages of every type: start_info is pfn 0, the GDT 1, the P2M 2, tables 3-6."""
    top = L4 if width == 8 else L3
    return [
        Page(NOTAB, 0, start_info(width)),
        Page(NOTAB, 1, ZERO),  # a GDT of no descriptors
        Page(NOTAB, 2, page(2)),
        Page(PIN | top, 3, table(4)),
        Page(L2 if width == 4 else L3, 4, table(5)),
        Page(PIN | L1, 5, table(0, 1, 2, 15)),
        Page(L1, 6, ZERO),
        Page(NOTAB, 7, ZERO),
        Page(NOTAB, 8, half_zero(8)),
        Page(XTAB, 9),
        Page(NOTAB, 10, ZERO),
        Page(BROKEN, 11),
        Page(NOTAB, 12, ZERO),
        Page(NOTAB, 13, ZERO),
        Page(NOTAB, 14, page(14)),
        Page(NOTAB, 15, ZERO),
    ]


def record(kind, body=b"", pad=b"\0"):
    return struct.pack("<II", kind, len(body)) + body + pad * (-len(body) % 8)


def xl_header(config=CONFIG, flags=3, optional_flags=0, tail=b""):
    text = json.dumps(config).encode() + b"\0" if config is not None else b""
    data = struct.pack("<I", len(text)) + text + tail if config is not None else b""
    return (
        b"Xen saved domain, xl format\n \0 \r"
        + struct.pack("<IIII", 0x01020304, flags, optional_flags, len(data))
        + data
    )


def libxl_header(options=0):
    return b"LibxlFmt" + struct.pack(">II", 2, options)


def libxc_header(guest, version=3, options=0, reserved=bytes(6), xen=(4, 17), shift=12, dom=0):
    return (
        b"\xff" * 8
        + b"XENF"
        + struct.pack(">IH", version, options)
        + reserved
        + struct.pack("<IHHII", guest, shift, dom, *xen)
    )


def page_data(pages, reserved=0):
    body = struct.pack("<II", len(pages), reserved)
    body += b"".join(struct.pack("<Q", one.kind << 60 | one.pfn) for one in pages)
    body += b"".join(one.data for one in pages if has_data(one.kind))
    return record(1, body)


def batches(pages, size):
    return [page_data(pages[at : at + size]) for at in range(0, len(pages), size)]


def context(width, *, vcpu=0, start_info=0, gdt=(1,), entries=None, cr3=3, cr1=0):
    blob = bytearray(CONTEXT[width])
    at_info, at_gdt, at_entries, at_ctrl, number = FIELDS[width]
    put = lambda at, value: struct.pack_into(number, blob, at, value)  # noqa: E731 - short
    if vcpu == 0:
        put(at_info, start_info)
    for index, pfn in enumerate(gdt):
        put(at_gdt + width * index, pfn)
    put(at_entries, 512 * len(gdt) if entries is None else entries)
    put(at_ctrl + 3 * width, cr3 << 12 if width == 8 else (cr3 << 12 | cr3 >> 20) & 0xFFFFFFFF)
    put(at_ctrl + width, cr1)
    return bytes(blob)


def vcpu_record(kind, vcpu, blob):
    return record(kind, struct.pack("<II", vcpu, 0) + blob)


def p2m_frames(pfns, frames=(2,), start=0):
    return record(3, struct.pack(f"<II{len(frames)}Q", start, pfns - 1, *frames))


def tsc_info():
    return record(8, struct.pack("<IIQII", 1, 2_400_000, 12345, 7, 0))


def params(pairs=((1, 0xFEFF), (5, 0xFEFE), (17, 0xFEFD))):
    return record(
        0xA, struct.pack("<II", len(pairs), 0) + b"".join(struct.pack("<QQ", *p) for p in pairs)
    )


CPUID, MSR = record(0x11, bytes(range(48))), record(0x12, struct.pack("<IIQ", 0xCE, 0, 1 << 31))
STATIC_DATA_END, END = record(0x10), record(0)
LIBXC_CONTEXT = record(1)


@dataclass
class Pv:
    """A PV guest's stream of libxc, part by part."""

    width: int = 8
    version: int = 3
    vcpus: int = 1
    batch: int = 5
    memory: list = None
    parts: dict = field(default_factory=dict)  # in place of the usual ones

    def __post_init__(self):
        if self.memory is None:
            self.memory = pv_memory(self.width)

    def usual(self):
        static = {} if self.version == 2 else {"policy": CPUID + MSR, "static": STATIC_DATA_END}
        last = max(one.pfn for one in self.memory)
        vcpus = b""
        for number in range(self.vcpus):
            vcpus += vcpu_record(4, number, context(self.width, vcpu=number))
            vcpus += vcpu_record(5, number, bytes(range(64)))
            vcpus += vcpu_record(6, number, bytes(range(200)))
            vcpus += vcpu_record(0xC, number, struct.pack("<IIQ", 0x174, 0, 5))
        return {
            "header": libxc_header(1, self.version),
            "info": record(2, struct.pack("<BB6x", self.width, self.width // 8 + 3)),
            **static,
            "p2m": p2m_frames(last + 1),
            "pages": b"".join(batches(self.memory, self.batch)),
            "tsc": tsc_info(),
            "shared": record(7, page(99)),
            "vcpus": vcpus,
            "end": END,
        }

    def stream(self):
        parts = self.usual()
        assert self.parts.keys() <= parts.keys()
        return b"".join({**parts, **self.parts}.values())

    def file(self, tail=b"", config=CONFIG):
        front = xl_header(config) + libxl_header() + LIBXC_CONTEXT
        return front + self.stream() + END + tail


def hvm_memory():
    return [
        *(Page(NOTAB, pfn, page(pfn) if pfn % 3 else ZERO) for pfn in range(12)),
        *(Page(XTAB, pfn) for pfn in range(12, 30)),
        Page(NOTAB, 30, ZERO),
    ]


EMULATOR_KEYS = record(2, struct.pack("<II", 2, 0) + b"physmap/0/name\0vga\0")


@dataclass
class Hvm:
    """The same of an HVM or PVH guest."""

    version: int = 3
    batch: int = 8
    memory: list = field(default_factory=hvm_memory)
    emulator: bytes | None = b"QEVM" + bytes(range(99))
    parts: dict = field(default_factory=dict)

    def usual(self):
        static = {} if self.version == 2 else {"policy": CPUID + MSR, "static": STATIC_DATA_END}
        return {
            "header": libxc_header(2, self.version),
            **static,
            "pages": b"".join(batches(self.memory, self.batch)),
            "tsc": tsc_info(),
            "context": record(9, b"hvm context" * 100),
            "params": params(),
            "end": END,
        }

    def stream(self):
        parts = self.usual()
        assert self.parts.keys() <= parts.keys()
        return b"".join({**parts, **self.parts}.values())

    def file(self, tail=b"", keys=EMULATOR_KEYS, config=CONFIG):
        front = xl_header(config) + libxl_header() + LIBXC_CONTEXT
        behind = b""
        if self.emulator is not None:
            behind = keys + record(3, struct.pack("<II", 2, 0) + self.emulator)
        return front + self.stream() + behind + END + tail


# Streams of Xen 4.5 and older


@dataclass
class Legacy:
    """A stream as xc_save of Xen 3.4 or 4.0 wrote it, with more or less in it."""

    word: int = 8  # of the tools
    guest: str = "pv"
    width: int = 8  # of the guest
    memory: list = None
    extended_info: bool = True
    extv: bool = False
    xsave: int = 0
    vcpus: int | None = 1  # None: the stream does not say
    tsc: bool = True
    chunks: bytes = b""  # more of them, at the end
    unmapped: tuple = ()
    batch: int = 6

    def __post_init__(self):
        if self.memory is None:
            self.memory = pv_memory(self.width) if self.guest == "pv" else hvm_memory()

    def ulongs(self, *values):
        return struct.pack(f"<{len(values)}{'Q' if self.word == 8 else 'I'}", *values)

    def pages(self):
        out = b""
        for at in range(0, len(self.memory), self.batch):
            some = self.memory[at : at + self.batch]
            bare = self.guest == "pv"
            entries = [
                0xF0000000 if one.kind == XTAB and bare else one.kind << 28 | one.pfn
                for one in some
            ]
            out += struct.pack("<i", len(some)) + self.ulongs(*entries)
            out += b"".join(one.data for one in some if has_data(one.kind))
        return out

    def info(self):
        if not self.extended_info:
            return b""
        size = CONTEXT[self.width]
        blocks = b"vcpu" + struct.pack("<I", size) + context(self.width)
        if self.extv:
            blocks += b"extv" + struct.pack("<I", 0)
        if self.xsave:
            blocks += b"xcnt" + struct.pack("<II", 4, self.xsave)
        return self.ulongs(2 ** (8 * self.word) - 1) + struct.pack("<I", len(blocks)) + blocks

    def stream(self):
        size = max(one.pfn for one in self.memory) + 1
        out = self.ulongs(size)
        if self.guest == "pv":
            out += self.info() + self.ulongs(2)
        out += self.pages()
        if self.vcpus is not None:
            out += struct.pack("<iiQ", -2, self.vcpus - 1, (1 << self.vcpus) - 1)
        if self.tsc:
            out += struct.pack("<iIQII", -7, 1, 12345, 2_400_000, 7)
        if self.guest == "hvm":
            out += struct.pack("<iIQ", -3, 0, 0xFEFC) + struct.pack("<iIQ", -4, 0, 0xFEFB)
        out += self.chunks + struct.pack("<i", 0)
        return out + (self.pv_tail() if self.guest == "pv" else self.hvm_tail())

    def pv_tail(self):
        out = struct.pack("<I", len(self.unmapped)) + self.ulongs(*self.unmapped)
        for number in range(self.vcpus or 1):
            out += context(self.width, vcpu=number)
            if self.extv:
                out += bytes(range(128))
            if self.xsave:
                out += struct.pack("<QQ", 7, self.xsave - 16) + bytes(self.xsave - 16)
        return out + page(99)

    def hvm_tail(self):
        blob = b"hvm context" * 50
        return struct.pack("<QQQI", 0xFEFE, 0xFEFD, 0xFEFF, len(blob)) + blob

    def xl_file(self, qemu=b"QEVM" + bytes(range(50))):
        return xl_header(flags=1) + self.stream() + self.qemu(b"DeviceModelRecord0002", qemu)

    def qemu(self, signature, state):
        if self.guest == "pv":
            return b""
        size = b"" if signature == b"QemuDeviceModelRecord" else struct.pack("<I", len(state))
        return signature + size + state

    def xend_file(self, qemu=b"QEVM" + bytes(range(50))):
        image = "linux" if self.guest == "pv" else "hvm"
        config = f"(domain (name old) (image ({image} (kernel ''))))".encode()
        front = b"LinuxGuestRecord" + struct.pack(">i", len(config)) + config
        return front + self.stream() + self.qemu(b"QemuDeviceModelRecord", qemu)
