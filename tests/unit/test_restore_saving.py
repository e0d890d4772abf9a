"""Guests saved from a fake hypervisor, and restored into another one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import struct
import threading

import pytest
import savefiles
from fakes_xen import (
    PAGE,
    SHARED_INFO,
    FakeSaving,
    FakeState,
    FakeToolstack,
    FakeXen,
    prepare,
    put_words,
)
from savefiles import L1, NOTAB, PIN, XTAB, ZERO, Hvm, Page, Pv, page

from hotplug.errors import SaveError
from hotplug.restore import savefile, saving, strict
from hotplug.restore.guest import Request, restore
from hotplug.restore.image import Image
from hotplug.restore.output import Output
from hotplug.restore.pieces import LibxcHeader, Pages, Record
from hotplug.restore.records import Libxc
from hotplug.restore.saving import save

REQUEST = Request(7, store_channel=3, store_domid=1, console_channel=4, console_domid=2)
FRAME = 0x000FFFFFFFFFF000


def restored(stream, tmp_path, xen):
    path = tmp_path / "restored"
    path.write_bytes(stream)
    with path.open("rb", buffering=0) as file:
        restore(xen, Image(file.fileno(), "the image"), REQUEST, FakeToolstack())
    return xen


@contextlib.contextmanager
def file_of(path, front=b"", flags=0):
    path.write_bytes(front)
    fd = os.open(path, os.O_RDWR | flags)
    os.lseek(fd, 0, os.SEEK_END)
    try:
        yield fd
    finally:
        os.close(fd)


def saved(xen, state, tmp_path, front=b"12345678", toolstack=None):
    """Saved into a file; the path. It has the front before the image and nothing after it."""
    path = tmp_path / "saved"
    toolstack = toolstack or FakeSaving(xen)
    with file_of(path, front) as fd:
        save(xen, state, Output(fd, "the image", shared=True), 7, (4, 17), toolstack)
        assert os.lseek(fd, 0, os.SEEK_CUR) == path.stat().st_size
    assert path.read_bytes().startswith(front)
    assert not xen.windows
    assert not state.dirty_log
    return path


def image_in(path, front=b"12345678"):
    return path.read_bytes()[len(front) :]


def saved_to_pipe(xen, state):
    reading, writing = os.pipe()
    found = []

    def read():
        with open(reading, "rb") as pipe:
            found.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        save(xen, state, Output(writing, "a pipe", shared=True), 7, (4, 17), FakeSaving(xen))
    finally:
        os.close(writing)
        reader.join()
    return found[0]


def pieces(stream, tmp_path):
    path = tmp_path / "looked-at"
    path.write_bytes(stream)
    with path.open("rb", buffering=0) as file:
        assert strict.verify(Image(file.fileno(), "it")).keys() <= {
            "an optional record FILLER, which verify-stream-v2 rejects"
        }
        image = Image(file.fileno(), "it")
        return [
            (one, image.read(one.bulk)) if isinstance(one, Pages) else one
            for one in image.pieces(savefile.parse())
        ]


def memory(xen):
    """The guest's pages by pfn, with pfns in its page tables."""
    m2p = {frame: pfn for pfn, frame in xen.p2m.items()}
    found = {}
    for pfn, frame in xen.p2m.items():
        content = xen.pages[frame]
        if pfn in TABLE_PFNS:
            entries = struct.unpack("<512Q", content)
            content = struct.pack(
                "<512Q",
                *(e & ~FRAME | m2p[(e & FRAME) >> 12] << 12 if e & 1 else e for e in entries),
            )
        found[pfn] = content
    return found


