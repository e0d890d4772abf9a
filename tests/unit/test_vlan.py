"""The key ``vlan``, as xl-network-configuration(5) describes it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotplug.errors import HotplugError
from hotplug.handlers.vlan import parse
from hotplug.network import Vlan

KEY = "backend/vif/5/0/vlan"
NUMBERS = st.integers(1, 4094)


def flags(vlans):
    """Each VLAN by its number: p, u or t."""
    return {
        number: "p" if vlan.pvid else "u" if vlan.untagged else "t"
        for vlan in vlans
        for number in range(vlan.first, vlan.last + 1)
    }


@pytest.mark.parametrize(
    ("text", "vlans"),
    [
        ("10", [Vlan(10, 10, pvid=True, untagged=True)]),
        ("10p", [Vlan(10, 10, pvid=True, untagged=True)]),
        ("10u", [Vlan(10, 10, pvid=True, untagged=True)]),
        ("1-1", [Vlan(1, 1, pvid=True, untagged=True)]),
        ("1/4094p", [Vlan(1, 1), Vlan(4094, 4094, pvid=True, untagged=True)]),
        ("10p/20", [Vlan(10, 10, pvid=True, untagged=True), Vlan(20, 20)]),
        ("20-30/10p", [Vlan(10, 10, pvid=True, untagged=True), Vlan(20, 30)]),
        ("2-4094u/1p", [Vlan(1, 1, pvid=True, untagged=True), Vlan(2, 4094, untagged=True)]),
    ],
)
def test_what_the_manual_says(text, vlans):
    assert parse(KEY, text) == tuple(vlans)


def test_a_row_has_so_many_more():
    expected = {10: "p", 100: "u", 110: "u", 120: "u", 130: "u", 140: "u"}
    assert flags(parse(KEY, "10p/100+10x4u")) == expected


def test_a_row_of_one():
    assert flags(parse(KEY, "7+5x0")) == {7: "p"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has '', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("10p/", "has '', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("ten", "has 'ten', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("10pu", "has '10pu', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("10-20p", "has '10-20p', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("10 /20", "has '10 ', which is no VLAN; it should look like 10p/20-30/100+10x4"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "has '\N{ARABIC-INDIC DIGIT ONE}', which is no VLAN; it"),
        ("0", "has '0'; VLANs are 1 to 4094"),
        ("4095", "has '4095'; VLANs are 1 to 4094"),
        ("10p/4090-4095", "has '4090-4095'; VLANs are 1 to 4094"),
        ("10p/100+1000x4", "has '100+1000x4'; VLANs are 1 to 4094"),
        ("30-20", "has '30-20', a range that ends before it begins"),
        ("10p/10", "has VLAN 10 twice"),
        ("15/10p/5-20", "has VLAN 10 twice"),
        ("10+0x2", "has VLAN 10 twice"),
        ("10p/20p", "has two PVIDs, 10 and 20; there can be one"),
        ("10/20", "is '10/20', which has no PVID; mark one, as in 10p/20-30/100+10x4"),
        ("10-20", "is '10-20', which has no PVID; mark one, as in 10p/20-30/100+10x4"),
    ],
)
def test_what_it_does_not_allow(text, problem):
    with pytest.raises(HotplugError) as caught:
        parse(KEY, text)
    assert str(caught.value).startswith(f"{KEY} {problem}")


@st.composite
def specifications(draw):
    """A text, and what it means: disjoint terms in any order, one of them the PVID."""
    numbers = sorted(draw(st.sets(NUMBERS, min_size=1, max_size=12)))
    pvid = draw(st.sampled_from(numbers))
    terms, meaning = [f"{pvid}p"], {pvid: "p"}
    others = [number for number in numbers if number != pvid]
    while others:
        first, flag = others.pop(0), draw(st.sampled_from(["", "u"]))
        end = min([pvid, *others, 4095], key=lambda number: (number <= first, number))
        room = end - first - 1 if end > first else 4094 - first
        match draw(st.sampled_from(["single", "range", "row"])):
            case "single":
                terms.append(f"{first}{flag}")
                found = [first]
            case "range":
                last = first + draw(st.integers(0, room))
                terms.append(f"{first}-{last}{flag}")
                found = range(first, last + 1)
            case "row":
                distance = draw(st.integers(1, 5))
                more = draw(st.integers(0, room // distance))
                terms.append(f"{first}+{distance}x{more}{flag}")
                found = [first + distance * step for step in range(more + 1)]
        meaning |= dict.fromkeys(found, flag or "t")
    return "/".join(draw(st.permutations(terms))), meaning


@given(specifications())
def test_any_specification_means_what_it_says(specification):
    text, meaning = specification
    assert flags(parse(KEY, text)) == meaning


@given(st.text(st.sampled_from("0123456789/-+xpu "), max_size=24))
@example("1p/1-4094")
def test_any_text_is_vlans_or_a_sentence(text):
    try:
        vlans = parse(KEY, text)
    except HotplugError:
        return
    numbers = flags(vlans)
    assert len(numbers) == sum(vlan.last - vlan.first + 1 for vlan in vlans)
    assert list(numbers) == sorted(numbers)
    assert set(numbers) <= set(range(1, 4095))
    assert list(numbers.values()).count("p") == 1
