"""What a guest may want to send, honest and forged: arguments of frames.ethernet()."""

from __future__ import annotations

import ipaddress

from harness.frames import (
    ALL_NODES,
    DATA,
    ICMPV6,
    UDP,
    arp,
    extension,
    fragment,
    icmpv6,
    ipv4,
    ipv6,
    neighbour,
    udp,
)
from harness.lan import HOST, HOST6, LINK_LOCAL, MAC, OTHER, OTHER6, OTHER_MAC, OWN, OWN6

HOP_BY_HOP, DESTINATION, FRAGMENT = 0, 60, 44
RS, RA, NS, NA, REDIRECT, ECHO, MLD2 = 133, 134, 135, 136, 137, 128, 143
DISCOVER = udp(68, 67)
OFFER = udp(67, 68)
ADVERTISE = udp(547, 546)
ALL = "255.255.255.255"
NOBODY = str(ipaddress.IPv4Address(0))
GROUP = "ff02::1"


def inner4(payload, source=OWN, **how):
    return {"payload": ipv4(source, ALL, payload, **how), "type_": 0x0800}


def inner6(payload, source=LINK_LOCAL, following=ICMPV6):
    return {"payload": ipv6(source, GROUP, payload, following), "type_": 0x86DD, "to": ALL_NODES}


def inner_arp(*words, **how):
    return {"payload": arp(*words, **how), "type_": 0x0806}


def sent(inner, source=MAC, **how):
    return {"source": source, **inner, **how}


HELLO = udp(1000, 2000)
SNAP = bytes.fromhex("aaaa03 000000 0800")
FORGED = inner4(HELLO, OTHER)
FORGED_ARP = inner_arp(MAC, OTHER, OWN)
ADVERTISED = inner6(icmpv6(RA))
HONEST = inner4(HELLO)