TABLE_PFNS = (3, 4, 5, 6)


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("width", [8, 4])
def test_a_pv_guest_there_and_back(tmp_path, width, pipe):
    guest = Pv(width, vcpus=2)
    xen = restored(guest.stream(), tmp_path, FakeXen(max_vcpu_id=2))
    state = prepare(xen, guest)
    before = memory(xen)
    stream = saved_to_pipe(xen, state) if pipe else image_in(saved(xen, state, tmp_path))
    again = restored(stream, tmp_path, FakeXen(max_vcpu_id=2))
    after = memory(again)
    assert before.keys() == after.keys()
    for pfn in before.keys() - {0, 2}:  # start_info, the p2m
        assert after[pfn] == before[pfn], pfn
    assert again.blobs == xen.blobs
    assert again.policy == xen.policy
    assert [e for e in again.log if e[0] == "set_tsc"] == [e for e in xen.log if e[0] == "set_tsc"]
    assert {again.pfn_of(f): level for f, level in again.pinned.items()} == {
        xen.pfn_of(f): level for f, level in xen.pinned.items()
    }
    assert again.contexts.keys() == xen.contexts.keys() == {0, 1}
    for vcpu, context in again.contexts.items():
        assert localised_alike(xen, xen.contexts[vcpu], again, context, width)


def localised_alike(one, context, other, again, width):
    """Two vcpus, but for the frames in them."""
    at_info, at_gdt, _, at_ctrl, number = savefiles.FIELDS[width]
    places = [(at_info, int), (at_gdt, int), (at_ctrl + 3 * width, "cr3")]
    first, second = bytearray(context), bytearray(again)
    for at, kind in places:
        numbers = [struct.unpack_from(number, blob, at)[0] for blob in (first, second)]
        if kind == "cr3":
            numbers = [n >> 12 if width == 8 else (n >> 12 | n << 20) & 0xFFFFFFFF for n in numbers]
        if at != at_info or numbers[0]:
            assert one.pfn_of(numbers[0]) == other.pfn_of(numbers[1])
        for blob in (first, second):
            struct.pack_into(number, blob, at, 0)
    return first == second


def test_its_records_are_those_of_xens_own(tmp_path):
    guest = Pv(vcpus=2)
    xen = restored(guest.stream(), tmp_path, FakeXen(max_vcpu_id=3))
    found = pieces(saved_to_pipe(xen, prepare(xen, guest)), tmp_path)
    assert isinstance(found[0], LibxcHeader)
    assert (found[0].version, found[0].xen) == (3, (4, 17))
    kinds = [getattr(one, "kind", Libxc.PAGE_DATA) for one in found[1:]]
    vcpu = [
        Libxc.X86_PV_VCPU_BASIC,
        Libxc.X86_PV_VCPU_EXTENDED,
        Libxc.X86_PV_VCPU_XSAVE,
        Libxc.X86_PV_VCPU_MSRS,
    ]
    assert kinds == [
        Libxc.X86_PV_INFO,
        Libxc.X86_CPUID_POLICY,
        Libxc.X86_MSR_POLICY,
        Libxc.STATIC_DATA_END,
        Libxc.X86_PV_P2M_FRAMES,
        Libxc.PAGE_DATA,
        Libxc.X86_TSC_INFO,
        Libxc.SHARED_INFO,
        *vcpu,
        *vcpu,
        Libxc.END,
    ]
    original = pieces(guest.stream(), tmp_path)
    kept = {Libxc.X86_PV_INFO, Libxc.X86_CPUID_POLICY, Libxc.X86_MSR_POLICY, Libxc.X86_TSC_INFO}
    kept |= {Libxc.X86_PV_P2M_FRAMES, *vcpu[1:]}

    def bodies(some):
        return [one.body for one in some if getattr(one, "kind", None) in kept]

    assert bodies(found) == bodies(original)
    contexts = [one.body for one in found[1:] if getattr(one, "kind", 0) == Libxc.X86_PV_VCPU_BASIC]
    for number, body in enumerate(contexts):
        wanted = savefiles.context(8, vcpu=number)
        flags = struct.pack("<Q", struct.unpack_from("<Q", wanted, 512)[0] | 32)
        assert body[8:] == wanted[:512] + flags + wanted[520:]


