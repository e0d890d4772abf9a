"""Guests restored into a fake hypervisor, from streams made by the specification alone."""

from __future__ import annotations

import errno
import os
import struct
import time
import tracemalloc
from types import SimpleNamespace

import pytest
import savefiles
from fakes_xen import DIRT, PAGE, SHARED_INFO, FakeToolstack, FakeXen, pipe_with
from savefiles import BROKEN, L1, NOTAB, PIN, XALLOC, XTAB, ZERO, Hvm, Page, Pv, page, record

from hotplug.errors import HotplugError, RestoreError
from hotplug.restore import memory, pv, reading
from hotplug.restore.guest import Request, restore
from hotplug.restore.image import Image
from hotplug.restore.memory import WAITING
from hotplug.restore.pages import LAST_PFN
from hotplug.restore.pieces import StreamError

REQUEST = Request(7, store_channel=3, store_domid=1, console_channel=4, console_domid=2)
STORE, CONSOLE = 7, 8  # pfns
FRAME = 0x000FFFFFFFFFF000
# struct start_info: nr_pages, shared_info, flags, store_mfn, store_evtchn, console mfn, evtchn
START = (32, 40, 48, 56, 64, 72, 80)


def restored(stream, tmp_path, xen=None, tail=b"", front=b""):
    """Restore a stream from a file; the hypervisor, the results and the file's offset."""
    xen = xen or FakeXen()
    path = tmp_path / "image"
    path.write_bytes(front + stream + tail)
    toolstack = FakeToolstack()
    with path.open("rb", buffering=0) as file:
        file.seek(len(front))
        results = restore(xen, Image(file.fileno(), "the image"), REQUEST, toolstack)
        return xen, results, file.tell(), toolstack


def content(xen, pfn):
    return xen.pages[xen.p2m[pfn]]


