"""Ethernet frames, honest ones and others, packed by hand."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"
ICMPV6 = 58
UDP = 17
DATA = b"what was sent "


def mac_bytes(text):
    return bytes.fromhex(text.replace(":", ""))


def packed(address):
    return ipaddress.ip_address(address).packed


def ethernet(source, type_, payload, to=BROADCAST, tags=()):
    """A frame; ``tags`` are (ethertype, VLAN), the outer one first."""
    inner = b"".join(struct.pack(">HH", *tag) for tag in tags)
    return mac_bytes(to) + mac_bytes(source) + inner + struct.pack(">H", type_) + payload


def arp(sender_mac, sender, target, operation=1, kind="0001 0800 06 04"):
    addresses = mac_bytes(sender_mac) + packed(sender) + bytes(6) + packed(target)
    return bytes.fromhex(kind) + struct.pack(">H", operation) + addresses + DATA


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source, destination, payload, protocol=UDP, fragment=0, options=b""):
    """``fragment``: 0x2000 more follow, and the offset in units of 8 bytes."""
    length = 20 + len(options)
    fields = (0x40 | length // 4, 0, length + len(payload), 7, fragment, 64, protocol)
    addresses = packed(source) + packed(destination) + options
    without = struct.pack(">BBHHHBBxx", *fields) + addresses
    return without[:10] + struct.pack(">H", checksum(without)) + without[12:] + payload


def ipv6(source, destination, payload, following=ICMPV6):
    header = struct.pack(">IHBB", 6 << 28, len(payload), following, 255)
    return header + packed(source) + packed(destination) + payload


def udp(source, destination, data=DATA, between=None):
    """With a checksum if it is told between which addresses."""
    datagram = struct.pack(">HHHH", source, destination, 8 + len(data), 0) + data
    if between is None:
        return datagram
    addresses = b"".join(packed(address) for address in between)
    pseudo = addresses + struct.pack(">II", UDP, len(datagram))  # their sum is the same for IPv4
    total = checksum(pseudo + datagram + bytes(len(data) % 2)) or 0xFFFF
    return datagram[:6] + struct.pack(">H", total) + data


def extension(following, data=bytes(6)):
    """Hop-by-hop or destination options: padding."""
    assert len(data) % 8 == 6
    return bytes([following, len(data) // 8]) + pad_option(data)


def pad_option(data):
    return bytes([1, len(data) - 2]) + data[2:]


def fragment(following, offset, payload, *, more):
    """``offset`` is in bytes."""
    return struct.pack(">BxHI", following, offset | more, 7) + payload


def icmpv6(type_, body=DATA):
    return struct.pack(">BBH", type_, 0, 0) + body


def neighbour(type_, target, flags=0):
    """A solicitation or an advertisement."""
    return icmpv6(type_, struct.pack(">I", flags) + packed(target) + DATA)
