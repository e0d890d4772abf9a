"""Where a PV guest keeps its p2m: trees and lists made by the specification alone."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplug.errors import SaveError
from hotplug.restore import p2m

PAGE = 4096
FRAMES = 0x300000  # of the host
LIMIT = 1 << 24


def row(*numbers):
    return array("Q", numbers)


class Guest:
    """Frames with something in them, and a shared_info that tells of them."""

    def __init__(self, width):
        self.width = width
        self.letter = {8: "Q", 4: "I"}[width]
        self.per = PAGE // width
        self.content = {}
        self.next = 0x1000

    def put(self, letter, words, fill=0):
        """A frame with words in it."""
        count = PAGE // struct.calcsize(f"<{letter}")
        self.next += 3
        padded = [*words, *[fill] * (count - len(words))]
        self.content[self.next] = struct.pack(f"<{count}{letter}", *padded)
        return self.next

    def shared_info(self, pfns, top=0, cr3=0, address=0):
        page = bytearray(PAGE)
        at = {8: 3088, 4: 2316}[self.width]
        struct.pack_into(f"<6{self.letter}", page, at, pfns, top, 1, cr3, address, 4)
        return bytes(page)

    def tree(self, leaves, pfns, missing=0):
        """The tree over leaves; ``missing``: the frame where there is nothing more."""
        middle = [
            self.put(self.letter, leaves[at : at + self.per], missing)
            for at in range(0, len(leaves), self.per)
        ]
        end = self.put(self.letter, [missing] * self.per) if missing else 0
        return self.shared_info(pfns, self.put(self.letter, middle, end))

    def list(self, leaves, pfns, address, missing=0):
        """Page tables at whose address the leaves are."""
        levels = {8: 4, 4: 3}[self.width]
        at = (address & (2 ** (48 if self.width == 8 else 32) - 1)) >> 12
        found = {at + index: frame for index, frame in enumerate(leaves)}
        for level in range(1, levels + 1):
            tables = {}
            for number, frame in found.items():
                tables.setdefault(number >> 9, {})[number & 511] = frame << 12 | 0x63
            rest = missing << 12 | 0x63 if missing and level <= 2 else 0
            if missing and level == 1:
                missing = self.put("Q", [rest] * 512)
            found = {
                number: self.put("Q", [entries.get(i, rest) for i in range(512)])
                for number, entries in tables.items()
            }
        (root,) = found.values()
        cr3 = root << 12 if self.width == 8 else (root << 12 | root >> 20) & 0xFFFFFFFF
        return self.shared_info(pfns, 2 ** (8 * self.width) - 1, cr3, address)

    def find(self, shared_info):
        read = lambda frames: b"".join(self.content[frame] for frame in frames)  # noqa: E731
        return p2m.find(p2m.Guest(self.width, FRAMES, LIMIT, read), shared_info)


WIDTHS = pytest.mark.parametrize("width", [8, 4])
ADDRESS = {8: 0xFFFFC90000000000, 4: 0xF4000000}


def leaves(count):
    return [0x200000 + 2 * index for index in range(count)]


@WIDTHS
@pytest.mark.parametrize("kind", ["tree", "list"])
def test_a_small_guest(width, kind):
    guest = Guest(width)
    per = guest.per
    made = leaves(3)
    pfns = 2 * per + 1
    info = guest.tree(made, pfns) if kind == "tree" else guest.list(made, pfns, ADDRESS[width])
    assert guest.find(info) == p2m.Place(pfns, row(*made))
    shorter = guest.tree(made, 2 * per) if kind == "tree" else guest.list(made, 2 * per, 0x40000000)
    assert guest.find(shorter) == p2m.Place(2 * per, row(*made[:2]))


@WIDTHS
def test_a_tree_with_room_for_more(width):
    guest = Guest(width)
    made = leaves(guest.per + 5)
    found = guest.find(guest.tree(made, 9 * guest.per**2, missing=0x234567))
    # Two frames of the middle level say something, and one of those that say nothing remains.
    assert found.pfns == 3 * guest.per**2
    assert found.frames == row(*made, *[0x234567] * (3 * guest.per - len(made)))


@WIDTHS
def test_a_list_with_room_for_more(width):
    guest = Guest(width)
    made = leaves(512 + 5)
    address = {8: 0xFFFF888000000000, 4: 0x80000000}[width]
    found = guest.find(guest.list(made, 9 * 512 * guest.per, address, missing=0x234567))
    assert found.pfns == 2 * 512 * guest.per
    assert found.frames == row(*made, *[0x234567] * (1024 - len(made)))


def test_a_list_that_begins_anywhere():
    """In the middle of every table, and it reaches over into the next one of each."""
    guest = Guest(8)
    made = leaves(1030)
    address = 0x00007F0000000000 - (700 << 12)
    assert guest.find(guest.list(made, 1030 * 512 - 7, address)) == p2m.Place(
        1030 * 512 - 7, row(*made)
    )


@WIDTHS
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"pfns": 0}, "has 0 pages, the limit is"),
        ({"pfns": (1 << 28) + 1}, "has 268435457 pages, the limit is"),
        ({"top": 0}, "shared_info names no frame of this host"),
        ({"top": FRAMES}, "shared_info names no frame of this host"),
        ({"cr3": FRAMES}, "shared_info names no frame of this host"),
        ({"cr3": 5, "address": "xen"}, "p2m cannot be at"),
        ({"cr3": 5, "address": "before xen"}, "p2m cannot be at"),
        ({"cr3": 5, "address": 0x1001}, "p2m cannot be at 0x1001"),
        ({"cr3": 5, "address": "end"}, "p2m cannot be at"),
    ],
)
def test_what_cannot_be(width, told, said):
    guest = Guest(width)
    words = {
        "xen": {8: 0xFFFF800000000000, 4: 0xF5800000},
        "before xen": {8: 0xFFFF7FFFFFFFF000, 4: 0xF57FF000},
        "end": {8: 0xFFFFFFFFFFFFF000, 4: 0xFFFFF000},
    }
    told = {"pfns": 5000, **told}
    if isinstance(told.get("address"), str):
        told["address"] = words[told["address"]][width]
    if told.get("cr3"):
        frame = told["cr3"]
        told["cr3"] = frame << 12 if width == 8 else (frame << 12 | frame >> 20) & 0xFFFFFFFF
    with pytest.raises(SaveError, match=said):
        guest.find(guest.shared_info(**told))


def test_an_address_that_is_none():
    guest = Guest(8)
    for address in (0x0000800000000000, 0x00007FFFFFFFF000):
        with pytest.raises(SaveError, match="p2m cannot be at"):
            guest.find(guest.shared_info(5000, cr3=5 << 12, address=address))


@WIDTHS
@pytest.mark.parametrize("frame", [0, FRAMES])
def test_frames_that_cannot_be(width, frame):
    guest = Guest(width)
    info = guest.shared_info(5000, guest.put(guest.letter, [frame]))
    with pytest.raises(SaveError, match="the p2m's top level names no frame"):
        guest.find(info)
    info = guest.tree([0x200000, frame], 2 * guest.per)
    with pytest.raises(SaveError, match="the p2m's middle level names no frame"):
        guest.find(info)
    info = guest.list([0x200000, frame], 2 * guest.per, 0x40000000)
    with pytest.raises(SaveError, match="a page table of level 1 names no frame"):
        guest.find(info)


def test_more_than_a_tree_can_tell_of():
    guest = Guest(8)
    with pytest.raises(SaveError, match="more than its p2m can tell of"):
        guest.find(guest.shared_info(512**3 + 1, 5))


@WIDTHS
def test_room_that_it_does_not_say_is_empty(width):
    """A guest must not have dom0 keep a word for each of the pages that it could have."""
    guest = Guest(width)
    table = [0x200000 + at % 2 for at in range(guest.per)]
    info = guest.shared_info(LIMIT + 1, guest.put(guest.letter, table))
    with pytest.raises(SaveError, match="has 16777217 pages, the limit is 16777216"):
        guest.find(info)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=24, max_size=48), st.binary(min_size=8, max_size=64))
def test_whatever_a_guest_says(arch, content):
    for width in (8, 4):
        page = bytearray(PAGE)
        at = {8: 3088, 4: 2316}[width]
        page[at : at + len(arch)] = arch
        frame = (content * PAGE)[:PAGE]
        guest = p2m.Guest(width, FRAMES, 1 << 12, lambda frames, frame=frame: frame * len(frames))
        try:
            place = p2m.find(guest, bytes(page))
        except SaveError:
            continue
        assert 0 < place.pfns <= 1 << 12
        assert len(place.frames) >= -(-place.pfns * width // PAGE)


def test_invalid_is_invalid_in_either_width():
    words = struct.pack("<III", 5, 0xFFFFFFFF, 0xFFFFFFFE)
    assert p2m.widened(words, 4) == row(5, 2**64 - 1, 0xFFFFFFFE)
    assert p2m.widened(struct.pack("<QQ", 5, 2**64 - 1), 8) == row(5, 2**64 - 1)