def assert_pv(xen, guest, width):
    for one in guest.memory:
        if one.kind in (XTAB, BROKEN):
            assert one.pfn not in xen.p2m
        elif one.kind == NOTAB and one.pfn not in (0, 2):
            assert content(xen, one.pfn) == one.data
    for pfn, *targets in ((3, 4), (4, 5), (5, 0, 1, 2, 15)):
        entries = struct.unpack("<512Q", content(xen, pfn))
        assert [(e & FRAME) >> 12 for e in entries if e & 1] == [xen.p2m[t] for t in targets]
        assert all(e & ~FRAME == 0x8000000000000067 for e in entries if e & 1)
        assert entries[len(targets)] == 0xFFFFFFFFF << 12  # not present: as it was
    assert xen.pinned == {xen.p2m[3]: width // 8 + 2, xen.p2m[5]: 0}
    p2m = [xen.p2m.get(pfn, 2**64 - 1) & (2 ** (8 * width) - 1) for pfn in range(16)]
    assert struct.unpack_from(f"<16{'Q' if width == 8 else 'I'}", content(xen, 2)) == tuple(p2m)


@pytest.mark.parametrize("version", [2, 3])
def test_a_pv_guest(tmp_path, version):
    guest = Pv(version=version, vcpus=2)
    xen = FakeXen(max_vcpu_id=2)  # the last vcpu is offline
    stream = guest.stream()
    _, results, offset, toolstack = restored(stream, tmp_path, xen, tail=b"libxl's", front=b"xl")
    assert results == (xen.p2m[STORE], xen.p2m[CONSOLE])
    assert offset == 2 + len(stream)
    assert_pv(xen, guest, 8)
    assert toolstack.static_data == [(version == 2, version == 2)]
    assert (xen.policy is None) == (version == 2)
    assert sorted(xen.contexts) == [0, 1]
    assert xen.seeded == {
        "is_hvm": False,
        "console": xen.p2m[CONSOLE],
        "store": xen.p2m[STORE],
        "console_domid": 2,
        "store_domid": 1,
    }
    assert ("set_tsc", 1, 2_400_000, 12345, 7) in xen.log
    assert not xen.windows
    assert not any(name == "set_address_size" for name, *_ in xen.log)


def test_its_vcpus(tmp_path):
    xen, _, _, _ = restored(Pv().stream(), tmp_path)
    state = xen.contexts[0]
    saved = savefiles.context(8)
    assert struct.unpack_from("<Q", state, 512)[0] == struct.unpack_from("<Q", saved, 512)[0] | 32
    assert struct.unpack_from("<Q", state, 616)[0] == xen.p2m[0]
    assert struct.unpack_from("<Q", state, 4832)[0] == xen.p2m[1]
    assert struct.unpack_from("<Q", state, 5008)[0] == xen.p2m[3] << 12
    assert xen.blobs["xsave", 0] == bytes(range(200))
    assert xen.blobs["extended", 0] == bytes(range(64))
    assert xen.blobs["msrs", 0] == struct.pack("<IIQ", 0x174, 0, 5)


def test_its_start_info(tmp_path):
    xen, _, _, _ = restored(Pv().stream(), tmp_path)
    found = content(xen, 0)
    values = [struct.unpack_from("<Q" if i in (0, 1, 3, 5) else "<I", found, at)[0]
              for i, at in enumerate(START)]  # fmt: skip
    assert values == [16, SHARED_INFO << 12, 0, xen.p2m[STORE], 3, xen.p2m[CONSOLE], 4]
    assert found[128:] == savefiles.start_info()[128:]


def test_its_shared_info(tmp_path):
    xen, _, _, _ = restored(Pv().stream(), tmp_path)
    found, saved = xen.pages[SHARED_INFO], page(99)
    assert found[0:8] == saved[0:8]
    assert found[8:16] == bytes(8)
    assert found[2048:2560] == bytes(512)
    assert found[2560:3072] == b"\xff" * 512
    assert found[3072:3088] == b"\x11" * 16  # the wall clock is Xen's
    assert found[3088:3096] == saved[3088:3096]
    assert found[3096:3104] == bytes(8)


def test_a_32_bit_guest(tmp_path):
    guest = Pv(4)
    xen, _, _, _ = restored(guest.stream(), tmp_path)
    assert xen.bits == 32
    assert xen.log[1][0] != "populate"
    assert_pv(xen, guest, 4)
    frame = xen.p2m[3]
    assert struct.unpack_from("<I", xen.contexts[0], 2728)[0] == (frame << 12 | frame >> 20) % 2**32


@pytest.mark.parametrize("emulated", [False, True])
def test_an_hvm_guest(tmp_path, emulated):
    guest = Hvm(emulator=b"" if emulated else None)
    xen = FakeXen(is_hvm=True)
    pairs = ((1, 5), (4, 1), (17, 7), (36, 9))
    guest.parts = {"params": savefiles.params(pairs)}
    _, results, _, _ = restored(guest.stream(), tmp_path, xen, tail=b"QEMU")
    assert results == (5, 7)
    for one in guest.memory:
        if one.kind == NOTAB:
            assert content(xen, one.pfn) == (ZERO if one.pfn in (5, 7) else one.data)
        else:
            assert one.pfn not in xen.p2m
    assert xen.params == {1: 5, 17: 7, 36: 9, 2: 3, 18: 4}
    assert xen.context == b"hvm context" * 100
    assert [name for name, *_ in xen.log][-2:] == ["set_hvm_context", "seed_grants"]
    assert xen.seeded["is_hvm"]


def test_from_a_pipe_not_a_byte_too_many(tmp_path):
    xen = FakeXen()
    with pipe_with(Pv().stream() + b"next") as pipe:
        restore(xen, Image(pipe, "the image"), REQUEST, FakeToolstack())
        assert os.read(pipe, 100) == b"next"
    assert_pv(xen, Pv(), 8)


def test_what_the_image_calls_zero_is_zero(tmp_path):
    """Also what only a page table asks for, and pages that the image allocates and no more."""
    memory = savefiles.pv_memory()
    memory[5] = Page(PIN | L1, 5, savefiles.table(9, 11))  # which the image does not have
    memory[10] = Page(XALLOC, 10)
    xen, _, _, _ = restored(Pv(memory=memory).stream(), tmp_path)
    for pfn in (6, 7, 9, 10, 11, 13):
        assert content(xen, pfn) == ZERO
    assert DIRT not in xen.pages.values()


P2M = (2, 16, 17, 18)  # pfns of the frames that hold the p2m of a guest with 2,048 pages


def large(content_of):
    """A guest of 2,048 pages, in records as Xen's savers write them."""
    more = (Page(NOTAB, pfn, content_of(pfn)) for pfn in range(16, 2048))
    guest = Pv(memory=[*savefiles.pv_memory(), *more], batch=1024)
    guest.parts = {"p2m": savefiles.p2m_frames(2048, P2M)}
    return guest.stream()


@pytest.mark.parametrize("full", [0, 3])
def test_holes_are_not_read(tmp_path, full):
    """A file whose zero pages are holes restores alike, and the holes are known before.

    Its pages begin where they do, not where the file system's do.
    """
    stream = large(lambda pfn: page(pfn) if pfn % 8 < full else ZERO)
    path = tmp_path / "image"
    with path.open("wb") as file:
        for at in range(0, len(stream), PAGE):
            if any(stream[at : at + PAGE]):
                file.seek(at)
                file.write(stream[at : at + PAGE])
        file.truncate(len(stream))
    if not full:
        assert path.stat().st_blocks * 512 < len(stream) // 4
    xen = FakeXen()
    with path.open("rb", buffering=0) as file:
        restore(xen, Image(file.fileno(), "the image"), REQUEST, FakeToolstack())
    for pfn in range(19, 2048):
        assert content(xen, pfn) == (page(pfn) if pfn % 8 < full else ZERO)
    assert DIRT not in xen.pages.values()


@pytest.mark.parametrize("call", ["find_zeros_in_file", "read_pages"])
def test_a_file_that_cannot_be_read(tmp_path, monkeypatch, call):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(reading.native, call, broken)
    xen = FakeXen()
    with pytest.raises(OSError, match="Input/output error: 'the image'"):
        restored(Pv().stream(), tmp_path, xen)


def test_superpages_where_the_guest_has_a_row(tmp_path):
    xen = FakeXen()
    xen.superpages = 1  # then there are no more
    restored(large(page), tmp_path, xen)
    asked = [entry[1:] for entry in xen.log if entry[0] == "populate"]
    assert asked == [(9, 3), (0, 510 + 1024)]
    assert xen.p2m[1023] - xen.p2m[512] == 511
    assert all(content(xen, pfn) == page(pfn) for pfn in range(19, 2048))


def test_a_page_that_comes_again(tmp_path):
    """As in a live migration: the last one counts, and it gets one frame."""
    guest = Pv()
    again = savefiles.page_data([Page(NOTAB, 14, page(77)), Page(NOTAB, 4, page(78))])
    table = savefiles.page_data([Page(3, 4, savefiles.table(5)), Page(NOTAB, 8, ZERO)])
    guest.parts = {"pages": guest.usual()["pages"] + again + table}
    xen, _, _, _ = restored(guest.stream(), tmp_path)
    assert content(xen, 14) == page(77)
    assert content(xen, 8) == ZERO
    assert struct.unpack_from("<Q", content(xen, 4))[0] & FRAME == xen.p2m[5] << 12


def test_a_page_that_comes_again_in_one_record(tmp_path):
    guest = Pv()
    again = [Page(NOTAB, 14, page(77)), Page(NOTAB, 14, ZERO), Page(NOTAB, 8, ZERO)]
    again += [Page(NOTAB, 8, page(8)), Page(XTAB, 15), Page(NOTAB, 6, page(5)), Page(XALLOC, 6)]
    guest.parts = {"pages": guest.usual()["pages"] + savefiles.page_data(again)}
    xen, _, _, _ = restored(guest.stream(), tmp_path)
    assert content(xen, 14) == ZERO
    assert content(xen, 8) == page(8)
    assert content(xen, 6) == ZERO


class SlowXen(FakeXen):
    """What is done beside the rest takes its time."""

    def __init__(self):
        super().__init__()
        self.most = 0  # windows at once

    def clear(self, domid, operations):
        time.sleep(0.05)
        super().clear(domid, operations)

    def map(self, domid, frames, *, writable=True):
        window = super().map(domid, frames, writable=writable)
        self.most = max(self.most, len(self.windows))
        return window

    def unmap(self, window):
        time.sleep(0.005)
        super().unmap(window)


def test_a_page_that_comes_again_while_it_is_cleared():
    guest = Pv()
    one = savefiles.page_data([Page(NOTAB, 13, page(77))])
    guest.parts = {"pages": guest.usual()["pages"] + one}
    xen = SlowXen()
    with pipe_with(guest.stream()) as pipe:  # of which each record is a batch of its own
        restore(xen, Image(pipe, "the image"), REQUEST, FakeToolstack())
    assert content(xen, 13) == page(77)


def test_windows_do_not_pile_up():
    memory = savefiles.pv_memory() + [Page(NOTAB, pfn, page(pfn)) for pfn in range(16, 80)]
    xen = SlowXen()
    parts = {"p2m": savefiles.p2m_frames(80)}
    with pipe_with(Pv(memory=memory, batch=1, parts=parts).stream()) as pipe:
        restore(xen, Image(pipe, "the image"), REQUEST, FakeToolstack())
    assert 2 <= xen.most <= WAITING + 2  # one is being unmapped, one is being filled
    assert all(content(xen, pfn) == page(pfn) for pfn in range(16, 80))


def test_a_process_that_may_have_no_thread(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(memory, "start_new_thread", refuse)
    xen, _, _, _ = restored(Pv().stream(), tmp_path)
    assert_pv(xen, Pv(), 8)
    assert DIRT not in xen.pages.values()


def test_a_block_device_has_no_holes(tmp_path, monkeypatch):
    """It has no blocks either, that stat would tell of."""
    path = tmp_path / "image"
    path.write_bytes(Pv().stream())
    as_it_is = os.stat(path)
    device = SimpleNamespace(st_mode=0o60600, st_blocks=0, st_size=0)
    with path.open("rb", buffering=0) as file:
        image = Image(file.fileno(), "the image")
        monkeypatch.setattr(os, "fstat", lambda _: device)
        assert not reading.is_sparse(image)
        monkeypatch.setattr(os, "fstat", lambda _: as_it_is)
        assert not reading.is_sparse(image)


@pytest.mark.parametrize("kind", [XTAB, BROKEN])
def test_a_page_table_that_is_not_there_any_more(tmp_path, kind):
    """It has a frame by then, which must not keep what another guest left in it."""
    memory = savefiles.pv_memory()
    memory[6] = Page(L1, 6, savefiles.table(8))
    guest = Pv(memory=memory)
    guest.parts = {"pages": guest.usual()["pages"] + savefiles.page_data([Page(kind, 6)])}
    xen, _, _, _ = restored(guest.stream(), tmp_path)
    assert struct.unpack_from("<Q", content(xen, 6))[0] & FRAME == xen.p2m[8] << 12
    assert DIRT not in xen.pages.values()


@pytest.mark.parametrize("tables", [1, 2])
def test_more_page_tables_than_are_kept(tmp_path, monkeypatch, tables):
    """They are written before the pages that they point to have come, and not a second time."""
    monkeypatch.setattr(pv, "TABLES", tables)
    memory = sorted(savefiles.pv_memory(), key=lambda one: one.kind in (NOTAB, XTAB))
    guest = Pv(memory=memory, batch=1)
    again = savefiles.page_data([Page(NOTAB, 6, page(6))])
    guest.parts = {"pages": guest.usual()["pages"] + again}
    xen, _, _, _ = restored(guest.stream(), tmp_path)
    assert_pv(xen, guest, 8)
    assert content(xen, 6) == page(6)
    assert DIRT not in xen.pages.values()


def test_verified_pages_are_compared_and_not_written(tmp_path):
    guest = Pv()
    again = [Page(NOTAB, 14, page(14)), Page(NOTAB, 8, page(8))]
    again += [Page(NOTAB, 7, ZERO), Page(NOTAB, 1, page(1))]
    pages = guest.usual()["pages"] + record(0xD) + savefiles.page_data(again)
    guest.parts = {"pages": pages + savefiles.page_data([Page(NOTAB, 14, ZERO)])}
    xen, _, _, toolstack = restored(guest.stream(), tmp_path)
    assert toolstack.said[0] == "3 pages differ from the image"
    assert content(xen, 8) == savefiles.half_zero(8)
    assert content(xen, 14) == page(14)


def test_a_page_to_verify_that_was_never_there(tmp_path):
    guest = Pv()
    again = savefiles.page_data([Page(NOTAB, 9, page(9))])
    guest.parts = {"pages": guest.usual()["pages"] + record(0xD) + again}
    with pytest.raises(RestoreError, match="pfn 9 has no frame in domain 7"):
        restored(guest.stream(), tmp_path)


# What is wrong


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"end": b""}, "truncated"),
        ({"vcpus": b""}, "without the state of vcpu 0"),
        ({"static": b""}, "before STATIC_DATA_END"),
        ({"pages": record(0x7E)}, "mandatory record"),
        ({"pages": record(0xE)}, "checkpoints"),
        ({"p2m": b""}, "before X86_PV_P2M_FRAMES"),
    ],
)
def test_a_stream_that_breaks_a_rule(tmp_path, parts, said):
    guest = Pv()
    guest.parts = parts
    with pytest.raises(StreamError, match=said):
        restored(guest.stream(), tmp_path)


