"""A hypervisor for one domain, as ``hotplug.restore.xenlibs.Xen`` presents it.

It keeps Xen's rules as far as a restorer can break them: fresh frames are not zero, a frame has one
owner, what is mapped writable cannot become a page table or a GDT, a domain has no more memory than
it may have. What is done to it is in ``log``.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import struct
from array import array

from hotplug.restore.pages import PAGE_TABLES
from hotplug.restore.xenlibs import Domain, Window

PAGE = 4096
DIRT = b"\xaa" * PAGE  # what a fresh frame has in it
CLEAR_PAGE = 16
OPERATION = struct.Struct("<IIQQ")
SHARED_INFO = 0x77
TREE = (12, 13)  # pfns of a guest's own that hold the p2m's upper levels
START = {8: (56, 72, "<Q"), 4: (44, 52, "<I")}  # start_info: the store's and the console's page


class FakeXen:
    """``pages`` is the content of every frame by its number."""

    def __init__(self, domid=7, *, is_hvm=False, max_vcpu_id=0, memory=1 << 16):
        self.info = Domain(domid, is_hvm, SHARED_INFO, max_vcpu_id, memory)
        self.pages = {SHARED_INFO: b"\x11" * PAGE}
        self.p2m = {}
        self.log = []
        self.bits = 64
        self.pinned = {}  # frame: level, from 0
        self.contexts = {}  # vcpu: state
        self.blobs = {}
        self.params = {}
        self.policy = None
        self.seeded = None
        self.windows = {}  # address: (buffer, frames, writable)
        self.superpages = 1 << 30  # how many there are
        self.failures = {}  # name of an operation: OSError
        self._next = 0x200005  # beyond 4 GB, where a 32-bit cr3 is folded

    def _called(self, name, *details):
        self.log.append((name, *details))
        if name in self.failures:
            raise self.failures[name]

    def domain(self, domid):
        if domid != self.info.domid:
            raise OSError(errno.ENOENT, f"there is no domain {domid}")
        return self.info

    def address_size(self, _domid):
        return self.bits

    def set_address_size(self, _domid, bits):
        self._called("set_address_size", bits)
        assert len(self.pages) == 1, "it has memory already"
        self.bits = bits

    def set_cpu_policy(self, _domid, leaves, msrs):
        self._called("set_cpu_policy")
        self.policy = (leaves, msrs)

    def set_tsc(self, _domid, mode, khz, nsec, incarnation):
        self._called("set_tsc", mode, khz, nsec, incarnation)

    def populate(self, _domid, frames, order=0, _flags=0):
        self._called("populate", order, len(frames))
        for index, pfn in enumerate(frames):
            size = 1 << order
            if len(self.pages) - 1 + size > self.info.max_pages:
                return index
            if order:
                if not self.superpages:
                    return index
                self.superpages -= 1
                assert pfn % size == 0
            first = pfn if self.info.is_hvm else self._fresh(size)
            self.p2m.update((pfn + k, first + k) for k in range(size))
            for frame in range(first, first + size):
                assert frame not in self.pages, f"{frame:#x} is populated twice"
                self.pages[frame] = DIRT
            frames[index] = first
        return len(frames)

    def pfn_of(self, frame):
        """The pfn of a frame."""
        return next(pfn for pfn, found in self.p2m.items() if found == frame)

    def _fresh(self, size):
        """Frames that look nothing like the pfns, with gaps between them."""
        first = -(-self._next // size) * size
        self._next = first + 2 * size
        return first

    def clear(self, _domid, operations):
        assert not self.info.is_hvm, "the hypervisor refuses that (EINVAL)"
        frames = [(c, f) for c, _, f, _ in OPERATION.iter_unpack(operations)]
        self._called("clear", len(frames))
        for command, frame in frames:
            assert command == CLEAR_PAGE
            assert frame not in self.pinned
            assert frame in self.pages
            self.pages[frame] = bytes(PAGE)
            for buffer, mapped, _ in list(self.windows.values()):
                if frame in mapped:  # a mapping shows the frame itself
                    at = ctypes.addressof(buffer) + mapped.index(frame) * PAGE
                    ctypes.memset(at, 0, PAGE)

    def pin(self, _domid, operations):
        self._called("pin", len(operations) // OPERATION.size)
        for command, _, frame, _ in OPERATION.iter_unpack(operations):
            self._refuse_writable({frame})
            for (entry,) in struct.iter_unpack("<Q", self.pages[frame]):
                if entry & 1:
                    assert (entry & 0x000FFFFFFFFFF000) >> 12 in self.pages, "it maps another's"
            self.pinned[frame] = command

    def _refuse_writable(self, frames):
        for _, mapped, writable in self.windows.values():
            assert not (writable and frames & set(mapped)), "dom0 has it mapped writable"

    def map(self, _domid, frames, *, writable=True):
        self._called("map", len(frames), writable)
        if missing := [frame for frame in frames if frame not in self.pages]:
            raise OSError(errno.EINVAL, f"frame {missing[0]:#x} is not the domain's")
        content = b"".join(self.pages[frame] for frame in frames)
        buffer = ctypes.create_string_buffer(content, len(content))
        address = ctypes.addressof(buffer)
        self.windows[address] = (buffer, list(frames), writable)
        return Window(self, address, len(frames))

    def unmap(self, window):
        buffer, frames, writable = self.windows.pop(window.address)
        for index, frame in enumerate(frames if writable else ()):
            self.pages[frame] = buffer.raw[index * PAGE : (index + 1) * PAGE]

    def set_context(self, _domid, vcpu, context):
        self._called("set_context", vcpu)
        assert not self.windows, "something is mapped while a vcpu gets its state"
        self.contexts[vcpu] = context

    def set_extended(self, _domid, vcpu, blob):
        self.blobs["extended", vcpu] = blob

    def set_xsave(self, _domid, vcpu, blob):
        self.blobs["xsave", vcpu] = blob

    def set_msrs(self, _domid, vcpu, blob):
        self.blobs["msrs", vcpu] = blob

    def set_param(self, _domid, index, value):
        self._called("set_param", index, value)
        self.params[index] = value

    def set_hvm_context(self, _domid, context):
        self._called("set_hvm_context")
        self.context = context

    def seed_grants(self, _domid, **frames):
        self._called("seed_grants")
        self.seeded = frames


class FakeState:
    """What ``hotplug.restore.xenstate.State`` tells of the domain of a ``FakeXen``."""

    def __init__(self, xen):
        self.xen = xen
        self.kinds = {}  # frame: type of page, as an entry of a batch has it
        self.compat = 0x99999
        self.leaves, self.msr_policy = bytes(range(48)), struct.pack("<IIQ", 0xCE, 0, 1 << 31)
        self.online = {0}
        self.dirty_log = True
        self.failures = {}  # name of an operation: OSError

    def _called(self, name):
        if name in self.failures:
            raise self.failures[name]

    def types(self, _domid, frames):
        self._called("types")
        assert self.xen.info.suspended, "it runs, and the types of its pages change"
        found = array("Q", bytes(8 * len(frames)))
        for index, frame in enumerate(frames):
            known = frame in self.xen.pages and frame != SHARED_INFO
            found[index] = (self.kinds.get(frame, 0) if known else 0xF) << 28
        return found

    def m2p(self):
        self._called("m2p")
        table = array("Q", b"\xff" * (8 * (max(self.xen.pages) + 1)))
        for pfn, frame in self.xen.p2m.items():
            table[frame] = pfn
        buffer = (ctypes.c_char * (8 * len(table))).from_buffer(table)
        address = ctypes.addressof(buffer)
        self.xen.windows[address] = (buffer, [], False)
        return Window(self.xen, address, -(-8 * len(table) // PAGE))

    def compat_m2p(self):
        return self.compat

    def pfns(self, _domid):
        return max(self.xen.p2m) + 1

    def stop_dirty_log(self, _domid):
        self.dirty_log = False

    def policy(self, _domid):
        self._called("policy")
        return self.leaves, self.msr_policy

    def tsc(self, _domid):
        return next(entry[1:] for entry in self.xen.log if entry[0] == "set_tsc")

    def is_online(self, _domid, vcpu):
        return vcpu in self.online

    def context(self, _domid, vcpu):
        self._called("context")
        return self.xen.contexts[vcpu].ljust(5168, b"\x55")

    def extended(self, _domid, vcpu):
        return self.xen.blobs.get(("extended", vcpu), b"")

    def xsave(self, _domid, vcpu):
        return self.xen.blobs.get(("xsave", vcpu), b"")

    def msrs(self, _domid, vcpu):
        return self.xen.blobs.get(("msrs", vcpu), b"")

    def hvm_context(self, _domid):
        return self.xen.context

    def param(self, _domid, index):
        return self.xen.params.get(index, 0)


class FakeToolstack:
    """Keeps what it is told."""

    def __init__(self):
        self.said = []
        self.static_data = []
        self.refuses = None

    def info(self, text):
        self.said.append(text)

    def progress(self, done, _total):
        assert done >= 0

    def static_data_done(self, *, cpuid_missing, msrs_missing):
        self.static_data.append((cpuid_missing, msrs_missing))
        if self.refuses:
            raise self.refuses


class FakeSaving(FakeToolstack):
    """Has the guest suspended when it is asked to."""

    def __init__(self, xen):
        super().__init__()
        self._xen = xen
        self.calls = []
        self.obeys = True
        self.logs = True

    def suspend(self):
        self.calls.append("suspend")
        assert not self._xen.windows or not self._xen.info.is_hvm
        if self.refuses:
            raise self.refuses
        self._xen.info = dataclasses.replace(self._xen.info, suspended=self.obeys)

    def log_dirty(self, *, enable):
        self.calls.append(("log_dirty", enable))
        return self.logs


def prepare(xen, guest):
    """What the guest and the hypervisor do between a restore and a save."""
    width = guest.width
    letter = "Q" if width == 8 else "I"
    state = FakeState(xen)
    state.kinds = {xen.p2m[one.pfn]: one.kind for one in guest.memory if one.kind in PAGE_TABLES}
    state.online = set(xen.contexts)
    per = PAGE // width
    last = max(one.pfn for one in guest.memory)
    top, middle = (xen.p2m[pfn] for pfn in TREE)
    leaves = [xen.p2m[pfn] for pfn in guest_p2m(last, per)]
    put_words(xen, top, letter, [middle])
    put_words(xen, middle, letter, leaves)
    info = bytearray(xen.pages[SHARED_INFO])
    at = {8: 3088, 4: 2316}[width]
    struct.pack_into(f"<6{letter}", info, at, last + 1, top, 0, 0, 0, 0)
    xen.pages[SHARED_INFO] = bytes(info)
    # The guest has pfns in start_info when it suspends itself.
    start = bytearray(xen.pages[xen.p2m[0]])
    store, console, number = START[width]
    struct.pack_into(number, start, store, 7)
    struct.pack_into(number, start, console, 8)
    xen.pages[xen.p2m[0]] = bytes(start)
    return state


def guest_p2m(last, per):
    """The pfns of the p2m's frames, as the streams of these tests have them."""
    return (2, 16, 17, 18)[: last // per + 1]


def put_words(xen, frame, letter, words):
    page = struct.pack(f"<{len(words)}{letter}", *words)
    xen.pages[frame] = page.ljust(PAGE, b"\0")


@contextlib.contextmanager
def pipe_with(content):
    """The reading end of a pipe that has this in it, and nothing more."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        with contextlib.suppress(BrokenPipeError), open(writing, "wb") as file:
            file.write(content)
        os._exit(0)
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)
        os.waitpid(pid, 0)


def row(*numbers):
    return array("Q", numbers)
