"""What the hypervisor tells of a domain that is being saved: the other half of ``xenlibs``.

- The types of frames come 1,024 at a time, no more (XEN_DOMCTL_getpageframeinfo3).
- The m2p, from machine frames to pfns, is a row of words in chunks of 2 MB, each of them somewhere
  in the hypervisor's memory. A 32-bit guest is shown another one, and its page tables tell where.
- What has no fixed size is asked for twice: how large it is, then for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from array import array
from ctypes import c_int, c_uint, c_uint32, c_uint64, c_ulong
from ctypes import c_void_p as pointer
from typing import TYPE_CHECKING

from hotplug.restore.records import CPUID_LEAF, MSR_ENTRY
from hotplug.restore.xenlibs import PAGE, VCPU_CONTEXT, address_of, load, release, words

if TYPE_CHECKING:
    from hotplug.restore.xenlibs import Signature, Window, Xen

# xen/include/public/domctl.h and memory.h
SHADOW_OP, GETVCPUINFO, GET_EXT_VCPUCONTEXT, GETVCPUEXTSTATE = 10, 14, 43, 63
GET_VCPU_MSRS, GET_CPU_POLICY = 72, 82
MEMORY_OP, MACHPHYS_COMPAT_MFN_LIST = 12, 25  # a hypercall, and what it is asked for
DOMID_XEN = 0x7FF2
MAX_FRAMES = 1024  # whose types are told at once
CHUNK = 2 << 20  # bytes of the m2p that lie together

SIGNATURES: tuple[Signature, ...] = (
    ("ctrl", "xc_get_pfn_type_batch", c_int, (pointer, c_uint32, c_uint, pointer)),
    ("ctrl", "xc_maximum_ram_page", c_int, (pointer, pointer)),
    ("ctrl", "xc_machphys_mfn_list", c_int, (pointer, c_ulong, pointer)),
    (
        "ctrl",
        "xc_domain_get_tsc_info",
        c_int,
        (pointer, c_uint32, pointer, pointer, pointer, pointer),
    ),
    ("ctrl", "xc_vcpu_getcontext", c_int, (pointer, c_uint32, c_uint32, pointer)),
    ("ctrl", "xc_domain_hvm_getcontext", c_int, (pointer, c_uint32, pointer, c_uint32)),
    ("ctrl", "xc_hvm_param_get", c_int, (pointer, c_uint32, c_uint32, pointer)),
    ("ctrl", "xc_domain_nr_gpfns", c_int, (pointer, c_uint32, pointer)),
    ("ctrl", "xc_interface_xcall_handle", pointer, (pointer,)),
    ("call", "xencall2", c_int, (pointer, c_uint, c_uint64, c_uint64)),
)


class State:
    """Domains as they are, asked of a hypervisor. UnavailableError as from ``Xen``."""

    def __init__(self, xen: Xen) -> None:
        self._xen = xen
        self._call = load(release(), SIGNATURES)

    # Memory

    def types(self, domid: int, frames: array[int]) -> array[int]:
        """The XEN_DOMCTL_PFINFO_* of frames; what is none of the domain's is PFINFO_XTAB."""
        found = frames[:]
        for start in range(0, len(found), MAX_FRAMES):
            count = min(MAX_FRAMES, len(found) - start)
            result = self._call["xc_get_pfn_type_batch"](
                self._xen.control, domid, count, address_of(found) + 8 * start
            )
            self._xen.check(result, f"domain {domid}: the types of its pages are not told")
        return found

    def m2p(self) -> Window:
        """The pfns of all frames of the host."""
        what = "the hypervisor's table of frames cannot be mapped"
        last = c_ulong()
        result = self._call["xc_maximum_ram_page"](self._xen.control, ctypes.byref(last))
        self._xen.check(result, what)
        chunks = words(-(-last.value * 8 // CHUNK))
        result = self._call["xc_machphys_mfn_list"](
            self._xen.control, len(chunks), address_of(chunks)
        )
        self._xen.check(result, what)
        frames: array[int] = array("Q")
        for first in chunks:
            frames.extend(range(first, first + CHUNK // PAGE))
        return self._xen.map(DOMID_XEN, frames, writable=False)

    def compat_m2p(self) -> int:
        """The first frame of the m2p that 32-bit guests are shown."""
        what = "the hypervisor does not tell of its table of frames for 32-bit guests"
        request = struct.Struct("<I4xQI4x")  # max_extents, extent_start, nr_extents
        handle = self._call["xc_interface_xcall_handle"](self._xen.control)
        with self._xen.buffer(request.size + 8, what) as buffer:
            extent = buffer + request.size
            ctypes.memmove(buffer, request.pack(1, extent, 0), request.size)
            result = self._call["xencall2"](handle, MEMORY_OP, MACHPHYS_COMPAT_MFN_LIST, buffer)
            self._xen.check(result, what)
            return int.from_bytes(ctypes.string_at(extent, 8), "little")

    def pfns(self, domid: int) -> int:
        """How many pfns an HVM guest has, up to the highest that it ever used."""
        count = c_uint64()
        result = self._call["xc_domain_nr_gpfns"](self._xen.control, domid, ctypes.byref(count))
        self._xen.check(min(result, 0), f"domain {domid}: its last page is not told")
        return count.value

    def stop_dirty_log(self, domid: int) -> None:
        """XEN_DOMCTL_SHADOW_OP_OFF: nobody logs which pages change, if anybody did."""
        with contextlib.suppress(OSError):
            self._xen.domctl(SHADOW_OP, domid, b"", "")

    # The domain

    def policy(self, domid: int) -> tuple[bytes, bytes]:
        """CPUID leaves and MSRs that the domain may see."""
        what = f"domain {domid}: its processor policy is not told"
        answer = self._xen.domctl(GET_CPU_POLICY, domid, b"", what)
        leaves, msrs = struct.unpack_from("<II", answer)
        room = leaves * CPUID_LEAF
        with self._xen.buffer(room + msrs * MSR_ENTRY, what) as buffer:
            payload = struct.pack("<IIQQ", leaves, msrs, buffer, buffer + room)
            answer = self._xen.domctl(GET_CPU_POLICY, domid, payload, what)
            leaves, msrs = struct.unpack_from("<II", answer)
            return (
                ctypes.string_at(buffer, leaves * CPUID_LEAF),
                ctypes.string_at(buffer + room, msrs * MSR_ENTRY),
            )

    def tsc(self, domid: int) -> tuple[int, int, int, int]:
        """mode, khz, nsec, incarnation."""
        mode, khz, incarnation, nsec = c_uint32(), c_uint32(), c_uint32(), c_uint64()
        at = [ctypes.byref(one) for one in (mode, nsec, khz, incarnation)]
        result = self._call["xc_domain_get_tsc_info"](self._xen.control, domid, *at)
        self._xen.check(result, f"domain {domid}: its time stamp counter is not told")
        return mode.value, khz.value, nsec.value, incarnation.value

    # Virtual processors

    def is_online(self, domid: int, vcpu: int) -> bool:
        what = f"domain {domid}: vcpu {vcpu} cannot be looked at"
        return bool(self._xen.domctl(GETVCPUINFO, domid, struct.pack("<I", vcpu), what)[4])

    def context(self, domid: int, vcpu: int) -> bytes:
        """A 64-bit struct vcpu_guest_context; of a 32-bit guest, its own is at the beginning."""
        buffer = ctypes.create_string_buffer(VCPU_CONTEXT)
        result = self._call["xc_vcpu_getcontext"](self._xen.control, domid, vcpu, buffer)
        self._xen.check(result, f"domain {domid}: the state of vcpu {vcpu} is not told")
        return buffer.raw

    def extended(self, domid: int, vcpu: int) -> bytes:
        what = f"domain {domid}: the extended state of vcpu {vcpu} is not told"
        answer = self._xen.domctl(GET_EXT_VCPUCONTEXT, domid, struct.pack("<I", vcpu), what)
        (size,) = struct.unpack_from("<I", answer, 4)
        return answer[:size]

    def xsave(self, domid: int, vcpu: int) -> bytes:
        what = f"domain {domid}: the floating-point state of vcpu {vcpu} is not told"
        request = struct.Struct("<I4xQQQ")  # vcpu, features, size, buffer
        answer = self._xen.domctl(GETVCPUEXTSTATE, domid, request.pack(vcpu, 0, 0, 0), what)
        _, features, size, _ = request.unpack_from(answer)
        if not features:
            return b""
        with self._xen.buffer(size, what) as buffer:
            payload = request.pack(vcpu, features, size, buffer)
            _, _, size, _ = request.unpack_from(
                self._xen.domctl(GETVCPUEXTSTATE, domid, payload, what)
            )
            return ctypes.string_at(buffer, size)

    def msrs(self, domid: int, vcpu: int) -> bytes:
        what = f"domain {domid}: the MSRs of vcpu {vcpu} are not told"
        request = struct.Struct("<IIQ")  # vcpu, count, buffer
        answer = self._xen.domctl(GET_VCPU_MSRS, domid, request.pack(vcpu, 0, 0), what)
        _, count, _ = request.unpack_from(answer)
        if not count:
            return b""
        with self._xen.buffer(count * MSR_ENTRY, what) as buffer:
            payload = request.pack(vcpu, count, buffer)
            _, count, _ = request.unpack_from(self._xen.domctl(GET_VCPU_MSRS, domid, payload, what))
            return ctypes.string_at(buffer, count * MSR_ENTRY)

    # HVM

    def hvm_context(self, domid: int) -> bytes:
        what = f"domain {domid}: its HVM context is not told"
        size = self._call["xc_domain_hvm_getcontext"](self._xen.control, domid, None, 0)
        self._xen.check(min(size, 0), what)
        buffer = ctypes.create_string_buffer(size)
        size = self._call["xc_domain_hvm_getcontext"](self._xen.control, domid, buffer, size)
        self._xen.check(min(size, 0), what)
        return buffer.raw[:size]

    def param(self, domid: int, index: int) -> int:
        value = c_uint64()
        result = self._call["xc_hvm_param_get"](
            self._xen.control, domid, index, ctypes.byref(value)
        )
        self._xen.check(result, f"domain {domid}: HVM parameter {index} is not told")
        return value.value
