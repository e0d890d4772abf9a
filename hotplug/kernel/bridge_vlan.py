"""Which VLANs a port of a Linux bridge is in.

Facts that are not obvious (net/bridge/br_netlink.c, br_vlan.c; Linux 5.8 to 6.18):

- A new port is in the bridge's default VLAN, normally 1, with PVID and untagged.
- A bridge heeds its ports' VLANs only while its vlan_filtering is 1, but keeps them anyway.
- A kernel without CONFIG_BRIDGE_VLAN_FILTERING tells vlan_filtering as 0 and no VLAN protocol.
- To add a VLAN that is there gives it the new flags, to delete one that is not is fine.
- A range is two entries, its begin and its end; it cannot hold the PVID.
- These are requests of the family AF_BRIDGE: RTM_SETLINK adds, RTM_DELLINK deletes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.link_steps import encoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hotplug.kernel.rtnetlink_request import Request
    from hotplug.network import Link, Vlan

FIRST, LAST = 1, 4094


def requests(port: Link, vlans: Sequence[Vlan]) -> list[Request]:
    """Have a port in exactly these VLANs, which are in ascending order."""
    found = []
    for kind, entries in ((rt.RTM_DELLINK, gaps(vlans)), (rt.RTM_SETLINK, wanted(vlans))):
        infos = [
            ("IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": number}) for flags, number in entries
        ]
        if infos:
            fields = {"family": rt.AF_BRIDGE, "index": port.index}
            found.append(encoded(kind, (fields, [("IFLA_AF_SPEC", {"attrs": infos})])))
    return found


def refuse_unfiltered(bridge: Link) -> None:
    if bridge.kind != "bridge":
        raise OSError(errno.EOPNOTSUPP, "this is no Linux bridge and has no VLANs", bridge.name)
    if bridge.vlan_filtering is None:
        raise OSError(
            errno.EOPNOTSUPP,
            "this kernel's bridges know no VLANs; it was built without"
            " CONFIG_BRIDGE_VLAN_FILTERING",
            bridge.name,
        )
    if not bridge.vlan_filtering:
        raise OSError(
            errno.EOPNOTSUPP,
            "this bridge ignores VLANs; to change that, run: ip link set"
            f" {bridge.name} type bridge vlan_filtering 1",
            bridge.name,
        )


def gaps(vlans: Sequence[Vlan]) -> Iterator[tuple[int, int]]:
    """Flags and numbers that stand for all VLANs but these."""
    ends = [vlan.last for vlan in vlans]
    begins = [vlan.first for vlan in vlans]
    for before, after in zip([FIRST - 1, *ends], [*begins, LAST + 1], strict=True):
        if before + 1 < after:
            yield from span(before + 1, after - 1, 0)


def wanted(vlans: Sequence[Vlan]) -> Iterator[tuple[int, int]]:
    for vlan in vlans:
        flags = rt.BRIDGE_VLAN_INFO_UNTAGGED if vlan.untagged else 0
        if vlan.pvid:
            flags |= rt.BRIDGE_VLAN_INFO_PVID
        yield from span(vlan.first, vlan.last, flags)


def span(first: int, last: int, flags: int) -> Iterator[tuple[int, int]]:
    if first == last:
        yield flags, first
    else:
        yield flags | rt.BRIDGE_VLAN_INFO_RANGE_BEGIN, first
        yield flags | rt.BRIDGE_VLAN_INFO_RANGE_END, last
