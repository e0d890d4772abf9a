"""Xen's libraries, by ctypes: the only module that knows their names, symbols and structures.

- libxenctrl and libxenguest have a soname for each release and no stable ABI: what the running
  hypervisor's release needs is loaded, and no other. libxenforeignmemory and libxencall are stable.
- The functions used here, and the offsets in ``struct xen_domctl``, are the same from Xen 4.14 to
  4.20; where one moved from one library to the other, both are asked. A release beyond these, or a
  library without a symbol, is UnavailableError: then Xen's own helper does the work.
- xc_domctl fills the interface version in; if the hypervisor has another, it fails with EACCES.
- A slot that could not be mapped has its negative errno beside it, and touching it is SIGBUS.
- xc_vcpu_setcontext reads a whole 64-bit context, also for a 32-bit guest.

Everything raises OSError with what was asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from array import array
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_ulong
from ctypes import c_void_p as pointer
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

MAJOR, OLDEST, NEWEST = 4, 14, 20  # releases of Xen
VERSION = "/sys/hypervisor/version"
PAGE = 4096
PROT_READ, PROT_WRITE = 1, 2
MADV_POPULATE_WRITE = 23
MAX_OPERATIONS = 8192  # of one mmuext_op; the hypervisor takes more, but the library copies them

# xen/include/public/domctl.h
DOMCTL = struct.Struct("<IIH6x")  # command, interface version, domid; then 128 bytes
DOMCTL_SIZE = 144
GETDOMAININFO, SET_ADDRESS_SIZE, GET_ADDRESS_SIZE = 5, 35, 36
SET_EXT_VCPUCONTEXT, SETVCPUEXTSTATE, SET_VCPU_MSRS = 42, 62, 73
HVM_GUEST, SHUTDOWN = 1 << 1, 1 << 2  # XEN_DOMINF_hvm_guest, XEN_DOMINF_shutdown
SHUTDOWN_REASON_SHIFT, SHUTDOWN_SUSPEND = 16, 2
# xen/include/public/xen.h
PIN_L1, CLEAR_PAGE = 0, 16
VCPU_CONTEXT = 5168  # bytes, of a 64-bit vcpu_guest_context

Signature = tuple[str, str, Any, tuple[Any, ...]]
# library, function, result, arguments; xen_pfn_t and uint64_t are c_uint64
SIGNATURES: tuple[Signature, ...] = (
    ("ctrl", "xc_interface_open", pointer, (pointer, pointer, c_uint)),
    ("ctrl", "xc_interface_close", c_int, (pointer,)),
    ("ctrl", "xc_interface_xcall_handle", pointer, (pointer,)),
    ("ctrl", "xc_domctl", c_int, (pointer, pointer)),
    (
        "ctrl",
        "xc_domain_populate_physmap",
        c_int,
        (pointer, c_uint32, c_ulong, c_uint, c_uint, pointer),
    ),
    ("ctrl", "xc_mmuext_op", c_int, (pointer, c_char_p, c_uint, c_uint32)),
    ("ctrl", "xc_vcpu_setcontext", c_int, (pointer, c_uint32, c_uint32, pointer)),
    (
        "ctrl",
        "xc_domain_set_tsc_info",
        c_int,
        (pointer, c_uint32, c_uint32, c_uint64, c_uint32, c_uint32),
    ),
    ("ctrl", "xc_hvm_param_set", c_int, (pointer, c_uint32, c_uint32, c_uint64)),
    ("ctrl", "xc_domain_hvm_setcontext", c_int, (pointer, c_uint32, c_char_p, c_uint32)),
    (
        "ctrl guest",
        "xc_set_domain_cpu_policy",
        c_int,
        (pointer, c_uint32, c_uint32, c_char_p, c_uint32, c_char_p, pointer, pointer, pointer),
    ),
    (
        "guest",
        "xc_dom_gnttab_seed",
        c_int,
        (pointer, c_uint32, c_bool, c_uint64, c_uint64, c_uint32, c_uint32),
    ),
    ("foreignmemory", "xenforeignmemory_open", pointer, (pointer, c_uint)),
    ("foreignmemory", "xenforeignmemory_close", c_int, (pointer,)),
    (
        "foreignmemory",
        "xenforeignmemory_map",
        pointer,
        (pointer, c_uint32, c_int, c_size_t, pointer, pointer),
    ),
    ("foreignmemory", "xenforeignmemory_unmap", c_int, (pointer, pointer, c_size_t)),
    ("call", "xencall_alloc_buffer", pointer, (pointer, c_size_t)),
    ("call", "xencall_free_buffer", None, (pointer, pointer)),
)


class UnavailableError(Exception):
    """The running Xen, or its libraries, are not what this module knows."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What the hypervisor tells of a domain."""

    domid: int
    is_hvm: bool  # or PVH
    shared_info_frame: int  # mfn
    max_vcpu_id: int
    max_pages: int
    suspended: bool = False  # it has shut down to be saved