def test_its_user_page_table(tmp_path):
    guest = Pv()
    xen = restored(guest.stream(), tmp_path, FakeXen())
    state = prepare(xen, guest)
    context = bytearray(xen.contexts[0])
    struct.pack_into("<Q", context, 4992, xen.p2m[3] << 12)
    xen.contexts[0] = bytes(context)
    found = pieces(saved_to_pipe(xen, state), tmp_path)
    (body,) = [one.body for one in found[1:] if getattr(one, "kind", 0) == 4]
    assert struct.unpack_from("<Q", body, 8 + 4992)[0] == 3 << 12 | 1


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("emulated", [False, True])
def test_an_hvm_guest_there_and_back(tmp_path, emulated, pipe):
    guest = Hvm(emulator=b"" if emulated else None)
    guest.parts = {"params": savefiles.params(((1, 5), (17, 7), (36, 9)))}
    xen = restored(guest.stream(), tmp_path, FakeXen(is_hvm=True))
    state = FakeState(xen)
    if pipe:
        stream = saved_to_pipe(xen, state)
    else:
        toolstack = FakeSaving(xen)
        stream = image_in(saved(xen, state, tmp_path, toolstack=toolstack))
        assert toolstack.calls == [("log_dirty", True), "suspend", ("log_dirty", False)]
    again = restored(stream, tmp_path, FakeXen(is_hvm=True))
    assert {pfn: again.pages[pfn] for pfn in again.p2m} == {pfn: xen.pages[pfn] for pfn in xen.p2m}
    assert (again.params, again.context) == (xen.params, xen.context)
    kinds = [one.kind for one in pieces(stream, tmp_path)[1:] if isinstance(one, Record)]
    assert [kind for kind in kinds if kind != Libxc.FILLER] == [
        Libxc.X86_CPUID_POLICY,
        Libxc.X86_MSR_POLICY,
        Libxc.STATIC_DATA_END,
        Libxc.X86_TSC_INFO,
        Libxc.HVM_CONTEXT,
        Libxc.HVM_PARAMS,
        Libxc.END,
    ]


def test_special_pages_far_from_the_memory(tmp_path):
    """A file tells only of what is there; a pipe gets what Xen's own saver writes."""
    special = [Page(NOTAB, pfn, page(pfn)) for pfn in (40_000, 40_002)]
    guest = Hvm(memory=[*savefiles.hvm_memory(), *special])
    xen = restored(guest.stream(), tmp_path, FakeXen(is_hvm=True))
    state = FakeState(xen)
    full = [
        one[0].entries
        for one in pieces(saved_to_pipe(xen, state), tmp_path)
        if isinstance(one, tuple)
    ]
    numbers = [entry & (1 << 52) - 1 for batch in full for entry in batch]
    assert numbers == list(range(40_003))
    assert [entry >> 60 for entry in full[-1][-3:]] == [NOTAB, XTAB, NOTAB]
    assert max(map(len, full)) == saving.BATCH
    xen.info = dataclasses.replace(xen.info, suspended=False)
    stream = image_in(saved(xen, state, tmp_path))
    there = [one[0].entries for one in pieces(stream, tmp_path) if isinstance(one, tuple)]
    assert there == [full[0], full[-1]]
    again = restored(stream, tmp_path, FakeXen(is_hvm=True))
    assert again.p2m == xen.p2m
    assert again.pages == {**xen.pages, SHARED_INFO: again.pages[SHARED_INFO]}


P2M = (2, 16, 17, 18)  # pfns of the frames that hold the p2m of a guest with 2,048 pages


def large(content_of):
    """A guest of 2,048 pages, and its stream."""
    more = (Page(NOTAB, pfn, content_of(pfn)) for pfn in range(16, 2048))
    guest = Pv(memory=[*savefiles.pv_memory(), *more])
    guest.parts = {"p2m": savefiles.p2m_frames(2048, P2M)}
    return guest


@pytest.mark.parametrize("front", [b"", b"12345678", b"123"])
def test_zero_pages_are_holes(tmp_path, front):
    """One by one where pages lie as a file's do; else all but the ends of each row."""
    guest = large(lambda pfn: page(pfn) if pfn in range(100, 200, 2) else ZERO)
    xen = restored(guest.stream(), tmp_path, FakeXen())
    state = prepare(xen, guest)
    path = saved(xen, state, tmp_path, front=front)
    content = [xen.pages[frame] for frame in xen.p2m.values()]
    pages = sum(map(any, content))
    taken = path.stat().st_blocks * 512 // PAGE
    assert path.stat().st_size > 2040 * PAGE
    if len(front) % 8:
        assert taken < pages + 80
        assert b"\x01\xff\xff\xff" not in path.read_bytes()
    else:
        assert taken < pages + 20
    again = restored(image_in(path, front), tmp_path, FakeXen())
    assert [again.pages[again.p2m[pfn]] for pfn in range(19, 2048)] == [
        xen.pages[xen.p2m[pfn]] for pfn in range(19, 2048)
    ]


