"""Network interfaces, their addresses and routes, of the network namespace that we run in.

True in the kernel and not obvious (net/core/rtnetlink.c, do_setlink):

- One RTM_NEWLINK may change everything about a link. The kernel goes through it in a fixed order:
  address, MTU, name, master, flags, IPv4's settings. If one is refused, those before it are done.
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

from hotplug.kernel import bridge_vlan, genetlink, link_messages, link_steps
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.rtnetlink_request import Request
from hotplug.network import Address, Flush, Route

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from socket import socket

    from hotplug.kernel.rtnetlink import Rtnetlink
    from hotplug.kernel.rtnetlink_request import Answer
    from hotplug.network import Link, Step, Vlan
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

    def apply(self, link: Link, steps: Sequence[Step]) -> list[OSError | None]:
        with named(link):
            requests = [link_steps.request(link, step) for step in steps]
            answers = self._kernel.exchange_all(requests)
            errors = [answer.error for answer in answers]
            for place, step in enumerate(steps):
                if isinstance(step, Flush) and errors[place] is None:
                    errors[place] = self._flush(link, answers[place], steps)
        for error in errors:
            if error is not None:
                error.filename = link.name
        return errors

    def _flush(self, link: Link, told: Answer, steps: Sequence[Step]) -> OSError | None:
        """Delete the addresses that were told. Secondary ones go with their primary."""
        wanted = told.request
        again = [] if told.whole else self._kernel.dump_raw(wanted.kind, wanted.body)
        requests = link_steps.deletions(link, told, again, steps)
        errors = [answer.error for answer in self._kernel.exchange_all(requests)]
        return next((error for error in errors if error and error.errno not in NOT_THERE), None)

    def change(self, link: Link, *steps: Step) -> None:
        for error in self.apply(link, steps):
            if error is not None:
                raise error

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
        wanted = link_steps.addresses_of(link)
        with named(link):
            return link_steps.decoded(link, self._kernel.dump_raw(wanted.kind, wanted.body))

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

    def delete_route(self, link: Link, route: Route) -> None:
        message = link_steps.route_message(link, route)
        with named(link, forgive=NOT_THERE):
            self._kernel.exchange(link_steps.encoded(rt.RTM_DELROUTE, message))

    def unproxy_neighbour(self, link: Link, address: str) -> None:
        message = link_steps.proxy_message(link, address)
        with named(link, forgive=(*NOT_THERE, errno.ENOENT)):
            self._kernel.exchange(link_steps.encoded(rt.RTM_DELNEIGH, message))

    def set_vlans(self, port: Link, bridge: Link, vlans: Sequence[Vlan]) -> None:
        bridge_vlan.refuse_unfiltered(bridge)
        with named(port):
            for answer in self._kernel.exchange_all(bridge_vlan.requests(port, vlans)):
                if answer.error is not None:
                    raise answer.error

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
    from hotplug.kernel.rtnetlink import split  # noqa: PLC0415 - as above

    news.settimeout(seconds)
    try:
        data = news.recv(genetlink.MAX_ANSWER)
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
