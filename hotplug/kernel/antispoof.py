"""What a guest may send, as rules: those of one link's Allowance, and those of all links.

Each guarded link has a chain of its own, whose size depends on its own addresses alone. It has as
few rules as can be: whenever one is added, the kernel looks at all rules of the table for loops
(nft_table_validate), and the only cost that grows with the number of links is this.

- Only ARP, IPv4 and IPv6 pass, in one VLAN tag or none. The kernel has taken that tag off before
  we look (skb_vlan_untag), so the rules see what is inside. A second tag, PPPoE, LLC with or
  without SNAP and RARP, could all carry what is forbidden: they are other protocols, and dropped.
- The source MAC and ARP's sender are the allowed MAC, always.
- With addresses, the sender is one of them. Without any of IPv4, a guest can still be a DHCP client
  and nothing else; without any of IPv6, it has its link-local address and no other.
- The link-local address is the one made of the MAC (RFC 4291, EUI-64). One of another kind
  (RFC 7217, as NetworkManager and Windows make them) must be among the addresses: if any could be
  used, so could the router's.
- To learn whether an address is free, a guest asks from 0.0.0.0 or ``::``; only about its own.
- Neighbour advertisements are about allowed addresses. Router advertisements, redirects and
  whatever goes to a DHCP client's port never pass, nor what hides which of these it is: packets
  whose headers are cut off, or spread over fragments. Clients look at the port that an answer
  comes to, and hardly at the one that it comes from.
- A later fragment passes by its source: it is nothing without the first, which was looked at. That
  fragments overlap no receiver takes (RFC 5722); in IPv4 they cannot, over so short a header.

The rules say what is accepted, and the last one drops: see nft.py for why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotplug.kernel import nft
from hotplug.kernel import nft_abi as abi
from hotplug.kernel.nft import ACCEPT, DROP, at_least, at_most, differs, equal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from hotplug.kernel.nfnetlink import Message
    from hotplug.kernel.nft import Range, Table
    from hotplug.network import Allowance

    Network = IPv4Network | IPv6Network


def _network(offset: int, length: int) -> bytes:
    return nft.payload(abi.NFT_PAYLOAD_NETWORK_HEADER, offset, length)


def _transport(offset: int, length: int) -> bytes:
    return nft.payload(abi.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)


ETHER_SOURCE = nft.payload(abi.NFT_PAYLOAD_LL_HEADER, 6, 6)
PROTOCOL = nft.meta(abi.NFT_META_PROTOCOL)
TRANSPORT = nft.meta(abi.NFT_META_L4PROTO)

ARP = PROTOCOL + equal(b"\x08\x06")
ARP_KIND = _network(0, 6) + equal(bytes.fromhex("0001 0800 06 04"))  # Ethernet, IPv4, their sizes
ARP_REQUEST = _network(6, 2) + equal(b"\0\x01")
ARP_SENDER_MAC = _network(8, 6)
ARP_SENDER = _network(14, 4)
ARP_TARGET = _network(24, 4)

IPV4 = PROTOCOL + equal(b"\x08\x00")
IPV4_SOURCE = _network(12, 4)
IPV4_LATER_FRAGMENT = _network(6, 2) + nft.masked(b"\x1f\xff") + differs(b"\0\0")

IPV6 = PROTOCOL + equal(b"\x86\xdd")
IPV6_SOURCE = _network(8, 16)
IPV6_LATER_FRAGMENT = nft.extension(44, 2, 2) + nft.masked(b"\xff\xf8") + differs(b"\0\0")
UNSPECIFIED = IPV6_SOURCE + equal(bytes(16))

UDP = TRANSPORT + equal(b"\x11")
DESTINATION_PORT = _transport(2, 2)
NOT_TO_DHCP_CLIENT = DESTINATION_PORT + differs((68).to_bytes(2, "big"))
NOT_TO_DHCPV6_CLIENT = DESTINATION_PORT + differs((546).to_bytes(2, "big"))
FROM_DHCP_CLIENT = UDP + _transport(0, 4) + equal(bytes.fromhex("0044 0043"))  # ports 68 to 67

ICMPV6 = TRANSPORT + equal(b"\x3a")
ICMPV6_TYPE = _transport(0, 1)
ICMPV6_TARGET = _transport(8, 16)  # of neighbour solicitations and advertisements
MLD_REPORT, ROUTER_SOLICITATION, MLD2_REPORT = b"\x83", b"\x85", b"\x8f"  # 131, 133, 143
ROUTER_ADVERTISEMENT, REDIRECT = b"\x86", b"\x89"  # 134, 137
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = b"\x87", b"\x88"  # 135, 136
# A solicitation with a target of its own is one that asks whether this is free.
ABOUT_AN_ADDRESS = (
    IPV6,
    ICMPV6,
    ICMPV6_TYPE,
    at_least(NEIGHBOUR_SOLICITATION),
    at_most(NEIGHBOUR_ADVERTISEMENT),
)

UNKNOWN = b"\xff"  # reserved; to compare with it demands that the protocol be known


class Rules:
    """The messages that fill a chain."""

    __slots__ = ("_chain", "_table", "messages")

    def __init__(self, table: Table, chain: str) -> None:
        self._table = table
        self._chain = chain
        self.messages: list[Message] = []

    def add(self, *expressions: bytes) -> None:
        self.messages.append(self._table.rule(self._chain, *expressions))

    def among(self, ranges: Sequence[Range], *, inverted: bool = False) -> bytes:
        """Whether what was read is in one of these; for one rule, to be added next."""
        made, identity = self._table.ranges(ranges)
        self.messages += made
        return nft.lookup(nft.ANONYMOUS, identity, inverted=inverted)

    def accept_from(self, ranges: Sequence[Range], *expressions: bytes) -> None:
        """Accept if the last field that the expressions read is in one of these."""
        if ranges:
            self.add(*expressions, self.among(ranges), ACCEPT)

    def drop_others(self, ranges: Sequence[Range], *expressions: bytes) -> None:
        self.add(*expressions, self.among(ranges, inverted=True), DROP)


def fill(table: Table, chain: str, allowance: Allowance) -> list[Message]:
    """What is a link's own: it drops senders that are not allowed, and returns with the others."""
    rules = Rules(table, chain)
    mac = bytes.fromhex(allowance.mac.replace(":", ""))
    rules.add(ETHER_SOURCE, differs(mac), DROP)
    if allowance.addresses:
        v4, v6 = ranges_of(allowance.addresses, mac)
        if not allowance.routed:
            limited_arp(rules, mac, v4)
        rules.drop_others(joined([(bytes(4), bytes(4)), *v4]), IPV4, IPV4_SOURCE)
        rules.drop_others(joined([(bytes(16), bytes(16)), *v6]), IPV6, IPV6_SOURCE)
        rules.accept_from(v6, *ABOUT_AN_ADDRESS, ICMPV6_TARGET)
    else:
        rules.add(ARP, ARP_KIND, ARP_SENDER_MAC, equal(mac), ACCEPT)
        rules.add(*ABOUT_AN_ADDRESS, ACCEPT)
    return rules.messages


