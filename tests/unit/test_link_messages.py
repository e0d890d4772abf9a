"""Requests about links are, byte for byte, what pyroute2 makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplug.kernel import link_messages
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.rtnetlink_messages import encode
from hotplug.network import Change

MASK = ("IFLA_EXT_MASK", rt.RTEXT_FILTER_SKIP_STATS)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=15)
NUMBERS = st.integers(1, (1 << 31) - 1)
MACS = st.binary(min_size=6, max_size=6).map(lambda address: address.hex(":"))


@given(NAMES)
def test_a_link_by_its_name(name):
    theirs = encode(rt.RTM_GETLINK, {"index": 0}, [("IFLA_IFNAME", name), MASK])
    assert link_messages.wanted(name=name) == theirs


@given(NUMBERS)
def test_a_link_by_its_index(index):
    assert link_messages.wanted(index=index) == encode(rt.RTM_GETLINK, {"index": index}, [MASK])


def test_links_of_a_kind():
    info = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})
    theirs = encode(rt.RTM_GETLINK, {"index": 0}, [MASK, info])
    assert without_nested_flag(link_messages.wanted_of_kind("bridge")) == without_nested_flag(
        theirs
    )


def without_nested_flag(message):
    """IFLA_LINKINFO may have it or not: the kernel masks it out."""
    return message.replace(b"\x12\x80", b"\x12\x00")


@given(
    index=NUMBERS,
    change=st.builds(
        Change,
        name=st.none() | NAMES,
        mac=st.none() | MACS,
        mtu=st.none() | NUMBERS,
        master=st.none() | st.just(0) | NUMBERS,
        up=st.none() | st.booleans(),
    ),
)
def test_a_change(index, change):
    fields = {"index": index}
    if change.up is not None:
        fields |= {"flags": int(change.up), "change": 1}
    values = {
        "IFLA_IFNAME": change.name,
        "IFLA_ADDRESS": change.mac,
        "IFLA_MTU": change.mtu,
        "IFLA_MASTER": change.master,
    }
    given_ones = [(name, value) for name, value in values.items() if value is not None]
    theirs = encode(rt.RTM_NEWLINK, fields, given_ones)
    assert link_messages.changed(index, change) == theirs


@pytest.mark.parametrize("name", ["\udcff\udcfe", "gr\u00fcn"])
def test_a_name_may_be_any_bytes(name):
    assert link_messages.text(link_messages.wanted(name=name)[20:].split(b"\0")[0]) == name
