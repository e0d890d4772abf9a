"""Device numbers as text."""

from __future__ import annotations

import pytest

from hotplug.kernel.blockdev import number_of, parse_number
from hotplug.ports import Number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"7:a", Number(7, 10)),
        (b"fd:10", Number(253, 16)),
        (b"103:5", Number(259, 5)),
        (b"0:0", Number(0, 0)),
        (b"7:fffff", Number(7, 0xFFFFF)),
    ],
)
def test_a_number_and_its_spelling(text, number):
    assert parse_number(text) == number
    assert str(number).encode() == text


@pytest.mark.parametrize(
    "text",
    [b"", b"7", b"7:", b":a", b"07:a", b"7:0a", b"7:A", b"0x7:a", b"7:a\n", b" 7:a", b"7:a:b"],
)
def test_other_spellings_are_no_number(text):
    assert parse_number(text) is None


def test_large_minors():
    assert number_of((259 << 8) | 0x23 | (0x123 << 20)) == Number(259, 0x12323)
