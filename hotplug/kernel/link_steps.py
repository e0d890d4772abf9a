"""What may be done to a link, as requests to rtnetlink.

Addresses, neighbours and routes are pyroute2's matter (rtnetlink_messages.py), links are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from hotplug.kernel import link_messages
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.rtnetlink_request import Request
from hotplug.network import Address, Change, Flush, Neighbour, Proxied

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hotplug.kernel.rtnetlink_request import Answer
    from hotplug.network import Link, Route, Step

Message: TypeAlias = tuple[dict[str, int], list[tuple[str, Any]]]  # by pyroute2's names
PUT = rt.NLM_F_CREATE | rt.NLM_F_REPLACE


def request(link: Link, step: Step) -> Request:
    match step:
        case Change():
            return Request(rt.RTM_NEWLINK, link_messages.changed(link.index, step))
        case Flush():
            return addresses_of(link)
        case Address():
            return encoded(rt.RTM_NEWADDR, address_message(link, step), PUT)
        case Neighbour():
            return encoded(rt.RTM_NEWNEIGH, neighbour_message(link, step), PUT)
        case Proxied():
            return encoded(rt.RTM_NEWNEIGH, proxy_message(link, step.address), PUT)
    return encoded(rt.RTM_NEWROUTE, route_message(link, step), PUT)


def encoded(kind: int, message: Message, flags: int = 0) -> Request:
    from hotplug.kernel.rtnetlink_messages import encode  # noqa: PLC0415 - takes 40 ms

    return Request(kind, encode(kind, *message), flags)


def addresses_of(link: Link) -> Request:
    return Request(rt.RTM_GETADDR, rt.IFADDR.pack(0, 0, 0, 0, link.index), rt.NLM_F_DUMP)


def address_message(link: Link, address: Address) -> Message:
    fields = {
        "index": link.index,
        "family": family(address.text),
        "prefixlen": address.prefix,
    }
    return fields, [("IFA_LOCAL", address.text), ("IFA_ADDRESS", address.text)]


def neighbour_message(link: Link, neighbour: Neighbour) -> Message:
    fields = {
        "ifindex": link.index,
        "family": family(neighbour.address),
        "state": rt.NUD_PERMANENT,
    }
    return fields, [("NDA_DST", neighbour.address), ("NDA_LLADDR", neighbour.mac)]


def proxy_message(link: Link, address: str) -> Message:
    fields = {"ifindex": link.index, "family": family(address), "flags": rt.NTF_PROXY}
    return fields, [("NDA_DST", address)]


def route_message(link: Link, route: Route) -> Message:
    address, _, prefix = route.destination.partition("/")
    fields = {
        "family": family(address),
        "dst_len": int(prefix),
        "table": rt.RT_TABLE_MAIN,
        "proto": rt.RTPROT_BOOT,
        "scope": rt.RT_SCOPE_UNIVERSE if ":" in address else rt.RT_SCOPE_LINK,
        "type": rt.RTN_UNICAST,
    }
    values: list[tuple[str, Any]] = [
        ("RTA_DST", address),
        ("RTA_OIF", link.index),
    ]
    if route.metric:
        values.append(("RTA_PRIORITY", route.metric))
    if route.source:
        values.append(("RTA_PREFSRC", route.source))
    return fields, values


def family(address: str) -> int:
    return rt.AF_INET6 if ":" in address else rt.AF_INET


def deletions(
    link: Link, told: Answer, again: Sequence[bytes], steps: Sequence[Step]
) -> list[Request]:
    """Requests to delete the addresses of a link that a Flush among these steps has found."""
    kept = {(step.text, step.prefix) for step in steps if isinstance(step, Address)}
    found = [*told.messages[: told.prompt], *late(told.messages[told.prompt :]), *late(again)]
    requests = []
    for message in decoded(link, found):
        values = [(name, message.get_attr(name)) for name in ("IFA_LOCAL", "IFA_ADDRESS")]
        known = [pair for pair in values if pair[1]]
        # IFA_ADDRESS is the other end's, where that has one of its own, and a route leads there.
        if not all((text, message["prefixlen"]) in kept for _, text in known):
            fields = {key: message[key] for key in ("family", "prefixlen", "index")}
            requests.append(encoded(rt.RTM_DELADDR, (fields, known)))
    return requests


def late(messages: Sequence[bytes]) -> Iterator[bytes]:
    """Of addresses that were told after the steps were taken: without those of IPv6 for the link.

    The kernel makes such a one itself as the link goes up. One of before has gone with the link
    when that went down, unless somebody gave it to the link since.
    """
    for data in messages:
        number, _, _, scope, _ = rt.IFADDR.unpack_from(data, rt.HEADER.size)
        if (number, scope) != (rt.AF_INET6, rt.RT_SCOPE_LINK):
            yield data


def decoded(link: Link, addresses: Sequence[bytes]) -> list[Any]:
    """Those of a link, in pyroute2's terms."""
    mine = [
        data for data in addresses if rt.IFADDR.unpack_from(data, rt.HEADER.size)[4] == link.index
    ]
    if not mine:
        return []
    from hotplug.kernel.rtnetlink_messages import decode  # noqa: PLC0415 - takes 40 ms

    return list(map(decode, mine))
