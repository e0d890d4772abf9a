"""The loops over pages: the same results from C and from Python."""

from __future__ import annotations

import ctypes
import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from savefiles import BROKEN, L1, L4, NOTAB, PIN, XALLOC, XTAB

from hotplug.restore import _native, loops_slow
from hotplug.restore.loops import native

BOTH = pytest.mark.parametrize("loops", [_native, loops_slow], ids=["C", "Python"])
INVALID = 2**64 - 1
PAGE = 4096
KINDS = (NOTAB, L1, L4, PIN | L1, BROKEN, XALLOC, XTAB)


def row(*numbers):
    return array("Q", numbers)


def room(size):
    return array("Q", bytes(8 * size))


def entry(kind, pfn):
    return kind << 60 | pfn


def test_what_is_used_is_the_c_one():
    assert native is _native


@BOTH
def test_highest(loops):
    assert loops.highest(row(3, 2**64 - 1, 5)) == 2**64 - 1
    assert loops.highest(struct.pack("<3Q", 7, 9, 8)) == 9
    assert loops.highest(b"") == 0


@BOTH
def test_classify(loops):
    entries = row(entry(NOTAB, 3), entry(XTAB, 1), entry(PIN | L4, 0), entry(XALLOC, 2))
    types, kinds = bytearray(b"\x77" * 5), bytearray(4)
    assert loops.classify(entries, types, 5, kinds) == 2
    assert types == bytes([PIN | L4, XTAB, XALLOC, NOTAB, 0x77])
    assert kinds == bytes([NOTAB, XTAB, PIN | L4, XALLOC])


@BOTH
@pytest.mark.parametrize(
    ("wrong", "said"),
    [(entry(5, 1), "pfn 1 has the type 5"), (entry(0, 4), "pfn 4 is beyond the guest's last one")],
)
def test_classify_refuses_before_it_changes_anything(loops, wrong, said):
    types, kinds = bytearray(4), bytearray(2)
    with pytest.raises(ValueError, match=said):
        loops.classify(row(entry(L1, 0), wrong), types, 4, kinds)
    assert types == bytes(4)


@BOTH
def test_unpopulated(loops):
    p2m = row(INVALID, 70, INVALID, INVALID, INVALID)
    entries = row(entry(0, 3), entry(0, 1), entry(XTAB, 0), entry(BROKEN, 2), entry(XALLOC, 4),
                  entry(L1, 3), entry(0, 99))  # fmt: skip
    out = room(7)
    assert loops.unpopulated(entries, p2m, out) == 2
    assert out[:2] == row(3, 4)
    assert p2m == row(INVALID, 70, INVALID, INVALID, INVALID)


@BOTH
def test_scatter_and_gather(loops):
    table = room(4)
    loops.scatter(table, row(3, 0), row(33, INVALID), 1)
    assert table == row(INVALID, 0, 0, 33)
    out = room(2)
    loops.gather(table, row(3, 1), out)
    assert out == row(33, 0)
    for pfn in (0, 4):
        with pytest.raises(ValueError, match=f"pfn {pfn} has no frame"):
            loops.gather(table, row(3, pfn), out)
    with pytest.raises(ValueError, match="out of range"):
        loops.scatter(table, row(4), row(1), 1)
    with pytest.raises(ValueError, match="out of range"):
        loops.scatter(table, row(1, 2), row(1), 1)
    with pytest.raises(ValueError, match="out of range"):
        loops.scatter(table, row(2), row(1), 3)
    loops.scatter(table, row(2, 0), row(70, 80), 2)
    assert table == row(80, 81, 70, 71)


@BOTH
def test_superpages(loops):
    pfns = array("Q", [*range(510, 1030), *range(2048, 2560), 1536, *range(3072, 3583), 4096])
    heads, rest = room(len(pfns)), room(len(pfns))
    assert loops.superpages(pfns, heads, rest) == (2, len(pfns) - 1024)
    assert heads[:2] == row(512, 2048)
    others = [510, 511, *range(1024, 1030), 1536, *range(3072, 3583), 4096]
    assert rest[: len(pfns) - 1024] == row(*others)
    assert loops.superpages(row(), heads, rest) == (0, 0)


@BOTH
def test_find_zeros(loops):
    last = bytearray(PAGE)
    last[-1] = 1
    zeros = bytearray([0, 0, 0, 1])
    loops.find_zeros(memoryview(bytes(PAGE) + b"\1" * PAGE + last + b"\2" * PAGE), zeros)
    assert zeros == bytes([1, 0, 0, 1])