def test_where_a_file_has_something_already(tmp_path):
    """What is zero is written, as it may lie over something else."""
    guest = large(lambda _: ZERO)
    xen = restored(guest.stream(), tmp_path, FakeXen())
    state = prepare(xen, guest)
    path = tmp_path / "old"
    with file_of(path, b"\xee" * (10 << 20)) as fd:
        os.lseek(fd, 16, os.SEEK_SET)
        save(xen, state, Output(fd, "old", shared=True), 7, (4, 17), FakeSaving(xen))
        end = os.lseek(fd, 0, os.SEEK_CUR)
    content = path.read_bytes()
    assert content[end:] == b"\xee" * ((10 << 20) - end)
    again = restored(content[16:end], tmp_path, FakeXen())
    assert all(again.pages[again.p2m[pfn]] == ZERO for pfn in range(19, 2048))


def test_a_file_that_is_appended_to(tmp_path):
    guest = large(lambda _: ZERO)
    xen = restored(guest.stream(), tmp_path, FakeXen())
    state = prepare(xen, guest)
    path = tmp_path / "appended"
    with file_of(path, b"front", os.O_APPEND) as fd:
        save(xen, state, Output(fd, "it", shared=True), 7, (4, 17), FakeSaving(xen))
        assert os.lseek(fd, 0, os.SEEK_CUR) == path.stat().st_size
    restored(path.read_bytes()[5:], tmp_path, FakeXen())


# What goes wrong


def one_guest(tmp_path):
    guest = Pv()
    xen = restored(guest.stream(), tmp_path, FakeXen())
    return xen, prepare(xen, guest)


def refused(xen, state, tmp_path, said, *, toolstack=None, error=SaveError):
    """It fails, and everything that was begun is undone."""
    path = tmp_path / "refused"
    toolstack = toolstack or FakeSaving(xen)
    with file_of(path) as fd, pytest.raises(error, match=said):
        save(xen, state, Output(fd, "the image", shared=True), 7, (4, 17), toolstack)
    assert not state.dirty_log
    assert not xen.windows
    return path.stat().st_size


def test_it_does_not_suspend(tmp_path):
    xen, state = one_guest(tmp_path)
    toolstack = FakeSaving(xen)
    toolstack.refuses = SaveError("no")
    assert not refused(xen, state, tmp_path, "no", toolstack=toolstack)
    toolstack.refuses = None
    toolstack.obeys = False
    said = "domain 7 has not suspended itself"
    assert not refused(xen, state, tmp_path, said, toolstack=toolstack)


def test_the_device_model_does_not_log(tmp_path):
    xen = restored(Hvm().stream(), tmp_path, FakeXen(is_hvm=True))
    state = FakeState(xen)
    toolstack = FakeSaving(xen)
    toolstack.logs = False
    refused(xen, state, tmp_path, "the device model does not log", toolstack=toolstack)
    assert toolstack.calls == [("log_dirty", True)]


def test_an_hvm_guest_that_does_not_suspend(tmp_path):
    xen = restored(Hvm().stream(), tmp_path, FakeXen(is_hvm=True))
    state = FakeState(xen)
    toolstack = FakeSaving(xen)
    toolstack.obeys = False
    refused(xen, state, tmp_path, "has not suspended", toolstack=toolstack)
    assert toolstack.calls[-1] == ("log_dirty", False)


@pytest.mark.parametrize("name", ["types", "m2p", "policy", "context"])
def test_the_hypervisor_refuses(tmp_path, name):
    xen, state = one_guest(tmp_path)
    state.failures[name] = OSError(errno.EPERM, f"{name} is refused")
    refused(xen, state, tmp_path, f"{name} is refused", error=OSError)