class Window:
    """A guest's pages, mapped in a row. They are unmapped all together or by the process's end."""

    __slots__ = ("_xen", "address", "count")

    def __init__(self, xen: Xen, address: int, count: int) -> None:
        self._xen = xen
        self.address = address
        self.count = count

    def view(self) -> memoryview:
        """The memory itself. It must not be used once the window is unmapped."""
        kind = ctypes.c_char * (self.count * PAGE)
        return memoryview(kind.from_address(self.address)).cast("B")

    def clear(self) -> None:
        """Make it all zero."""
        ctypes.memset(self.address, 0, self.count * PAGE)

    def unmap(self) -> None:
        self._xen.unmap(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmap()


def release() -> str:
    """The running hypervisor's release, e.g. "4.17"; UnavailableError if there is none."""
    try:
        with open(f"{VERSION}/major") as major, open(f"{VERSION}/minor") as minor:
            return f"{int(major.read())}.{int(minor.read())}"
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{VERSION} tells no release of Xen: {error}") from error


def load(
    version: str, signatures: Sequence[Signature] | None = None
) -> dict[str, Callable[..., Any]]:
    """The functions of the libraries of a release; UnavailableError names what is missing."""
    major, _, minor = version.partition(".")
    if int(major) != MAJOR or not OLDEST <= int(minor) <= NEWEST:
        raise UnavailableError(f"Xen {version} is not one of {MAJOR}.{OLDEST} to {MAJOR}.{NEWEST}")
    sonames = {
        "ctrl": f"libxenctrl.so.{version}",
        "guest": f"libxenguest.so.{version}",
        "foreignmemory": "libxenforeignmemory.so.1",
        "call": "libxencall.so.1",
    }
    try:
        libraries = {name: ctypes.CDLL(so, use_errno=True) for name, so in sonames.items()}
    except OSError as error:
        raise UnavailableError(str(error)) from error
    found: dict[str, Callable[..., Any]] = {}
    for where, name, result, arguments in signatures or SIGNATURES:
        function = next(
            (f for library in where.split() if (f := getattr(libraries[library], name, None))),
            None,
        )
        if function is None:
            raise UnavailableError(f"Xen {version}: its libraries have no {name}")
        function.restype = result
        function.argtypes = arguments
        found[name] = function
    return found


def own_memory() -> None:
    """Copy now what this process shares with its parent; Linux before 5.14 does it when it must."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (pointer, c_size_t, c_int)
    with open("/proc/self/maps") as maps:
        areas = [line.split()[:2] for line in maps]
    for area, access in areas:
        if access == "rw-p":
            start, end = (int(number, 16) for number in area.split("-"))
            advise(start, end - start, MADV_POPULATE_WRITE)


def words(count: int) -> array[int]:
    """A row of 64-bit zeros."""
    return array("Q", bytes(8 * count))


def address_of(row: array[int]) -> int:
    return row.buffer_info()[0]


class Xen:
    """The hypervisor, for one process; not to be used across a fork."""

    def __init__(self) -> None:
        self._call = load(release())
        self.control = self._call["xc_interface_open"](None, None, 0)
        self._memory = self._call["xenforeignmemory_open"](None, 0)
        if not self.control or not self._memory:
            raise UnavailableError(
                f"the hypervisor cannot be reached: {os.strerror(ctypes.get_errno())}"
            )

    def close(self) -> None:
        self._call["xenforeignmemory_close"](self._memory)
        self._call["xc_interface_close"](self.control)

    def check(self, result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    # Domains

    def domain(self, domid: int) -> Domain:
        """What a domain is; OSError ENOENT if there is none of this number."""
        answer = self.domctl(GETDOMAININFO, domid, b"", f"domain {domid} cannot be looked at")
        found, flags = struct.unpack_from("<H2xI", answer)
        (pages,) = struct.unpack_from("<Q", answer, 16)
        (frame,) = struct.unpack_from("<Q", answer, 48)
        (vcpu,) = struct.unpack_from("<I", answer, 68)
        if found != domid:
            raise OSError(errno.ENOENT, f"there is no domain {domid}")
        reason = flags >> SHUTDOWN_REASON_SHIFT & 0xFF
        suspended = bool(flags & SHUTDOWN) and reason == SHUTDOWN_SUSPEND
        return Domain(domid, bool(flags & HVM_GUEST), frame, vcpu, pages, suspended)

    def domctl(self, command: int, domid: int, payload: bytes, what: str) -> bytes:
        """The union of a struct xen_domctl, there and back."""
        buffer = ctypes.create_string_buffer(DOMCTL.pack(command, 0, domid) + payload, DOMCTL_SIZE)
        self.check(self._call["xc_domctl"](self.control, buffer), what)
        return buffer.raw[DOMCTL.size :]

    def address_size(self, domid: int) -> int:
        """Bits: 32 or 64."""
        what = f"domain {domid}: its address size cannot be read"
        return int.from_bytes(self.domctl(GET_ADDRESS_SIZE, domid, b"", what)[:4], "little")

    def set_address_size(self, domid: int, bits: int) -> None:
        """Only before it has any memory, and only from 64 to 32."""
        what = f"domain {domid} cannot be made a {bits}-bit one"
        self.domctl(SET_ADDRESS_SIZE, domid, struct.pack("<I", bits), what)

    def set_cpu_policy(self, domid: int, leaves: bytes, msrs: bytes) -> None:
        """CPUID leaves of 24 bytes, MSRs of 16 bytes."""
        bad = (c_uint32 * 3)()
        at = [ctypes.byref(bad, 4 * i) for i in range(3)]
        result = self._call["xc_set_domain_cpu_policy"](
            self.control, domid, len(leaves) // 24, leaves, len(msrs) // 16, msrs, *at
        )
        self.check(
            result,
            f"domain {domid}: the processor policy is refused"
            f" (leaf {bad[0]:x}, subleaf {bad[1]:x}, MSR {bad[2]:x})",
        )

    def set_tsc(self, domid: int, mode: int, khz: int, nsec: int, incarnation: int) -> None:
        result = self._call["xc_domain_set_tsc_info"](
            self.control, domid, mode, nsec, khz, incarnation
        )
        self.check(result, f"domain {domid}: the time stamp counter cannot be set")

    # Memory

    def populate(self, domid: int, frames: array[int], order: int = 0, flags: int = 0) -> int:
        """Give memory to a row of pfns; how many of them got it.

        For a PV domain the pfns are replaced by the mfns that they got.
        """
        result = self._call["xc_domain_populate_physmap"](
            self.control, domid, len(frames), order, flags, address_of(frames)
        )
        if result < 0:
            self.check(-1, f"domain {domid}: {len(frames)} pages of order {order} were refused")
        return int(result)

    def clear(self, domid: int, operations: bytes) -> None:
        """MMUEXT_CLEAR_PAGE, in the form of ``operations``, for frames of a PV domain."""
        self._extended(domid, operations, "pages cannot be cleared")

    def pin(self, domid: int, operations: bytes) -> None:
        self._extended(domid, operations, "page tables cannot be pinned")

    def _extended(self, domid: int, operations: bytes, what: str) -> None:
        size = MAX_OPERATIONS * 24
        for start in range(0, len(operations), size):
            some = operations[start : start + size]
            result = self._call["xc_mmuext_op"](self.control, some, len(some) // 24, domid)
            self.check(result, f"domain {domid}: {what}")

    def map(self, domid: int, frames: Sequence[int], *, writable: bool = True) -> Window:
        """Map frames (gfns: mfns of a PV domain, pfns of others); OSError if one cannot be."""
        row = frames if isinstance(frames, array) else array("Q", frames)
        errors = array("i", bytes(4 * len(row)))
        access = PROT_READ | PROT_WRITE if writable else PROT_READ
        address = self._call["xenforeignmemory_map"](
            self._memory, domid, access, len(row), address_of(row), errors.buffer_info()[0]
        )
        what = f"domain {domid}: {len(row)} pages cannot be mapped"
        if not address:
            self.check(-1, what)
        window = Window(self, address, len(row))
        bad = next((number for number in errors if number), 0) if any(errors) else 0
        if bad:
            window.unmap()
            raise OSError(-bad, f"{what}: {os.strerror(-bad)}")
        return window

    def unmap(self, window: Window) -> None:
        result = self._call["xenforeignmemory_unmap"](self._memory, window.address, window.count)
        self.check(result, f"{window.count} pages cannot be unmapped")

    # Virtual processors

    def set_context(self, domid: int, vcpu: int, context: bytes) -> None:
        buffer = ctypes.create_string_buffer(context, VCPU_CONTEXT)
        result = self._call["xc_vcpu_setcontext"](self.control, domid, vcpu, buffer)
        self.check(result, f"domain {domid}: the state of vcpu {vcpu} is refused")

    def set_extended(self, domid: int, vcpu: int, blob: bytes) -> None:
        what = f"domain {domid}: the extended state of vcpu {vcpu} is refused"
        self.domctl(SET_EXT_VCPUCONTEXT, domid, blob, what)

    def set_xsave(self, domid: int, vcpu: int, blob: bytes) -> None:
        what = f"domain {domid}: the floating-point state of vcpu {vcpu} is refused"

        def payload(address: int) -> bytes:
            return struct.pack("<I4xQQQ", vcpu, 0, len(blob), address)

        self._with_buffer(SETVCPUEXTSTATE, domid, blob, payload, what)

    def set_msrs(self, domid: int, vcpu: int, blob: bytes) -> None:
        what = f"domain {domid}: the MSRs of vcpu {vcpu} are refused"

        def payload(address: int) -> bytes:
            return struct.pack("<IIQ", vcpu, len(blob) // 16, address)

        self._with_buffer(SET_VCPU_MSRS, domid, blob, payload, what)

    def _with_buffer(
        self, command: int, domid: int, blob: bytes, payload: Callable[[int], bytes], what: str
    ) -> None:
        """A domctl that points to memory."""
        with self.buffer(len(blob), what) as buffer:
            ctypes.memmove(buffer, blob, len(blob))
            self.domctl(command, domid, payload(buffer), what)

    @contextlib.contextmanager
    def buffer(self, size: int, what: str) -> Iterator[int]:
        """The address of memory that the hypervisor may read and write."""
        handle = self._call["xc_interface_xcall_handle"](self.control)
        buffer = self._call["xencall_alloc_buffer"](handle, size)
        if not buffer:
            raise OSError(errno.ENOMEM, what)
        try:
            yield buffer
        finally:
            self._call["xencall_free_buffer"](handle, buffer)

    # HVM

    def set_param(self, domid: int, index: int, value: int) -> None:
        result = self._call["xc_hvm_param_set"](self.control, domid, index, value)
        self.check(result, f"domain {domid}: HVM parameter {index} cannot be set to {value:#x}")

    def set_hvm_context(self, domid: int, context: bytes) -> None:
        result = self._call["xc_domain_hvm_setcontext"](self.control, domid, context, len(context))
        self.check(result, f"domain {domid}: its HVM context is refused")

    def seed_grants(
        self,
        domid: int,
        *,
        is_hvm: bool,
        console: int,
        store: int,
        console_domid: int,
        store_domid: int,
    ) -> None:
        """Enter the console's and the store's page in the grant table, for their domains."""
        result = self._call["xc_dom_gnttab_seed"](
            self.control, domid, is_hvm, console, store, console_domid, store_domid
        )
        self.check(result, f"domain {domid}: its grant table cannot be filled")