@BOTH
@pytest.mark.parametrize("shift", [0, 8, 4088])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_find_zeros_in_file(loops, tmp_path, shift, steps):
    """Holes, zeros that are there, a hole that ends or begins within a page."""
    path = tmp_path / "pages"
    there = (0, 1, 4, 9)  # blocks of the file that are not holes; 4 is all zero
    with path.open("w+b") as file:
        for block in there:
            file.seek(block * PAGE)
            file.write(bytes(PAGE) if block == 4 else b"x" * PAGE)
        file.truncate(12 * PAGE)
        file.flush()
        zeros, extent, buffer = bytearray(10), row(0, 0), bytearray(steps * PAGE)
        some = bytearray(4)  # all in two calls
        loops.find_zeros_in_file(file.fileno(), shift, some, buffer, extent)
        zeros[:4], some = some, bytearray(6)
        loops.find_zeros_in_file(file.fileno(), shift + 4 * PAGE, some, buffer, extent)
        zeros[4:] = some
        content = path.read_bytes()[shift : shift + 10 * PAGE]
        for index in range(10):
            start = shift + index * PAGE
            blocks = {start // PAGE, (start + PAGE - 1) // PAGE}
            is_zero = not any(content[index * PAGE : (index + 1) * PAGE])
            assert zeros[index] == (is_zero if steps else blocks.isdisjoint(there))
        file.truncate(9 * PAGE + 5)  # within data
        if steps:
            with pytest.raises(OSError, match="No data available"):
                loops.find_zeros_in_file(file.fileno(), shift, zeros, buffer, row(0, 0))
    with pytest.raises(OSError, match="Bad file descriptor"):
        loops.find_zeros_in_file(-1, 0, bytearray(1), bytearray(PAGE), row(0, 0))


@BOTH
def test_find_zeros_in_file_asks_for_holes_once(loops, tmp_path):
    """Or a large file would be gone through for each of its records."""
    with (tmp_path / "pages").open("w+b") as file:
        file.write(bytes(4 * PAGE))
        file.flush()
        zeros, extent = bytearray(1), row(0, 2 * PAGE)  # which is not so
        loops.find_zeros_in_file(file.fileno(), PAGE, zeros, bytearray(0), extent)
        assert extent == row(0, 2 * PAGE)
        loops.find_zeros_in_file(file.fileno(), 2 * PAGE, zeros, bytearray(0), extent)
        assert extent == row(2 * PAGE, 4 * PAGE)
        with pytest.raises(ValueError, match="too small"):
            loops.find_zeros_in_file(file.fileno(), 0, zeros, bytearray(0), row(0))


@BOTH
@pytest.mark.parametrize("as_hvm", [False, True])
def test_place_pages(loops, as_hvm):
    entries = row(entry(0, 9), entry(L1, 8), entry(XTAB, 1), entry(0, 7), entry(PIN | L4, 6),
                  entry(XALLOC, 2), entry(L1, 5), entry(BROKEN, 3), entry(0, 4))  # fmt: skip
    zeros = bytearray([1, 0, 0, 0, 0, 0])
    plain, zero, tables, places = (room(9) for _ in range(4))
    counts = loops.place_pages(entries, zeros, 100, as_hvm, plain, zero, tables, places)
    at = [100 + PAGE * index for index in range(6)]
    if as_hvm:
        assert counts == (5, 2, 0)
        assert plain[:5] == row(8, 7, 6, 5, 4)
        assert places[:5] == row(*at[1:])
    else:
        assert counts == (2, 2, 3)
        assert plain[:2] == row(7, 4)
        assert tables[:3] == row(8, 6, 5)
        assert places[:5] == row(at[2], at[5], at[1], at[3], at[4])
    assert zero[:2] == row(9, 2)


@BOTH
def test_read_pages(loops, tmp_path):
    pages = [bytes([number]) * PAGE for number in range(5)]
    path = tmp_path / "pages"
    path.write_bytes(b"xyz" + b"".join(pages))
    target = ctypes.create_string_buffer(b"\xff" * 5 * PAGE, 5 * PAGE)
    with path.open("rb") as file:
        places = row(*(3 + PAGE * index for index in (3, 4, 0, 1)))
        loops.read_pages(file.fileno(), ctypes.addressof(target), places)
        assert target.raw == pages[3] + pages[4] + pages[0] + pages[1] + b"\xff" * PAGE
        with pytest.raises(OSError, match="No data available"):
            loops.read_pages(file.fileno(), ctypes.addressof(target), row(4 * PAGE + 4))
    with pytest.raises(OSError, match="Bad file descriptor"):
        loops.read_pages(-1, ctypes.addressof(target), row(0))


@BOTH
def test_copy_pages(loops):
    data = bytes(range(256)) * 48  # three pages
    target = ctypes.create_string_buffer(b"\xff" * 2 * PAGE, 2 * PAGE)
    loops.copy_pages(ctypes.addressof(target), data, row(2 * PAGE, 0))
    assert target.raw == data[2 * PAGE :] + data[:PAGE]
    with pytest.raises(ValueError, match="out of range"):
        loops.copy_pages(ctypes.addressof(target), data, row(2 * PAGE + 1))


@BOTH
def test_page_tables(loops):
    p2m = row(100, INVALID, 102, INVALID)
    tables = bytearray(struct.pack("<512Q", 0x8000000000000067, 1 << 12 | 1, 3 << 12 | 1,
                                   99 << 12, 1 << 12 | 3, 2 << 12 | 1, *[0] * 506))  # fmt: skip
    out = room(4)
    assert loops.missing(tables, p2m, out) == 2
    assert out[:2] == row(1, 3)
    assert loops.missing(tables, p2m, room(1)) == 1
    with pytest.raises(ValueError, match="pfn 1, which has no frame"):
        loops.localise(tables, p2m)
    before = bytes(tables)
    assert before[:8] == struct.pack("<Q", 0x8000000000000067)
    p2m[1], p2m[3] = 101, 2**38
    loops.localise(tables, p2m)
    assert struct.unpack_from("<6Q", tables) == (
        0x8000000000000067 | 100 << 12,
        101 << 12 | 1,
        2**50 | 1,
        99 << 12,
        101 << 12 | 3,
        102 << 12 | 1,
    )


@BOTH
def test_page_tables_that_point_beyond_the_guest(loops):
    tables = bytearray(struct.pack("<512Q", 4 << 12 | 1, *[0] * 511))
    with pytest.raises(ValueError, match="points to pfn 4, the last one is 3"):
        loops.missing(tables, room(4), room(4))


@BOTH
def test_operations(loops):
    assert loops.operations(16, row(5, 6)) == struct.pack("<QQQQQQ", 16, 5, 0, 16, 6, 0)
    assert loops.operations(16, row()) == b""


@BOTH
def test_pinned(loops):
    types = bytearray([PIN | 1, 1, PIN | 4, XALLOC, XTAB, PIN | 1, BROKEN])
    out = room(2)
    assert loops.pinned(types, 1, out) == 2
    assert out == row(0, 5)
    assert loops.pinned(types, 4, out) == 1
    with pytest.raises(ValueError, match="too small"):
        loops.pinned(types, 1, room(1))


@BOTH
def test_buffers_that_are_too_small(loops):
    with pytest.raises(ValueError, match="too small"):
        loops.classify(row(1), bytearray(1), 2, bytearray(1))
    with pytest.raises(ValueError, match="too small"):
        loops.unpopulated(row(1), row(INVALID), room(0))
    with pytest.raises(ValueError, match="too small"):
        loops.gather(row(1), row(0), room(0))
    with pytest.raises(ValueError, match="too small"):
        loops.superpages(row(1), room(0), room(1))
    with pytest.raises(ValueError, match="too small"):
        loops.find_zeros(memoryview(bytes(PAGE - 1)), bytearray(1))
    with pytest.raises(ValueError, match="too small"):
        loops.place_pages(row(1), bytes(0), 0, False, *[room(1)] * 4)
    with pytest.raises(ValueError, match="too small"):
        loops.place_pages(row(1), bytes(1), 0, False, *[room(1)] * 3, room(0))


# Saving


def pages(*some):
    """Pages in memory, as a window has them."""
    return memoryview(bytearray(b"".join(some)))


@BOTH
def test_describe(loops):
    types = row(0, 0xF0000000, 0x90000000, 0xD0000000, 0x40000000, 0xE0000000)
    entries, mapped = room(6), room(6)
    assert loops.describe(types, row(70, INVALID, 72, 73, 74, 75), 5, entries, mapped) == 3
    kinds = (NOTAB, XTAB, PIN | L1, BROKEN, L4, XALLOC)
    assert entries == row(*(entry(kind, 5 + at) for at, kind in enumerate(kinds)))
    assert mapped[:3] == row(70, 72, 74)


@BOTH
@pytest.mark.parametrize("kind", [0x50000000, 0x80000000, 0x10000001, 1 << 32])
def test_describe_refuses(loops, kind):
    with pytest.raises(ValueError, match=f"pfn 8 has the unknown type {kind}"):
        loops.describe(row(0, kind), row(1, 2), 7, room(2), room(2))


@BOTH
@pytest.mark.parametrize(
    ("look", "as_hvm", "expected"),
    [
        (True, False, [(1, 1), (1, 2), (1, 0), (2, 2), (2, 1), (2, 0)]),
        (True, True, [(2, 1), (1, 0), (1, 1), (1, 0), (2, 1), (2, 0)]),
        (False, False, [(1, 1), (1, 2), (1, 1), (2, 2), (4, 1)]),
        (False, True, [(9, 1)]),
    ],
)
def test_runs(loops, look, as_hvm, expected):
    one, zero = b"\1" * PAGE, bytes(PAGE)
    last = bytes(PAGE - 1) + b"\1"
    data = pages(one, last, zero, one, zero, one, last, zero, zero, b"more")
    kinds = (NOTAB, XTAB, L1, NOTAB, PIN | L4, BROKEN, L1, NOTAB, NOTAB, NOTAB, XALLOC, NOTAB)
    entries = row(*(entry(kind, at) for at, kind in enumerate(kinds)))
    out, tables = room(len(kinds)), room(len(kinds))
    count, tabled = loops.runs(data, entries, look, as_hvm, out, tables)
    assert [(word >> 2, word & 3) for word in out[:count]] == expected
    assert list(tables[:tabled]) == (
        [] if as_hvm else [entry(L1, 1), entry(PIN | L4, 3), entry(L1, 4)]
    )


def table_of(entries):
    return struct.pack("<512Q", *(entries.get(at, 0) for at in range(512)))


@BOTH
def test_normalise(loops):
    m2p = row(INVALID, 2, 0, INVALID, 9, 1)  # frame 5 has pfn 1, and so on
    p2m = row(2, 5, 1)
    first = table_of({0: 5 << 12 | 1, 1: 2 << 12 | 0x8000000000000067, 2: 99 << 12, 3: 1 << 12 | 1})
    data = pages(bytes(PAGE), first, first)
    out = bytearray(2 * PAGE)
    loops.normalise(data, row(entry(L1, 2), entry(PIN | L4, 1)), 4, INVALID, m2p, p2m, out)
    wanted = table_of({0: 1 << 12 | 1, 1: 0x8000000000000067, 2: 99 << 12, 3: 2 << 12 | 1})
    assert out == wanted * 2
    assert data[PAGE : 2 * PAGE] == first


@BOTH
@pytest.mark.parametrize(
    ("levels", "kind", "compat", "own"),
    [
        (4, L4, INVALID, range(256, 272)),
        (4, 3, INVALID, ()),
        (3, PIN | 3, 77, range(4, 512)),
        (3, 2, 77, ()),
        (3, 2, 5, range(428, 512)),
        (3, L1, 5, ()),
    ],
)
def test_what_is_xens_in_a_page_table(loops, levels, kind, compat, own):
    """It is taken out, whatever frames it names."""
    m2p, p2m = row(INVALID, INVALID, INVALID, INVALID, INVALID, 0), row(5)
    entries = dict.fromkeys(range(512), 5 << 12 | 1)
    entries |= {at: 99 << 12 | 0x81 for at in own if at != 428}
    out = bytearray(PAGE)
    loops.normalise(pages(table_of(entries)), row(entry(kind, 0)), levels, compat, m2p, p2m, out)
    assert [word != 0 for (word,) in struct.iter_unpack("<Q", out)] == [
        at not in own for at in range(512)
    ]


@BOTH
@pytest.mark.parametrize(
    ("kind", "word", "said"),
    [
        (2, 5 << 12 | 0x81, "entry 7 of a page table of level 2 maps a superpage"),
        (PIN | L1, 4 << 12 | 1, "entry 7 of a page table of level 1 maps a frame that is not the"),
        (L1, 0 << 12 | 1, "maps a frame that is not the guest's"),
        (L1, 6 << 12 | 1, "maps a frame that is not the guest's"),
        (L1, 3 << 12 | 1, "maps a frame that is not the guest's"),
    ],
)
def test_page_tables_that_cannot_be_saved(loops, kind, word, said):
    m2p, p2m = row(INVALID, 2, 0, 0, 9, 1), row(2, 5, 1)
    data = pages(table_of({0: 5 << 12 | 1, 7: word}))
    with pytest.raises(ValueError, match=said):
        loops.normalise(data, row(entry(kind, 0)), 4, INVALID, m2p, p2m, bytearray(PAGE))


@BOTH
def test_a_large_page_of_an_l1_table_is_its_pat_bit(loops):
    data = pages(table_of({0: 5 << 12 | 0x81}))
    out = bytearray(PAGE)
    loops.normalise(data, row(entry(L1, 0)), 4, INVALID, row(1, 1, 1, 1, 1, 0), row(5), out)
    assert out == table_of({0: 0x81})


@BOTH
def test_buffers_that_are_too_small_to_save(loops):
    with pytest.raises(ValueError, match="too small"):
        loops.describe(row(0, 0), row(1), 0, room(2), room(2))
    with pytest.raises(ValueError, match="too small"):
        loops.runs(pages(bytes(PAGE)), row(1, 2), True, False, room(2), room(2))
    with pytest.raises(ValueError, match="too small"):
        loops.runs(pages(bytes(PAGE)), row(1), True, False, room(0), room(1))
    with pytest.raises(ValueError, match="too small"):
        loops.normalise(pages(bytes(PAGE)), row(1), 4, 0, row(), row(), bytearray(PAGE))
    with pytest.raises(ValueError, match="too small"):
        loops.normalise(pages(bytes(PAGE)), row(0), 4, 0, row(), row(), bytearray(8))


entries = st.lists(
    st.builds(entry, st.sampled_from(KINDS), st.integers(0, 40)), min_size=1, max_size=60
)
p2ms = st.lists(st.sampled_from([INVALID, 0, 7, 2**40 - 1]), min_size=41, max_size=41)


@settings(max_examples=200, deadline=None)
@given(entries, p2ms)
def test_entries_alike(some, frames):
    found = []
    for loops in (_native, loops_slow):
        rows, p2m, out = row(*some), row(*frames), room(len(some))
        types, kinds = bytearray(41), bytearray(len(some))
        data = loops.classify(rows, types, 41, kinds)
        count = loops.unpopulated(rows, p2m, out)
        rooms = [room(len(some)) for _ in range(4)]
        zeros = bytearray(index % 3 == 0 for index in range(data))
        counts = loops.place_pages(rows, zeros, 7, False, *rooms)
        rooms = [
            one[:size] for one, size in zip(rooms, (*counts, counts[0] + counts[2]), strict=True)
        ]
        found.append((data, types, kinds, count, out[:count], p2m, counts, rooms))
    assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 45), st.integers(0, 2**12 - 1)), max_size=80), p2ms)
def test_tables_alike(cells, frames):
    values = [pfn << 12 | flags for pfn, flags in cells]
    found = []
    for loops in (_native, loops_slow):
        tables = bytearray(struct.pack("<512Q", *values, *[0] * (512 - len(values))))
        p2m, out = row(*frames), room(41)
        try:
            count = loops.missing(tables, p2m, out)
            for index, pfn in enumerate(out[:count]):
                p2m[pfn] = 1000 + index
            loops.localise(tables, p2m)
            found.append((bytes(tables), count, out))
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 45), st.integers(0, 2**9 - 1))),
    st.lists(st.integers(0, 45), min_size=41, max_size=41),
    st.sampled_from([(4, 1), (4, 4), (3, 2), (3, 3)]),
)
def test_normalised_alike(cells, frames, kind):
    levels, level = kind
    data = pages(table_of({at: frame << 12 | flags for at, frame, flags in cells}))
    m2p = row(*(frames.index(frame) if frame in frames else INVALID for frame in range(46)))
    found = []
    for loops in (_native, loops_slow):
        out = bytearray(PAGE)
        try:
            loops.normalise(data, row(entry(level, 0)), levels, 7, m2p, row(*frames), out)
            found.append(out)
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]