def test_cut_anywhere(tmp_path):
    stream = Pv().stream()
    path = tmp_path / "image"
    path.write_bytes(stream)
    for size in (*range(0, len(stream) - 1, 997), len(stream) - 1):
        os.truncate(path, size)
        path.write_bytes(stream[:size])
        with path.open("rb", buffering=0) as file, pytest.raises(HotplugError):
            restore(FakeXen(), Image(file.fileno(), "the image"), REQUEST, FakeToolstack())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: Page(XALLOC, 0)}, "start_info is in pfn 0x0, which is of type 14, not a plain page"),
        ({1: Page(L1, 1)}, "GDT is in pfn 0x1, which is of type 1"),
        ({3: Page(NOTAB, 3, page(3))}, "not a page table of level 4"),
        ({2: Page(XTAB, 2)}, "the p2m is in pfn 0x2, which is of type 15, not a plain page"),
        ({7: Page(XTAB, 7)}, "xenstore's page is in pfn 0x7, which the image does not have"),
        ({5: Page(L1, 5, savefiles.table(99))}, "points to pfn 99, the last one is 15"),
    ],
)
def test_memory_that_cannot_be(tmp_path, change, said):
    memory = savefiles.pv_memory()
    for pfn, one in change.items():
        memory[pfn] = one
    with pytest.raises(RestoreError, match=said):
        restored(Pv(memory=memory).stream(), tmp_path)


