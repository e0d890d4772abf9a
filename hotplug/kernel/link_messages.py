"""rtnetlink's messages about links, as far as every card's event needs them.

They are pyroute2's matter, but it makes an object of each of a link's fifty attributes: of the
CPU time of a vif-bridge event two fifths went there (pyroute2 0.9, three messages).

linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import os
import struct
import sys

from hotplug.kernel.genetlink import attribute, attributes, nested, string, u32
from hotplug.kernel.rtnetlink_abi import AF_INET, HEADER, IFF_UP, RTEXT_FILTER_SKIP_STATS
from hotplug.network import Change, Link

IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_EXT_MASK = 1, 3, 4, 10, 18, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND = 1, 2, 4
IFLA_BR_VLAN_FILTERING, IFLA_BR_VLAN_PROTOCOL, IFLA_BR_MULTI_BOOLOPT = 7, 8, 46
IFLA_BR_NF_CALL = (36, 37)  # iptables, ip6tables; a kernel without bridge netfilter tells none
OF_LINK = frozenset((IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO))
OF_BRIDGE = frozenset(
    (IFLA_BR_VLAN_FILTERING, IFLA_BR_VLAN_PROTOCOL, IFLA_BR_MULTI_BOOLOPT, *IFLA_BR_NF_CALL)
)
IFLA_AF_SPEC, IFLA_INET_CONF = 26, 1  # within AF_SPEC each family has its number
IPV4_DEVCONF_PROXY_ARP = 3  # linux/ip.h
BOOLOPT = struct.Struct("=II")  # struct br_boolopt_multi: values, and which of them are meant
NO_LL_LEARN = 1 << 0  # BR_BOOLOPT_NO_LL_LEARN
WITHOUT_STATISTICS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


def wanted(*, name: str = "", index: int = 0) -> bytes:
    """Of RTM_GETLINK: the link of this name, or of this index."""
    named = string(IFLA_IFNAME, name) if name else b""
    return IFINFO.pack(0, 0, index, 0, 0) + named + WITHOUT_STATISTICS


def wanted_of_kind(kind: str) -> bytes:
    """Of a dump by RTM_GETLINK."""
    info = attribute(IFLA_LINKINFO, string(IFLA_INFO_KIND, kind))
    return IFINFO.pack(0, 0, 0, 0, 0) + WITHOUT_STATISTICS + info


def changed(index: int, change: Change) -> bytes:
    """Of RTM_NEWLINK, for a link that is there.

    The kernel takes the name for a new one if it is told an index too, and finds the link by it if
    not. With both, before Linux 6.2, even the name that it has is refused while it is up (EBUSY).
    """
    flags, mask = (IFF_UP if change.up else 0, IFF_UP) if change.up is not None else (0, 0)
    parts = [IFINFO.pack(0, 0, index if change.known_as is None else 0, flags, mask)]
    if change.known_as is not None:
        parts.append(string(IFLA_IFNAME, change.known_as))
    if change.name is not None:
        parts.append(string(IFLA_IFNAME, change.name))
    if change.mac is not None:
        parts.append(attribute(IFLA_ADDRESS, bytes.fromhex(change.mac.replace(":", ""))))
    if change.mtu is not None:
        parts.append(u32(IFLA_MTU, change.mtu))
    if change.master is not None:
        parts.append(u32(IFLA_MASTER, change.master))
    if change.group_learning is not None:
        option = BOOLOPT.pack(0 if change.group_learning else NO_LL_LEARN, NO_LL_LEARN)
        data = nested(IFLA_INFO_DATA, attribute(IFLA_BR_MULTI_BOOLOPT, option))
        parts.append(nested(IFLA_LINKINFO, string(IFLA_INFO_KIND, "bridge") + data))
    if change.proxy_arp is not None:
        settings = nested(IFLA_INET_CONF, u32(IPV4_DEVCONF_PROXY_ARP, change.proxy_arp))
        parts.append(nested(IFLA_AF_SPEC, nested(AF_INET, settings)))
    return b"".join(parts)


def link(message: bytes) -> Link:
    """What RTM_NEWLINK tells."""
    _, _, index, flags, _ = IFINFO.unpack_from(message, HEADER.size)
    found = attributes(message, OF_LINK, HEADER.size + IFINFO.size)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = text(info.get(IFLA_INFO_KIND, b""))
    bridge = attributes(info.get(IFLA_INFO_DATA, b""), OF_BRIDGE) if kind == "bridge" else {}
    return Link(
        index=index,
        name=text(found[IFLA_IFNAME]),
        kind=kind,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found[IFLA_MTU]),
        up=bool(flags & IFF_UP),
        master=number(found.get(IFLA_MASTER, b"")),
        master_kind=text(info.get(IFLA_INFO_SLAVE_KIND, b"")),
        group_learning=learns(bridge),
        vlan_filtering=heeds_vlans(bridge),
        calls_iptables=any(number(bridge.get(option, b"")) for option in IFLA_BR_NF_CALL),
    )


def learns(bridge: dict[int, bytes]) -> bool:
    """Whether a bridge learns from frames to its own group addresses."""
    option = bridge.get(IFLA_BR_MULTI_BOOLOPT)
    return option is not None and not BOOLOPT.unpack(option)[0] & NO_LL_LEARN


def heeds_vlans(bridge: dict[int, bytes]) -> bool | None:
    """None where the kernel's bridges know no VLANs: such a one tells no protocol of theirs."""
    if IFLA_BR_VLAN_PROTOCOL not in bridge:
        return None
    return bool(number(bridge.get(IFLA_BR_VLAN_FILTERING, b"")))


def text(value: bytes) -> str:
    """A name may be any bytes."""
    return os.fsdecode(value.removesuffix(b"\0"))


def number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
