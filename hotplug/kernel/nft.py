"""nf_tables: expressions, rules, sets and chains as the kernel is told of them.

Encoded here rather than by pyroute2 (0.9.7): its NFTSocket brings an event loop and a thread,
takes 0.2 s to import, describes each message by dictionaries, and cannot tell which message of a
transaction was refused. What we need of nf_tables is in this module.

- An expression that cannot read its field (a header is cut off, or is in another fragment) ends
  its rule as if it did not match. So what may pass is written as rules that accept.
- Since 5.16 (commit cf6b5ffdce5a) there is no transport header in later fragments; before, what
  is read there are data.
- The transport protocol is known only for a packet whose headers are whole; in IPv6 it is what
  comes after all extension headers (nft_set_pktinfo_ipv6_validate).
- The kernel ignores the type of a set's keys; nft(8) needs it to list the set.
- An anonymous set belongs to one rule and goes with it.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING

from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import attribute, nested, string
from hotplug.kernel.nfnetlink import NLM_F_CREATE, Message, be32

if TYPE_CHECKING:
    from collections.abc import Sequence

    Range = tuple[bytes, bytes]  # first and last, in network byte order

NLM_F_EXCL = 0x200
NLM_F_APPEND = 0x800
IFNAMSIZ = 16
# nft's numbers of types
TYPE_IPV4_ADDR = 7
TYPE_IPV6_ADDR = 8
TYPE_IFNAME = 41
HOST_ENDIAN = struct.pack("=BBI", 0, 4, 1)  # for nft(8): how it is to show a set's keys
ANONYMOUS = "__set%d"  # the kernel puts in a number


def _expression(name: str, data: bytes) -> bytes:
    inner = string(abi.NFTA_EXPR_NAME, name) + nested(abi.NFTA_EXPR_DATA, data)
    return nested(abi.NFTA_LIST_ELEM, inner)


def _value(type_: int, data: bytes) -> bytes:
    return nested(type_, attribute(abi.NFTA_DATA_VALUE, data))


def _verdict(type_: int, code: int, chain: str = "") -> bytes:
    inner = be32(abi.NFTA_VERDICT_CODE, code)
    if chain:
        inner += string(abi.NFTA_VERDICT_CHAIN, chain)
    return nested(type_, nested(abi.NFTA_DATA_VERDICT, inner))


def meta(key: int) -> bytes:
    data = be32(abi.NFTA_META_KEY, key) + be32(abi.NFTA_META_DREG, abi.NFT_REG_1)
    return _expression("meta", data)


def payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        be32(abi.NFTA_PAYLOAD_DREG, abi.NFT_REG_1)
        + be32(abi.NFTA_PAYLOAD_BASE, base)
        + be32(abi.NFTA_PAYLOAD_OFFSET, offset)
        + be32(abi.NFTA_PAYLOAD_LEN, length),
    )


def extension(header: int, offset: int, length: int) -> bytes:
    """Of an IPv6 extension header."""
    return _expression(
        "exthdr",
        be32(abi.NFTA_EXTHDR_DREG, abi.NFT_REG_1)
        + attribute(abi.NFTA_EXTHDR_TYPE, bytes([header]))
        + be32(abi.NFTA_EXTHDR_OFFSET, offset)
        + be32(abi.NFTA_EXTHDR_LEN, length),
    )


def masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        be32(abi.NFTA_BITWISE_SREG, abi.NFT_REG_1)
        + be32(abi.NFTA_BITWISE_DREG, abi.NFT_REG_1)
        + be32(abi.NFTA_BITWISE_LEN, len(mask))
        + _value(abi.NFTA_BITWISE_MASK, mask)
        + _value(abi.NFTA_BITWISE_XOR, bytes(len(mask))),
    )


def compare(operation: int, data: bytes) -> bytes:
    return _expression(
        "cmp",
        be32(abi.NFTA_CMP_SREG, abi.NFT_REG_1)
        + be32(abi.NFTA_CMP_OP, operation)
        + _value(abi.NFTA_CMP_DATA, data),
    )


def equal(data: bytes) -> bytes:
    return compare(abi.NFT_CMP_EQ, data)


def differs(*data: bytes) -> bytes:
    """From each of these."""
    return b"".join(compare(abi.NFT_CMP_NEQ, one) for one in data)


def at_least(data: bytes) -> bytes:
    return compare(abi.NFT_CMP_GTE, data)


def at_most(data: bytes) -> bytes:
    return compare(abi.NFT_CMP_LTE, data)


def lookup(set_: str, identity: int = 0, *, inverted: bool = False, mapped: bool = False) -> bytes:
    """In a set; in a map, the verdict that is found there counts."""
    data = string(abi.NFTA_LOOKUP_SET, set_) + be32(abi.NFTA_LOOKUP_SREG, abi.NFT_REG_1)
    if mapped:
        data += be32(abi.NFTA_LOOKUP_DREG, abi.NFT_REG_VERDICT)
    if identity:
        data += be32(abi.NFTA_LOOKUP_SET_ID, identity)
    if inverted:
        data += be32(abi.NFTA_LOOKUP_FLAGS, abi.NFT_LOOKUP_F_INV)
    return _expression("lookup", data)


def verdict(code: int) -> bytes:
    data = be32(abi.NFTA_IMMEDIATE_DREG, abi.NFT_REG_VERDICT)
    return _expression("immediate", data + _verdict(abi.NFTA_IMMEDIATE_DATA, code))


ACCEPT = verdict(abi.NF_ACCEPT)
DROP = verdict(abi.NF_DROP)


class Table:
    """Messages about one table of one family."""

    __slots__ = ("_sets", "family", "name")

    def __init__(self, family: int, name: str) -> None:
        self.family = family
        self.name = name
        self._sets = itertools.count(1)

    def message(self, kind: int, body: bytes, flags: int = 0) -> Message:
        return Message(abi.NFNL_SUBSYS_NFTABLES, kind, self.family, body, flags)

    def whole(self, kind: int, flags: int = 0) -> Message:
        """A message about the table itself."""
        return self.message(kind, string(abi.NFTA_TABLE_NAME, self.name), flags)

    def make(self) -> Message:
        return self.whole(abi.NFT_MSG_NEWTABLE, NLM_F_CREATE)

    def chain(self, kind: int, name: str, more: bytes = b"", flags: int = 0) -> Message:
        body = string(abi.NFTA_CHAIN_TABLE, self.name) + string(abi.NFTA_CHAIN_NAME, name)
        return self.message(kind, body + more, flags)

    def make_chain(self, name: str) -> Message:
        return self.chain(abi.NFT_MSG_NEWCHAIN, name, flags=NLM_F_CREATE | NLM_F_EXCL)

    def make_hook(self, name: str, hook: int, priority: int) -> Message:
        """A chain that packets come to by themselves."""
        place = be32(abi.NFTA_HOOK_HOOKNUM, hook) + be32(abi.NFTA_HOOK_PRIORITY, priority)
        more = nested(abi.NFTA_CHAIN_HOOK, place) + string(abi.NFTA_CHAIN_TYPE, "filter")
        return self.chain(abi.NFT_MSG_NEWCHAIN, name, more, NLM_F_CREATE | NLM_F_EXCL)

    def flush(self, chain: str) -> Message:
        return self.message(abi.NFT_MSG_DELRULE, self._of_rules(chain))

    def rule(self, chain: str, *expressions: bytes) -> Message:
        body = self._of_rules(chain) + nested(abi.NFTA_RULE_EXPRESSIONS, b"".join(expressions))
        return self.message(abi.NFT_MSG_NEWRULE, body, NLM_F_CREATE | NLM_F_APPEND)

    def _of_rules(self, chain: str) -> bytes:
        return string(abi.NFTA_RULE_TABLE, self.name) + string(abi.NFTA_RULE_CHAIN, chain)

    def set(self, kind: int, name: str, flags: int = 0) -> Message:
        body = string(abi.NFTA_SET_TABLE, self.name) + string(abi.NFTA_SET_NAME, name)
        return self.message(kind, body, flags)

    def make_set(self, name: str, *, of_verdicts: bool = False) -> Message:
        """Of names of interfaces; or a map from them to what becomes of their packets."""
        body = (
            string(abi.NFTA_SET_TABLE, self.name)
            + string(abi.NFTA_SET_NAME, name)
            + be32(abi.NFTA_SET_FLAGS, abi.NFT_SET_MAP if of_verdicts else 0)
            + be32(abi.NFTA_SET_KEY_TYPE, TYPE_IFNAME)
            + be32(abi.NFTA_SET_KEY_LEN, IFNAMSIZ)
            + (be32(abi.NFTA_SET_DATA_TYPE, abi.NFT_DATA_VERDICT) if of_verdicts else b"")
            + be32(abi.NFTA_SET_ID, next(self._sets))
            + attribute(abi.NFTA_SET_USERDATA, HOST_ENDIAN)
        )
        return self.message(abi.NFT_MSG_NEWSET, body, NLM_F_CREATE)

    def put(self, set_: str, link: str) -> Message:
        return self._elements(abi.NFT_MSG_NEWSETELEM, set_, [interface(link)], NLM_F_CREATE)

    def put_jump(self, map_: str, link: str, chain: str) -> Message:
        inner = interface(link) + _verdict(abi.NFTA_SET_ELEM_DATA, abi.NFT_JUMP, chain)
        return self._elements(abi.NFT_MSG_NEWSETELEM, map_, [inner], NLM_F_CREATE)

    def put_drop(self, map_: str, link: str) -> Message:
        inner = interface(link) + _verdict(abi.NFTA_SET_ELEM_DATA, abi.NF_DROP)
        return self._elements(abi.NFT_MSG_NEWSETELEM, map_, [inner], NLM_F_CREATE)

    def take(self, set_: str, link: str) -> Message:
        """Out of a set or a map."""
        return self._elements(abi.NFT_MSG_DELSETELEM, set_, [interface(link)])

    def elements(self, set_: str, link: str = "") -> Message:
        """To ask for that of one link, or to list all."""
        inner = [interface(link)] if link else []
        return self._elements(abi.NFT_MSG_GETSETELEM, set_, inner)

    def _elements(
        self, kind: int, set_: str, inner: Sequence[bytes], flags: int = 0, identity: int = 0
    ) -> Message:
        body = string(abi.NFTA_SET_ELEM_LIST_TABLE, self.name)
        body += string(abi.NFTA_SET_ELEM_LIST_SET, set_)
        if identity:
            body += be32(abi.NFTA_SET_ELEM_LIST_SET_ID, identity)
        if inner:
            elements = b"".join(nested(abi.NFTA_LIST_ELEM, element) for element in inner)
            body += nested(abi.NFTA_SET_ELEM_LIST_ELEMENTS, elements)
        return self.message(kind, body, flags)

    def ranges(self, ranges: Sequence[Range]) -> tuple[list[Message], int]:
        """An anonymous set of addresses and its identity, for one rule that comes after it.

        ``ranges`` are in order, do not touch, are all of one kind, and are some.
        """
        identity = next(self._sets)
        length = len(ranges[0][0])
        body = (
            string(abi.NFTA_SET_TABLE, self.name)
            + string(abi.NFTA_SET_NAME, ANONYMOUS)
            + be32(
                abi.NFTA_SET_FLAGS,
                abi.NFT_SET_ANONYMOUS | abi.NFT_SET_CONSTANT | abi.NFT_SET_INTERVAL,
            )
            + be32(abi.NFTA_SET_KEY_TYPE, TYPE_IPV4_ADDR if length == 4 else TYPE_IPV6_ADDR)
            + be32(abi.NFTA_SET_KEY_LEN, length)
            + be32(abi.NFTA_SET_ID, identity)
        )
        made = self.message(abi.NFT_MSG_NEWSET, body, NLM_F_CREATE)
        inner = [element for range_ in ranges for element in bounds(*range_)]
        filled = self._elements(abi.NFT_MSG_NEWSETELEM, ANONYMOUS, inner, NLM_F_CREATE, identity)
        return [made, filled], identity


def interface(link: str) -> bytes:
    return _value(abi.NFTA_SET_ELEM_KEY, os.fsencode(link).ljust(IFNAMSIZ, b"\0"))


def bounds(first: bytes, last: bytes) -> list[bytes]:
    """A range as elements: where it begins and what comes after it, unless nothing does."""
    elements = [_value(abi.NFTA_SET_ELEM_KEY, first)]
    after = int.from_bytes(last, "big") + 1
    if after >> 8 * len(last) == 0:
        key = _value(abi.NFTA_SET_ELEM_KEY, after.to_bytes(len(last), "big"))
        elements.append(key + be32(abi.NFTA_SET_ELEM_FLAGS, abi.NFT_SET_ELEM_INTERVAL_END))
    return elements
