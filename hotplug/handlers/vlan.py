"""The VLANs of a vif on a Linux bridge: the key ``vlan`` of its backend, parsed.

The grammar is that of xl-network-configuration(5), since Xen 4.19; libxl writes down what it was
given and checks nothing. Terms are separated by "/":

    10          one VLAN; with p the PVID (untagged traffic belongs to it), with u untagged
    20-30       a range; with u untagged
    100+10x4    VLAN 100 and four more at a distance of 10; with u untagged

One VLAN must be the PVID; if there is only one at all, it is. The manual's own example has
100+10x4 end at 150, its text ("additional entries") at 140: the text counts.
"""

from __future__ import annotations

import itertools
import re

from hotplug.errors import HotplugError
from hotplug.network import Vlan

FIRST, LAST = 1, 4094  # IEEE 802.1Q: 0 means no VLAN, 4095 is reserved
EXAMPLE = "10p/20-30/100+10x4"
TERM = re.compile(
    r"(?P<first>[0-9]{1,4})"
    r"(?:-(?P<last>[0-9]{1,4})|\+(?P<distance>[0-9]{1,4})x(?P<more>[0-9]{1,4})|(?P<pvid>p))?"
    r"(?P<untagged>(?<!p)u)?"
)


def parse(path: str, text: str) -> tuple[Vlan, ...]:
    """The VLANs in the value of a key, in ascending order; HotplugError names the key."""
    vlans = sorted(
        (vlan for term in text.split("/") for vlan in read(path, term)),
        key=lambda vlan: vlan.first,
    )
    for before, after in itertools.pairwise(vlans):
        if after.first <= before.last:
            raise HotplugError(f"{path} has VLAN {after.first} twice")
    pvids = [vlan.first for vlan in vlans if vlan.pvid]
    if len(pvids) > 1:
        raise HotplugError(f"{path} has two PVIDs, {pvids[0]} and {pvids[1]}; there can be one")
    if not pvids:
        if len(vlans) > 1 or vlans[0].first != vlans[0].last:
            raise HotplugError(f"{path} is '{text}', which has no PVID; mark one, as in {EXAMPLE}")
        return (Vlan(vlans[0].first, vlans[0].first, pvid=True, untagged=True),)
    return tuple(vlans)


def refuse(path: str, text: str) -> None:
    """Where the key would have no effect, nobody shall think that it has."""
    if text:
        raise HotplugError(f"{path} is '{text}', but a routed card is in no VLAN; use vif-bridge")


def read(path: str, term: str) -> list[Vlan]:
    """What one term stands for."""
    match = TERM.fullmatch(term)
    if match is None:
        raise HotplugError(f"{path} has '{term}', which is no VLAN; it should look like {EXAMPLE}")
    first = int(match["first"])
    pvid = match["pvid"] is not None
    untagged = pvid or match["untagged"] is not None
    if match["last"] is not None and int(match["last"]) < first:
        raise HotplugError(f"{path} has '{term}', a range that ends before it begins")
    rows = [(first, int(match["last"] or first))]
    if match["more"] is not None:
        distance = int(match["distance"])
        numbers = [first + distance * step for step in range(int(match["more"]) + 1)]
        rows = [(number, number) for number in numbers]
    if first < FIRST or rows[-1][1] > LAST:
        raise HotplugError(f"{path} has '{term}'; VLANs are {FIRST} to {LAST}")
    return [Vlan(low, high, pvid, untagged) for low, high in rows]