def test_nothing_can_be_mapped(tmp_path):
    xen, state = one_guest(tmp_path)
    xen.failures["map"] = OSError(errno.EPERM, "map is refused")
    refused(xen, state, tmp_path, "map is refused", error=OSError)


@pytest.mark.parametrize(
    ("pfn", "at", "said"),
    [
        (3, 0, "entry 0 of a page table of level 4 maps a frame that is not the guest's"),
        (6, 9, "entry 9 of a page table of level 1 maps a frame that is not the guest's"),
    ],
)
def test_a_page_table_that_maps_anothers(tmp_path, pfn, at, said):
    xen, state = one_guest(tmp_path)
    content = bytearray(xen.pages[xen.p2m[pfn]])
    struct.pack_into("<Q", content, 8 * at, (xen.p2m[15] + 1) << 12 | 1)
    xen.pages[xen.p2m[pfn]] = bytes(content)
    refused(xen, state, tmp_path, said)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (616, 5, "start_info is in frame 0x5, which is not the guest's"),
        (616, 1 << 60, "start_info is in frame"),
        (4832, 5, "a vcpu's GDT is in frame 0x5"),
        (4960, 7169, "a GDT of 7169 entries, the limit is 7168"),
        (5008, 5 << 12, "a vcpu's page table is in frame 0x5"),
        (4992, 5 << 12, "a vcpu's user page table is in frame 0x5"),
    ],
)
def test_a_vcpu_that_cannot_be(tmp_path, at, value, said):
    xen, state = one_guest(tmp_path)
    context = bytearray(xen.contexts[0])
    struct.pack_into("<Q", context, at, value)
    xen.contexts[0] = bytes(context)
    refused(xen, state, tmp_path, said)


def test_a_p2m_in_anothers_frames(tmp_path):
    xen, state = one_guest(tmp_path)
    alien = 0x200000
    xen.pages[alien] = xen.pages[xen.p2m[2]]
    put_words(xen, xen.p2m[13], "Q", [alien])
    refused(xen, state, tmp_path, "the p2m is in frame 0x200000, which is not the guest's")


def test_a_type_that_is_not_known(tmp_path):
    xen, state = one_guest(tmp_path)
    state.kinds[xen.p2m[14]] = 6
    refused(xen, state, tmp_path, "pfn 14 has the unknown type 1610612736")


def test_no_room(tmp_path):
    """Of the disk, as far as a test can take it away."""
    xen, state = one_guest(tmp_path)
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space") as e,
    ):
        save(xen, state, Output(full.fileno(), "the image"), 7, (4, 17), FakeSaving(xen))
    assert e.value.filename == "the image"
    assert not state.dirty_log


def test_a_guest_whose_pages_are_mostly_tables(tmp_path):
    """They alternate with others, and each comes out in its place."""
    pairs = range(16, 2048, 2)
    guest = large(lambda pfn: page(pfn) if pfn % 3 else ZERO)
    for pfn in pairs:
        if pfn > 18:
            guest.memory[pfn] = Page(
                L1 | (PIN if pfn % 4 else 0), pfn, savefiles.table(15, pfn - 1)
            )
    xen = restored(guest.stream(), tmp_path, FakeXen())
    state = prepare(xen, guest)
    for stream in (image_in(saved(xen, state, tmp_path)), None):
        if stream is None:
            xen.info = dataclasses.replace(xen.info, suspended=False)
            stream = saved_to_pipe(xen, state)  # noqa: PLW2901
        found = [one for one in pieces(stream, tmp_path) if isinstance(one, tuple)]
        numbers = [entry & (1 << 52) - 1 for batch, _ in found for entry in batch.entries]
        assert numbers == list(range(2048))
        content = b"".join(data for _, data in found)
        there = [one for one in guest.memory if one.kind not in (XTAB, 13)]
        for index, one in enumerate(there):
            if one.pfn > 18:
                assert content[index * PAGE : (index + 1) * PAGE] == one.data, one.pfn
