"""Network interfaces, their addresses and routes, of the network namespace that we run in.

True in the kernel and not obvious (net/core/rtnetlink.c, do_setlink):

- One RTM_NEWLINK may change everything about a link. The kernel goes through it in a fixed order:
  address, MTU, name, master, flags. If one is refused, those before it are done.
- A link can be renamed only while it is down (EBUSY; since 6.2, commit bd039b5ea2a9, also up).
- A bridge takes the lowest MAC of its ports as its own, unless it was given one: hence the MAC of
  all backends, which is as high as a unicast one can be.
- A bridge learns the senders of frames to its own group addresses (01:80:c2:00:00:0X) before any
  hook of netfilter's sees them (br_handle_frame, net/bridge/br_input.c), unless it was told not to
  (no_linklocal_learn, Linux 5.0, commit 70e4272b4c81).
- IPv4 addresses outlive a link that goes down, IPv6 ones do not by default.
- To become the port that a link is already is no change, and no error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from hotplug.kernel import bridge_vlan, link_messages
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.rtnetlink_request import Request
from hotplug.network import Address, Change, Link, Route

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from socket import socket

    from hotplug.kernel.rtnetlink import Rtnetlink
    from hotplug.kernel.rtnetlink_request import Answer
    from hotplug.network import Vlan
    from hotplug.ports import Deadline

APPEAR = 10.0  # seconds for the backend driver to make its link, as libxl waits for the driver
SLICE = 0.5  # seconds between two looks at the deadline
NAME_SIZE = 15  # bytes; IFNAMSIZ less the NUL
DEFAULT = {rt.AF_INET: "0.0.0.0", rt.AF_INET6: "::"}  # noqa: S104 - where the kernel has no RTA_DST
NOT_THERE = (errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.EADDRNOTAVAIL)


class KernelLinks:
    """The links of this network namespace. For several threads."""

    __slots__ = ("_channel", "_mutex")

    def __init__(self) -> None:
        self._channel: Rtnetlink | None = None
        self._mutex = threading.Lock()

    @property
    def _kernel(self) -> Rtnetlink:
        with self._mutex:
            if self._channel is None:
                from hotplug.kernel.rtnetlink import Rtnetlink  # noqa: PLC0415 - disks have no links

                self._channel = Rtnetlink()
            return self._channel

    def find(self, name: str) -> Link | None:
        (found,) = self.find_all((name,))
        return found

    def find_all(self, names: Sequence[str]) -> list[Link | None]:
        possible = [name for name in names if 0 < len(os.fsencode(name)) <= NAME_SIZE]
        found = self._ask([link_messages.wanted(name=name) for name in possible])
        of_names = dict(zip(possible, found, strict=True))
        return [of_names.get(name) for name in names]

    def get(self, index: int) -> Link | None:
        (found,) = self._ask([link_messages.wanted(index=index)])
        return found

    def _ask(self, wanted: Sequence[bytes]) -> list[Link | None]:
        requests = [Request(rt.RTM_GETLINK, body) for body in wanted]
        return list(map(described, self._kernel.exchange_all(requests)))

    def wait_for(self, name: str, deadline: Deadline) -> Link:
        """A link that may be yet to come: the kernel tells of each one that it makes or renames."""
        found = self.find(name)
        if found is not None:
            return found
        from hotplug.kernel.rtnetlink import connect  # noqa: PLC0415 - as above

        deadline.stage(f"waiting for the network interface {name}")
        until = time.monotonic() + min(APPEAR, deadline.remaining())
        with connect(rt.RTMGRP_LINK) as news:
            found = self.find(name)  # it may have come before we listened
            while found is None:
                deadline.check()
                left = until - time.monotonic()
                if left <= 0:
                    raise OSError(
                        errno.ENODEV,
                        f"the backend driver did not make it within {APPEAR:g} s",
                        name,
                    )
                if is_news_of(news, name, min(left, SLICE)):
                    found = self.find(name)
        return found

    def bridges(self) -> Sequence[Link]:
        found = self._kernel.dump_raw(rt.RTM_GETLINK, link_messages.wanted_of_kind("bridge"))
        return [link for link in map(link_messages.link, found) if link.kind == "bridge"]

    def change(self, link: Link, change: Change) -> None:
        """One request; if it fails, part of it may be done."""
        with named(link):
            body = link_messages.changed(link.index, change)
            self._kernel.exchange(Request(rt.RTM_NEWLINK, body))

    def addresses(self, link: Link) -> Sequence[Address]:
        return [
            Address(
                message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
                message["prefixlen"],
                not message["flags"] & rt.IFA_F_SECONDARY,
            )
            for message in self._addresses(link)
        ]

    def _addresses(self, link: Link) -> list[Any]:
        with named(link):
            found = self._kernel.dump_raw(rt.RTM_GETADDR, rt.IFADDR.pack(0, 0, 0, 0, link.index))
        mine = [
            data for data in found if rt.IFADDR.unpack_from(data, rt.HEADER.size)[4] == link.index
        ]
        if not mine:
            return []
        from hotplug.kernel.rtnetlink_messages import decode  # noqa: PLC0415 - takes 40 ms

        return list(map(decode, mine))

    def flush_addresses(self, link: Link) -> None:
        for message in self._addresses(link):
            fields = {key: message[key] for key in ("family", "prefixlen", "index")}
            names = ("IFA_LOCAL", "IFA_ADDRESS")
            values = [(name, message.get_attr(name)) for name in names if message.get_attr(name)]
            with named(link, forgive=NOT_THERE):  # secondary ones go with their primary
                self._kernel.ask(rt.RTM_DELADDR, fields, values)

    def add_address(self, link: Link, address: str, prefix: int) -> None:
        fields = {"index": link.index, "family": family(address), "prefixlen": prefix}
        values = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        with named(link):
            self._kernel.ask(rt.RTM_NEWADDR, fields, values, rt.NLM_F_CREATE | rt.NLM_F_REPLACE)

    def routes(self, link: Link) -> Sequence[Route]:
        return [
            Route(
                f"{message.get_attr('RTA_DST') or DEFAULT[number]}/{message['dst_len']}",
                message.get_attr("RTA_PRIORITY") or 0,
                message.get_attr("RTA_PREFSRC") or "",
            )
            for number in (rt.AF_INET, rt.AF_INET6)
            for message in self._routes(link, number)
            if message.get_attr("RTA_OIF") == link.index and message["type"] == rt.RTN_UNICAST
        ]

    def _routes(self, link: Link, number: int) -> list[Any]:
        fields = {"family": number, "table": rt.RT_TABLE_MAIN}
        no_ipv6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
        with named(link, forgive=no_ipv6):
            return self._kernel.dump(rt.RTM_GETROUTE, fields, [("RTA_OIF", link.index)])
        return []

    def replace_route(self, link: Link, route: Route) -> None:
        """A route with the same destination and metric over another link is replaced too."""
        fields, values = route_message(link, route)
        with named(link):
            self._kernel.ask(rt.RTM_NEWROUTE, fields, values, rt.NLM_F_CREATE | rt.NLM_F_REPLACE)

    def delete_route(self, link: Link, route: Route) -> None:
        fields, values = route_message(link, route)
        with named(link, forgive=NOT_THERE):
            self._kernel.ask(rt.RTM_DELROUTE, fields, values)

    def add_neighbour(self, link: Link, address: str, mac: str) -> None:
        fields = {"ifindex": link.index, "family": family(address), "state": rt.NUD_PERMANENT}
        values = [("NDA_DST", address), ("NDA_LLADDR", mac)]
        with named(link):
            self._kernel.ask(rt.RTM_NEWNEIGH, fields, values, rt.NLM_F_CREATE | rt.NLM_F_REPLACE)

    def proxy_neighbour(self, link: Link, address: str) -> None:
        fields, values = proxy_message(link, address)
        with named(link):
            self._kernel.ask(rt.RTM_NEWNEIGH, fields, values, rt.NLM_F_CREATE | rt.NLM_F_REPLACE)

    def unproxy_neighbour(self, link: Link, address: str) -> None:
        fields, values = proxy_message(link, address)
        with named(link, forgive=(*NOT_THERE, errno.ENOENT)):
            self._kernel.ask(rt.RTM_DELNEIGH, fields, values)

    def proxy_arp(self, link: Link) -> None:
        with open(f"/proc/sys/net/ipv4/conf/{link.name}/proxy_arp", "wb", buffering=0) as file:
            file.write(b"1")

    def set_vlans(self, port: Link, bridge: Link, vlans: Sequence[Vlan]) -> None:
        bridge_vlan.refuse_unfiltered(self._kernel, bridge)
        with named(port):
            bridge_vlan.put(self._kernel, port, vlans)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def described(answer: Answer) -> Link | None:
    """The link that was asked for; None if there is none."""
    if answer.error is None:
        return link_messages.link(answer.messages[0])
    if answer.error.errno != errno.ENODEV:
        raise answer.error
    return None


@contextlib.contextmanager
def named(link: Link, forgive: Collection[int] = ()) -> Iterator[None]:
    """What the kernel refuses gets the link's name, unless it is one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno in forgive:
            return
        error.filename = link.name
        raise


def is_news_of(news: socket, name: str, seconds: float) -> bool:
    """Wait for the kernel to tell of a link; whether it may be the one of this name."""
    from hotplug.kernel.rtnetlink import BUFFER, split  # noqa: PLC0415 - as above

    news.settimeout(seconds)
    try:
        data = news.recv(BUFFER)
    except TimeoutError:
        return False
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return True  # some were lost
    return any(
        kind == rt.RTM_NEWLINK and link_messages.link(message).name == name
        for kind, _, _, message in split(data)
    )


def family(address: str) -> int:
    return rt.AF_INET6 if ":" in address else rt.AF_INET


def proxy_message(link: Link, address: str) -> tuple[dict[str, int], list[tuple[str, Any]]]:
    fields = {"ifindex": link.index, "family": family(address), "flags": rt.NTF_PROXY}
    return fields, [("NDA_DST", address)]


def route_message(link: Link, route: Route) -> tuple[dict[str, int], list[tuple[str, Any]]]:
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
