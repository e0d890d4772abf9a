"""What the kernel is told of a port's VLANs, byte by byte: linux/if_bridge.h, linux/rtnetlink.h."""

from __future__ import annotations

import dataclasses
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplug.kernel import bridge_vlan, link_messages
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.genetlink import attribute, nested, string, u32
from hotplug.network import Link, Vlan

PORT = Link(7, "vif1.0", "", "fe:ff:ff:ff:ff:ff", 1500, False, 3)
PVID, UNTAGGED, BEGIN, END = 2, 4, 8, 16
PROTOCOL = b"\x81\x00"


def sent(*vlans):
    return [(one.kind, one.body) for one in bridge_vlan.requests(PORT, vlans)]


def request(kind, *entries):
    infos = b"".join(struct.pack("=HHHH", 8, 2, *entry) for entry in entries)
    spec = struct.pack("=HH", 4 + len(infos), 26) + infos
    return kind, struct.pack("=BxHiII", 7, 0, 7, 0, 0) + spec


@pytest.mark.parametrize(
    ("vlans", "deleted", "added"),
    [
        (
            [Vlan(10, 10, pvid=True, untagged=True)],
            [(BEGIN, 1), (END, 9), (BEGIN, 11), (END, 4094)],
            [(PVID | UNTAGGED, 10)],
        ),
        (
            [Vlan(1, 1, pvid=True, untagged=True), Vlan(3, 5), Vlan(4094, 4094, untagged=True)],
            [(0, 2), (BEGIN, 6), (END, 4093)],
            [(PVID | UNTAGGED, 1), (BEGIN, 3), (END, 5), (UNTAGGED, 4094)],
        ),
        (
            [Vlan(20, 30, untagged=True)],
            [(BEGIN, 1), (END, 19), (BEGIN, 31), (END, 4094)],
            [(BEGIN | UNTAGGED, 20), (END | UNTAGGED, 30)],
        ),
    ],
)
def test_all_others_are_deleted_then_these_are_added(vlans, deleted, added):
    expected = [request(17, *deleted), request(19, *added)]
    assert sent(*vlans) == expected


def test_all_vlans_leave_nothing_to_delete():
    first, second = Vlan(1, 1, pvid=True, untagged=True), Vlan(2, 4094)
    expected = request(19, (PVID | UNTAGGED, 1), (BEGIN, 2), (END, 4094))
    assert sent(first, second) == [expected]


def numbers(entries):
    found, begin = [], 0
    for flags, number in entries:
        if flags & rt.BRIDGE_VLAN_INFO_RANGE_BEGIN:
            begin = number
        elif flags & rt.BRIDGE_VLAN_INFO_RANGE_END:
            found += range(begin, number + 1)
        else:
            found.append(number)
    return found


@given(st.sets(st.integers(1, 4094), min_size=2, max_size=20).map(sorted))
def test_every_vlan_is_added_or_deleted(bounds):
    vlans = [Vlan(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=False)]
    added, deleted = numbers(bridge_vlan.wanted(vlans)), numbers(bridge_vlan.gaps(vlans))
    assert added == [n for vlan in vlans for n in range(vlan.first, vlan.last + 1)]
    assert sorted(added + deleted) == list(range(1, 4095))


@pytest.mark.parametrize(
    ("kind", "filtering", "problem"),
    [
        ("bridge", None, "know no VLANs"),
        ("bridge", False, "ip link set xenbr0 type bridge vlan_filtering 1"),
        ("bond", None, "no Linux bridge"),
    ],
)
def test_a_bridge_that_heeds_no_vlans(kind, filtering, problem):
    bridge = Link(3, "xenbr0", kind, "02:00:00:00:00:01", 1500, True, 0, vlan_filtering=filtering)
    with pytest.raises(OSError, match=problem) as failure:
        bridge_vlan.refuse_unfiltered(bridge)
    assert (failure.value.errno, failure.value.filename) == (errno.EOPNOTSUPP, "xenbr0")
    bridge_vlan.refuse_unfiltered(dataclasses.replace(bridge, kind="bridge", vlan_filtering=True))


@pytest.mark.parametrize(
    ("told", "filtering"),
    [(b"", None), (b"\1", None), (b"\0" + PROTOCOL, False), (b"\1" + PROTOCOL, True)],
)
def test_what_a_bridge_says_of_vlans(told, filtering):
    """Linux without CONFIG_BRIDGE_VLAN_FILTERING tells vlan_filtering, and no protocol."""
    data = attribute(7, told[:1]) + (attribute(8, told[1:]) if told[1:] else b"")
    info = nested(18, string(1, "bridge") + nested(2, data))
    body = struct.pack("=BxHiII", 0, 0, 3, 0, 0) + string(3, "xenbr0") + u32(4, 1500) + info
    link = link_messages.link(rt.HEADER.pack(16 + len(body), rt.RTM_NEWLINK, 0, 1, 0) + body)
    assert (link.name, link.vlan_filtering) == ("xenbr0", filtering)
