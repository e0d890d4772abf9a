"""Batches of pages, types of pages, sets of pfns."""

from __future__ import annotations

import struct
from array import array

import pytest
import savefiles
from harness.parsing import parse, refuses_every_cut
from hypothesis import given
from hypothesis import strategies as st
from savefiles import Page

from hotplug.restore import framing, pages
from hotplug.restore.pieces import Pages, StreamError

KINDS = (0, 1, 2, 3, 4, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF)
RESERVED = (5, 6, 7, 8)
MAX_ENTRIES = 1 << 20


def batch(record):
    """The parser of a record's body, and the body up to the pages."""
    length = int.from_bytes(record[4:8], "little")
    count = int.from_bytes(record[8:12], "little")
    return lambda: pages.page_data(length), record[8 : 16 + 8 * count]


def refused(body, length=None):
    with pytest.raises(StreamError) as caught:
        parse(pages.page_data(len(body) if length is None else length), body)
    return str(caught.value)


def test_a_batch_with_every_type():
    some = [Page(kind, 10 + kind, savefiles.page(kind)) for kind in KINDS]
    record = savefiles.page_data(some, reserved=7)
    make, head = batch(record)
    found = refuses_every_cut(make, head).result
    assert found == Pages(array("Q", (kind << 60 | 10 + kind for kind in KINDS)), 9, 7)
    assert found.bulk == 9 * 4096 == len(record) - 8 - len(head)
    assert parse(make(), record[8:]).left == record[8 + len(head) :]
    assert pages.types(found.entries) == list(KINDS)
    assert pages.pfns(found.entries) == [10 + kind for kind in KINDS]
    assert [one >> 60 for one in pages.with_data(found.entries)] == list(KINDS[:9])


def test_reserved_bits_are_not_part_of_the_pfn():
    entries = struct.pack("<Q", 0xFF << 52 | 3)
    found = parse(pages.page_data(16 + 4096), struct.pack("<II", 1, 0) + entries).result
    assert pages.pfns(found.entries) == [3]


@pytest.mark.parametrize("kind", RESERVED)
def test_unknown_types(kind):
    words = refused(savefiles.page_data([Page(0, 1), Page(kind, 0x77)])[8:])
    assert f"type {kind:#x}" in words
    assert "page 1 of a batch, pfn 0x77" in words


def test_sizes_that_do_not_fit():
    body = savefiles.page_data([Page(0, 1), Page(0xF, 2)])[8:]
    assert "no pages" in refused(struct.pack("<IIQ", 0, 0, 0))
    assert "in 15 bytes" in refused(bytes(15))
    assert "3 pages in 24 bytes" in refused(struct.pack("<II2Q", 3, 0, 1, 2))
    assert "should be 4120" in refused(body, len(body) - 4096)
    assert "should be 4120" in refused(body, len(body) + 4096)


def test_a_batch_has_a_limit():
    many = struct.pack("<II", MAX_ENTRIES + 1, 0)
    assert "limit is 1048576" in refused(many, 8 + 8 * (MAX_ENTRIES + 1))


def test_only_absent_pages():
    make, head = batch(savefiles.page_data([Page(0xF, pfn) for pfn in range(5)]))
    assert refuses_every_cut(make, head).result.bulk == 0


def test_pages_beyond_the_last():
    entries = (0xF << 60 | 5, 6)
    pages.refuse_beyond(entries, 6)
    with pytest.raises(StreamError, match="pfn 0x6; the guest's last is 0x5"):
        pages.refuse_beyond(entries, 5)


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 2**52 - 1), st.integers(0, 255)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 2**32 - 1),
)
def test_batches_there_and_back(drawn, reserved):
    entries = tuple(kind << 60 | noise << 52 | pfn for kind, pfn, noise in drawn)
    with_data = sum(savefiles.has_data(kind) for kind, *_ in drawn)
    made = Pages(array("Q", entries), with_data, reserved)
    data = framing.pack(made)
    kind, length = struct.unpack_from("<II", data)
    assert kind == 1
    assert length == len(data) - 8 + made.bulk
    found = parse(pages.page_data(length), data[8:])
    assert found.result == made
    assert found.left == b""


# Sets


@given(st.lists(st.lists(st.integers(0, 100_000), max_size=20), max_size=10))
def test_sets_of_pfns(lists):
    found, model = pages.PfnSet(), set()
    for numbers in lists:
        double = found.add(numbers)
        twice = [n for at, n in enumerate(numbers) if n in model or n in numbers[:at]]
        assert (double is None) == (not twice)
        assert double is None or double in twice
        model.update(numbers)
        assert len(found) == len(model)
    assert all((pfn in found) == (pfn in model) for pfn in (*model, 0, 5, 99_999, 100_001))
    for pfn in list(model)[::2]:
        found.discard(pfn)
        found.discard(pfn)
        assert pfn not in found


@pytest.mark.parametrize("start", [0, 32_767, 32_768, 65_000, 2**28 - 5000])
def test_a_run_over_the_borders_of_a_set(start):
    found = pages.PfnSet()
    assert found.add(range(start, start + 5000)) is None
    assert len(found) == 5000
    assert start in found
    assert start + 4999 in found
    assert start + 5000 not in found
    assert found.add([start + 4000]) == start + 4000


def test_runs():
    assert list(pages.runs([])) == []
    assert list(pages.runs([3, 4, 5])) == [(3, 6)]
    assert list(pages.runs([3, 5, 4, 6])) == [(3, 4), (5, 6), (4, 5), (6, 7)]
    assert list(pages.runs([1, 2, 9, 10, 1])) == [(1, 3), (9, 11), (1, 2)]