# What never passes, whatever addresses are allowed.
NEVER = {
    "another MAC": sent(HONEST, OTHER_MAC),
    "another MAC, IPv6": sent(inner6(icmpv6(ECHO)), OTHER_MAC),
    "another MAC, to one guest": sent(HONEST, OTHER_MAC, to=OTHER_MAC),
    "ARP from another MAC": sent(inner_arp(MAC, OWN, OTHER), OTHER_MAC),
    "ARP about another MAC": sent(inner_arp(OTHER_MAC, OWN, OTHER, operation=2)),
    "ARP of another kind": sent(inner_arp(MAC, OWN, OTHER, kind="0006 0800 06 04")),
    "ARP with long addresses": sent(inner_arp(MAC, OWN, OTHER, kind="0001 0800 08 04")),
    "RARP": sent(inner_arp(MAC, OWN, OTHER), type_=0x8035),
    "router advertisement": sent(ADVERTISED),
    "router advertisement in a VLAN": sent(ADVERTISED, tags=[(0x8100, 5)]),
    "router advertisement after options": sent(
        inner6(extension(ICMPV6) + icmpv6(RA), following=HOP_BY_HOP)
    ),
    "router advertisement after two": sent(
        inner6(
            extension(DESTINATION) + extension(ICMPV6, bytes(14)) + icmpv6(RA), following=HOP_BY_HOP
        )
    ),
    "router advertisement in one fragment": sent(
        inner6(fragment(ICMPV6, 0, icmpv6(RA), more=False), following=FRAGMENT)
    ),
    "router advertisement in the first": sent(
        inner6(fragment(ICMPV6, 0, icmpv6(RA, bytes(12)), more=True), following=FRAGMENT)
    ),
    "options without what follows": sent(
        inner6(fragment(DESTINATION, 0, extension(ICMPV6), more=True), following=FRAGMENT)
    ),
    "options cut off": sent(
        inner6(fragment(DESTINATION, 0, extension(ICMPV6, bytes(30))[:16], more=True), following=44)
    ),
    "redirect": sent(inner6(icmpv6(REDIRECT))),
    "DHCP offer": sent(inner4(OFFER)),
    "DHCP offer to one guest": sent(inner4(OFFER), to=OTHER_MAC),
    "DHCP offer from another port": sent(inner4(udp(4011, 68))),
    "DHCP offer, the first fragment": sent(inner4(OFFER, fragment=0x2000)),
    "DHCP offer after options": sent(inner4(OFFER, options=b"\x01" * 8)),
    "DHCP offer in a VLAN": sent(inner4(OFFER), tags=[(0x8100, 5)]),
    "DHCPv6 advertise": sent(inner6(ADVERTISE, following=UDP)),
    "DHCPv6 advertise after options": sent(inner6(extension(UDP) + ADVERTISE, following=60)),
    "DHCPv6 advertise in a fragment": sent(
        inner6(fragment(UDP, 0, ADVERTISE, more=True), following=44)
    ),
    "DHCPv6, the port in another fragment": sent(
        inner6(fragment(60, 0, extension(UDP, bytes(14)), more=True), following=FRAGMENT)
    ),
    "IPv4 from nobody": sent(inner4(HELLO, NOBODY)),
    "IPv6 from nobody": sent(inner6(HELLO, "::", UDP)),
    "echo from nobody": sent(inner6(icmpv6(ECHO), "::")),
    "two VLAN tags": sent(HONEST, tags=[(0x8100, 5), (0x8100, 6)]),
    "two VLAN tags, of a provider": sent(ADVERTISED, tags=[(0x88A8, 5), (0x8100, 6)]),
    "PPPoE": sent({"type_": 0x8864, "payload": bytes.fromhex("1100 0001 0040 0021") + DATA}),
    "LLC with SNAP": sent({"type_": 48, "payload": SNAP + FORGED["payload"]}),
    "spanning tree": sent({"type_": 38, "payload": bytes.fromhex("424203 0000 00 00") + bytes(32)}),
    "IPv4 cut off": sent({**HONEST, "payload": HONEST["payload"][:15]}),
    "IPv4 with less than it says": sent({**HONEST, "payload": HONEST["payload"][:-4]}),
    "IPv4 later fragment cut off": sent(
        {"type_": 0x0800, "payload": ipv4(OTHER, ALL, HELLO, fragment=8)[:14]}
    ),
    "IPv6 cut off": sent({**ADVERTISED, "payload": ADVERTISED["payload"][:38]}),
    "ARP cut off": sent({**FORGED_ARP, "payload": FORGED_ARP["payload"][:13]}),
}
FORGERIES = {
    "ARP of another": sent(FORGED_ARP),
    "ARP reply of another": sent(inner_arp(MAC, OTHER, OTHER, operation=2)),
    "ARP reply to one guest": sent(inner_arp(MAC, OTHER, OTHER, operation=2), to=OTHER_MAC),
    "ARP cut off in the address": sent({**FORGED_ARP, "payload": FORGED_ARP["payload"][:17]}),
    "ARP of the host": sent(inner_arp(MAC, HOST, OTHER)),
    "ARP in a VLAN": sent(FORGED_ARP, tags=[(0x8100, 5)]),
    "ARP asking whether another's is free": sent(inner_arp(MAC, NOBODY, OTHER)),
    "ARP reply of nobody": sent(inner_arp(MAC, NOBODY, OWN, operation=2)),
    "IPv4": sent(FORGED),
    "IPv4 to one guest": sent(FORGED, to=OTHER_MAC),
    "IPv4 to a group": sent(FORGED, to="01:00:5e:00:00:01"),
    "IPv4 beside the network": sent(inner4(HELLO, "10.3.0.0")),
    "IPv4 TCP": sent(inner4(bytes(20), OTHER, protocol=6)),
    "IPv4 fragment": sent(inner4(HELLO, OTHER, fragment=0x2000)),
    "IPv4 later fragment": sent(inner4(HELLO, OTHER, fragment=8)),
    "IPv4 in a VLAN": sent(FORGED, tags=[(0x8100, 5)]),
    "IPv4 in no VLAN": sent(FORGED, tags=[(0x8100, 0)]),
    "IPv4 in a provider's VLAN": sent(FORGED, tags=[(0x88A8, 5)]),
    "DHCP discover from another": sent(inner4(DISCOVER, OTHER)),
    "IPv6": sent(inner6(HELLO, OTHER6, UDP)),
    "IPv6 to one guest": sent(inner6(HELLO, OTHER6, UDP), to=OTHER_MAC),
    "IPv6 in a VLAN": sent(inner6(HELLO, OTHER6, UDP), tags=[(0x8100, 5)]),
    "IPv6 later fragment": sent(inner6(fragment(UDP, 64, DATA, more=False), OTHER6, FRAGMENT)),
    "IPv6 after options": sent(inner6(extension(UDP) + HELLO, OTHER6, DESTINATION)),
    "IPv6 link-local": sent(inner6(HELLO, "fe80::1", UDP)),
    "neighbour advertisement": sent(inner6(neighbour(NA, OTHER6, 0x20000000))),
    "neighbour advertisement of the host": sent(inner6(neighbour(NA, HOST6), OWN6)),
    "neighbour advertisement in a VLAN": sent(inner6(neighbour(NA, OTHER6)), tags=[(0x8100, 5)]),
    "neighbour advertisement after options": sent(
        inner6(extension(ICMPV6) + neighbour(NA, OTHER6), OWN6, DESTINATION)
    ),
    "neighbour advertisement, its target in another fragment": sent(
        inner6(fragment(ICMPV6, 0, icmpv6(NA, bytes(4)), more=True), OWN6, FRAGMENT)
    ),
    "neighbour solicitation": sent(inner6(neighbour(NS, OWN6), OTHER6)),
    "asking whether another's is free": sent(inner6(neighbour(NS, OTHER6), "::")),
}
HONEST_ARP = {
    "ARP": sent(inner_arp(MAC, OWN, OTHER)),
    "ARP reply": sent(inner_arp(MAC, OWN, OTHER, operation=2), to=OTHER_MAC),
    "ARP asking whether it is free": sent(inner_arp(MAC, NOBODY, OWN)),
    "ARP in a VLAN": sent(inner_arp(MAC, OWN, OTHER), tags=[(0x8100, 5)]),
}
DHCP = {
    "DHCP discover": sent(inner4(DISCOVER, NOBODY)),
    "DHCP request to one": sent(inner4(DISCOVER, NOBODY), to=OTHER_MAC),
}
LINK_LOCAL_IPV6 = {
    "IPv6 link-local": sent(inner6(HELLO, LINK_LOCAL, UDP)),
    "DHCPv6 solicit": sent(inner6(udp(546, 547), LINK_LOCAL, UDP)),
    "router solicitation": sent(inner6(icmpv6(RS))),
    "router solicitation of nobody": sent(inner6(icmpv6(RS), "::")),
    "MLD report": sent(inner6(extension(ICMPV6) + icmpv6(MLD2), LINK_LOCAL, HOP_BY_HOP)),
    "MLD report of nobody": sent(inner6(extension(ICMPV6) + icmpv6(MLD2), "::", HOP_BY_HOP)),
    "asking whether link-local is free": sent(inner6(neighbour(NS, LINK_LOCAL), "::")),
    "neighbour solicitation": sent(inner6(neighbour(NS, OTHER6))),
    "neighbour advertisement of link-local": sent(inner6(neighbour(NA, LINK_LOCAL))),
}
HONEST_IPV4 = {
    "IPv4": sent(HONEST),
    "IPv4 to one guest": sent(HONEST, to=OTHER_MAC),
    "IPv4 TCP": sent(inner4(bytes(20) + DATA, protocol=6)),
    "IPv4 first fragment": sent(inner4(HELLO, fragment=0x2000)),
    "IPv4 later fragment": sent(inner4(OFFER, fragment=8)),  # its data look like a header
    "IPv4 in a VLAN": sent(HONEST, tags=[(0x8100, 5)]),
    "DHCP request with an address": sent(inner4(DISCOVER)),
}
HONEST_IPV6 = {
    "IPv6": sent(inner6(HELLO, OWN6, UDP)),
    "IPv6 to one guest": sent(inner6(HELLO, OWN6, UDP), to=OTHER_MAC),
    "IPv6 TCP": sent(inner6(bytes(20) + DATA, OWN6, 6)),
    "IPv6 after options": sent(inner6(extension(UDP) + HELLO, OWN6, HOP_BY_HOP)),
    "IPv6 first fragment": sent(inner6(fragment(UDP, 0, HELLO, more=True), OWN6, FRAGMENT)),
    "IPv6 later fragment": sent(inner6(fragment(UDP, 64, ADVERTISE, more=False), OWN6, FRAGMENT)),
    "IPv6 later fragment of options": sent(
        inner6(fragment(DESTINATION, 64, DATA, more=False), OWN6, FRAGMENT)
    ),
    "echo, a later fragment": sent(inner6(fragment(ICMPV6, 64, DATA, more=False), OWN6, FRAGMENT)),
    "echo": sent(inner6(icmpv6(ECHO), OWN6)),
    "echo, the first fragment": sent(
        inner6(fragment(ICMPV6, 0, icmpv6(ECHO, bytes(12)), more=True), OWN6, FRAGMENT)
    ),
    "asking whether its own is free": sent(inner6(neighbour(NS, OWN6), "::")),
    "neighbour advertisement": sent(inner6(neighbour(NA, OWN6, 0x20000000), OWN6)),
    "neighbour advertisement from link-local": sent(inner6(neighbour(NA, OWN6))),
}
OF_THE_NETWORK = {
    "IPv4 of the network": sent(inner4(HELLO, "10.2.255.255")),
    "ARP of the network": sent(inner_arp(MAC, "10.2.0.0", OTHER)),
}
