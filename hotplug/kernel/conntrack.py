"""Connections that netfilter tracks: forgetting those of an address.

- Where nothing is tracked, the count says so, or is not there. To ask conntrack itself would load
  its modules.
- The kernel deletes one connection by its tuple. By an IPv4 address it only lists (CTA_FILTER,
  Linux 5.8, commit cb8aa9a3affb). Not by a network; and asked for an IPv6 address, it lists all
  others instead (ctnetlink_filter_match_tuple, still in 6.18). There we choose from all.
- A guest is the source of what it began; or of the answers, which also holds for what came to it
  by a DNAT. Its number (CTA_ID) keeps a connection from being mistaken for a newer one.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import attribute, attributes, nested, u32
from hotplug.kernel.nfnetlink import Message

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable, Iterator

    from hotplug.kernel.nfnetlink import Channel

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
IP_SOURCE = 1  # CTA_FILTER_FLAG(CTA_IP_SRC) of net/netfilter/nf_internals.h
FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6
SOURCES = {4: abi.CTA_IP_V4_SRC, 6: abi.CTA_IP_V6_SRC}
DIRECTIONS = {
    abi.CTA_TUPLE_ORIG: abi.CTA_FILTER_ORIG_FLAGS,
    abi.CTA_TUPLE_REPLY: abi.CTA_FILTER_REPLY_FLAGS,
}


def forget(channel: Channel, addresses: Iterable[str], count: str = COUNT) -> None:
    """Drop the connections of addresses and networks. OSError names the first that it fails for."""
    if not tracking(count):
        return
    import ipaddress  # noqa: PLC0415 - takes 5 ms, and hosts without conntrack do not come here

    for text in addresses:
        network = ipaddress.ip_network(text, strict=False)
        try:
            refused = channel.tell([deletion(network, f) for f in connections(channel, network)])
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return  # tracked, but by a kernel that lets nobody see it (NF_CT_NETLINK)
            raise OSError(error.errno, f"connections of it stay: {error.strerror}", text) from error
        for code in refused - {errno.ENOENT}:  # it ended meanwhile
            raise OSError(code, f"connections of it stay: {os.strerror(code)}", text)


def tracking(count: str) -> bool:
    try:
        with open(count, "rb") as file:
            return file.read().strip() != b"0"
    except FileNotFoundError:
        return False


def connections(channel: Channel, network: Network) -> Iterator[dict[int, bytes]]:
    for filter_ in filters(network):
        for answer in channel.dump(about(network, abi.IPCTNL_MSG_CT_GET, filter_)):
            found = attributes(answer)
            if any(is_from(network, found[direction]) for direction in DIRECTIONS):
                yield found


def filters(network: Network) -> Iterator[bytes]:
    """What the kernel is to list: all of the family, or what it can tell to be of one address."""
    if network.version == 6 or network.num_addresses > 1:
        yield b""
        return
    for direction, flags in DIRECTIONS.items():
        source = attribute(abi.CTA_IP_V4_SRC, network.network_address.packed)
        wanted = nested(direction, nested(abi.CTA_TUPLE_IP, source))
        yield wanted + nested(abi.CTA_FILTER, u32(flags, IP_SOURCE))


def about(network: Network, kind: int, body: bytes) -> Message:
    return Message(abi.NFNL_SUBSYS_CTNETLINK, kind, FAMILIES[network.version], body)


def is_from(network: Network, tuple_: bytes) -> bool:
    """Whether a tuple's source is in a network."""
    source = attributes(attributes(tuple_)[abi.CTA_TUPLE_IP])[SOURCES[network.version]]
    value, mask = int.from_bytes(source, "big"), int(network.netmask)
    return value & mask == int(network.network_address)


def deletion(network: Network, found: dict[int, bytes]) -> Message:
    body = nested(abi.CTA_TUPLE_ORIG, found[abi.CTA_TUPLE_ORIG])
    body += b"".join(attribute(t, found[t]) for t in (abi.CTA_ID, abi.CTA_ZONE) if t in found)
    return about(network, abi.IPCTNL_MSG_CT_DELETE, body)