def limited_arp(rules: Rules, mac: bytes, v4: Sequence[Range]) -> None:
    ours = (ARP, ARP_KIND, ARP_SENDER_MAC, equal(mac))
    rules.accept_from(v4, *ours, ARP_SENDER)
    rules.accept_from(v4, *ours, ARP_REQUEST, ARP_SENDER, equal(bytes(4)), ARP_TARGET)


def of_all() -> list[bytes]:
    """The rules for what is left then, of all links: what may be sent from any allowed address."""
    unspecified = IPV6 + UNSPECIFIED + ICMPV6 + ICMPV6_TYPE
    never = (ROUTER_ADVERTISEMENT, REDIRECT, NEIGHBOUR_ADVERTISEMENT)  # some were accepted before
    return [
        IPV4 + IPV4_SOURCE + equal(bytes(4)) + FROM_DHCP_CLIENT + ACCEPT,
        IPV4 + IPV4_SOURCE + equal(bytes(4)) + DROP,
        IPV4 + TRANSPORT + differs(UNKNOWN) + IPV4_LATER_FRAGMENT + ACCEPT,
        IPV4 + TRANSPORT + differs(UNKNOWN, b"\x11") + ACCEPT,
        IPV4 + UDP + NOT_TO_DHCP_CLIENT + ACCEPT,
        unspecified + at_least(MLD_REPORT) + at_most(ROUTER_SOLICITATION) + ACCEPT,
        unspecified + equal(MLD2_REPORT) + ACCEPT,
        IPV6 + UNSPECIFIED + DROP,
        IPV6 + ICMPV6 + ICMPV6_TYPE + differs(*never) + ACCEPT,
        IPV6 + IPV6_LATER_FRAGMENT + ACCEPT,
        IPV6 + TRANSPORT + differs(UNKNOWN, b"\x11", b"\x3a") + ACCEPT,
        IPV6 + UDP + NOT_TO_DHCPV6_CLIENT + ACCEPT,
        DROP,
    ]


def ranges_of(addresses: Iterable[str], mac: bytes) -> tuple[list[Range], list[Range]]:
    """The addresses of either family, IPv6 with the link-local one, as ranges."""
    import ipaddress  # noqa: PLC0415 - takes 5 ms, and disks do not come here

    networks: list[Network] = [ipaddress.ip_network(text, strict=False) for text in addresses]
    link_local = ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + eui64(mac))
    networks.append(ipaddress.IPv6Network(link_local))
    v4 = [n for n in networks if isinstance(n, ipaddress.IPv4Network)]
    v6 = [n for n in networks if isinstance(n, ipaddress.IPv6Network)]
    return (
        joined((n[0].packed, n[-1].packed) for n in v4),
        joined((n[0].packed, n[-1].packed) for n in v6),
    )


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same in order, so that they neither overlap nor touch."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and int.from_bytes(found[-1][1], "big") + 1 >= int.from_bytes(first, "big"):
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def eui64(mac: bytes) -> bytes:
    """The interface identifier of a MAC (RFC 4291, appendix A)."""
    return bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