def test_an_image_of_another_kind(tmp_path):
    with pytest.raises(RestoreError, match="of type HVM or PVH, domain 7 is PV"):
        restored(Hvm().stream(), tmp_path)
    with pytest.raises(RestoreError, match="of type PV, domain 7 is HVM or PVH"):
        restored(Pv().stream(), tmp_path, FakeXen(is_hvm=True))


def test_more_vcpus_than_the_domain(tmp_path):
    with pytest.raises(RestoreError, match="the image has vcpu 1, but the domain's last one is 0"):
        restored(Pv(vcpus=2).stream(), tmp_path)


def test_a_guest_with_room_for_much_more():
    """An image may tell of a terabyte in 4 MB; the p2m takes 8 bytes for a pfn, and no more."""
    found = memory.Memory(FakeXen(), FakeXen().info)
    pfns = 1 << 23
    tracemalloc.start()
    found.grow(pfns + 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * pfns * 1.4
    assert len(found.p2m) == pfns + 1
    assert not found.has(pfns)


def test_no_memory(tmp_path):
    with pytest.raises(RestoreError, match="no memory for") as failure:
        restored(Pv().stream(), tmp_path, FakeXen(memory=8))
    assert failure.value.number == errno.ENOMEM


def test_a_pfn_that_an_hvm_guest_cannot_have(tmp_path):
    memory = [*savefiles.hvm_memory(), Page(NOTAB, 1 << 24, page(1))]
    with pytest.raises(RestoreError, match="beyond what domain 7 may have"):
        restored(Hvm(memory=memory).stream(), tmp_path, FakeXen(is_hvm=True, memory=64))


def test_a_ballooned_hvm_guest(tmp_path):
    """It has few pages, some of them where only a larger guest's would be."""
    high = Page(NOTAB, (1 << 22) - 1, page(1))
    memory = [*savefiles.hvm_memory(), high]
    xen = FakeXen(is_hvm=True, memory=64)
    restored(Hvm(memory=memory).stream(), tmp_path, xen)
    assert content(xen, high.pfn) == high.data


def test_pfns_that_an_hvm_guest_once_had(tmp_path):
    """Savers list them as absent, up to the highest that was ever used."""
    memory = [*savefiles.hvm_memory(), Page(XTAB, LAST_PFN), Page(BROKEN, LAST_PFN - 1)]
    xen, _, _, _ = restored(Hvm(memory=memory).stream(), tmp_path, FakeXen(is_hvm=True))
    assert LAST_PFN not in xen.p2m


def test_the_toolstack_refuses(tmp_path):
    xen = FakeXen()
    toolstack = FakeToolstack()
    toolstack.refuses = RestoreError("no")
    path = tmp_path / "image"
    path.write_bytes(Pv().stream())
    with path.open("rb", buffering=0) as file, pytest.raises(RestoreError, match="no"):
        restore(xen, Image(file.fileno(), "the image"), REQUEST, toolstack)
    assert "populate" not in {name for name, *_ in xen.log}


@pytest.mark.parametrize(
    "name", ["populate", "map", "clear", "pin", "set_context", "set_cpu_policy", "seed_grants"]
)
def test_the_hypervisor_refuses(tmp_path, name):
    xen = FakeXen()
    xen.failures[name] = OSError(errno.EPERM, f"{name} is refused")
    with pytest.raises(OSError, match=f"{name} is refused"):
        restored(Pv().stream(), tmp_path, xen)
    assert not xen.windows
