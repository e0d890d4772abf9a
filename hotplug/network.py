"""What handlers of network cards need from the outside, as protocols: links and the firewall.

Like ``ports.py``, for the other half of the kernel. The real ones are ``kernel/links.py`` and
``kernel/firewall.py``; every operation raises OSError with the link's name when the system
refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hotplug.ports import Deadline

PORT_MAC = "fe:ff:ff:ff:ff:ff"  # of every backend: a bridge takes the lowest of its ports' MACs


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel described it."""

    index: int  # it outlives a rename
    name: str
    kind: str  # IFLA_INFO_KIND, e.g. "bridge"; "" for a device without one, as vifs are
    mac: str  # lowercase, with colons; "" if it has none
    mtu: int
    up: bool  # IFF_UP
    master: int  # the index of the bridge that it is a port of; 0: none
    master_kind: str = ""  # IFLA_INFO_SLAVE_KIND, e.g. "openvswitch"
    group_learning: bool = False  # a bridge's: it learns who sends to its own group addresses too


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different about a link, in one request; None leaves it as it is."""

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    master: int | None = None  # 0 releases it
    up: bool | None = None
    group_learning: bool | None = None  # of a bridge


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link."""

    text: str  # without its prefix length
    prefix: int
    primary: bool  # not IFA_F_SECONDARY


@dataclass(frozen=True, slots=True)
class Route:
    """A route over a link, in the main table."""

    destination: str  # "10.0.0.2/32", "2001:db8::2/128"
    metric: int = 0
    source: str = ""  # the preferred source address, "" for none


@dataclass(frozen=True, slots=True)
class Vlan:
    """One VLAN of a bridge's port, or a row of them."""

    first: int  # 1..4094
    last: int  # the same if it is one
    pvid: bool = False  # what comes untagged is in this one
    untagged: bool = False  # it leaves without a tag


class Links(Protocol):
    """Network interfaces, their addresses and routes, in our network namespace."""

    def find(self, name: str) -> Link | None: ...

    def find_all(self, names: Sequence[str]) -> list[Link | None]:
        """Several at the same time, with one request. What can be no name is no link's."""
        ...

    def wait_for(self, name: str, deadline: Deadline) -> Link:
        """A link that may be yet to come; DeadlineError, or OSError ENODEV after some seconds."""
        ...

    def get(self, index: int) -> Link | None: ...

    def bridges(self) -> Sequence[Link]: ...

    def change(self, link: Link, change: Change) -> None:
        """One request; if it fails, part of it may be done."""
        ...

    def addresses(self, link: Link) -> Sequence[Address]: ...

    def flush_addresses(self, link: Link) -> None: ...

    def add_address(self, link: Link, address: str, prefix: int) -> None:
        """An address that is there already is fine."""
        ...

    def routes(self, link: Link) -> Sequence[Route]: ...

    def replace_route(self, link: Link, route: Route) -> None: ...

    def delete_route(self, link: Link, route: Route) -> None:
        """A route that is not there is fine."""
        ...

    def add_neighbour(self, link: Link, address: str, mac: str) -> None:
        """A permanent entry."""
        ...

    def proxy_neighbour(self, link: Link, address: str) -> None:
        """Answer for this IPv6 address on this link, where its setting proxy_ndp is on."""
        ...

    def unproxy_neighbour(self, link: Link, address: str) -> None:
        """An entry that is not there is fine."""
        ...

    def proxy_arp(self, link: Link) -> None:
        """Answer for other hosts on this link: net.ipv4.conf.LINK.proxy_arp."""
        ...

    def set_vlans(self, port: Link, bridge: Link, vlans: Sequence[Vlan]) -> None:
        """Exactly these VLANs on a bridge's port, in ascending order.

        OSError EOPNOTSUPP, with the bridge's name, if it or the kernel does not know VLANs.
        """
        ...


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a guest may send as: everything else of it is dropped."""

    mac: str
    addresses: tuple[str, ...] = ()  # "10.0.0.2", "10.1.0.0/16", "2001:db8::2"; () any address
    routed: bool = False  # the vif is no bridge's port: this host forwards its packets


class Firewall(Protocol):
    """Filters of guests' packets. Nobody else's tables and rules are touched."""

    def guard(self, link: str, allowance: Allowance) -> None:
        """Let a link send only this, from now on; in the place of what it was allowed before."""
        ...

    def keeps(self, link: str, allowance: Allowance) -> bool:
        """Whether a link still is guarded as it was told, as far as others' doings can be seen."""
        ...

    def unguard(self, link: str) -> None:
        """Forget a link, guarded or not."""
        ...

    @property
    def port(self) -> int:
        """As whose the kernel tells everybody what we changed; 0 before the first."""
        ...

    def guarded(self) -> Sequence[str]:
        """Names of the links that are guarded."""
        ...

    def forwards(self, link: str) -> bool:
        """Whether iptables sees what goes over the bridge of this port."""
        ...

    def accept(self, link: str, words: Sequence[str], deadline: Deadline) -> None:
        """The stock scripts' rules in iptables' FORWARD, where it sees the link's packets."""
        ...

    def unaccept(self, link: str, deadline: Deadline) -> None:
        """Remove all of these that are a link's, however many, if it is a port or not any more."""
        ...

    def forget_connections(self, addresses: Sequence[str]) -> None:
        """Drop what conntrack knows of these addresses: another guest had them before."""
        ...


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A port that Open vSwitch is to have, and what is to be said about it."""

    name: str  # of the link
    bridge: str
    tag: int | None = None  # the VLAN of an access port
    trunks: tuple[int, ...] = ()  # the VLANs of a trunk port, () all of them
    external_ids: Mapping[str, str] = field(default_factory=dict)


class Switch(Protocol):
    """Open vSwitch."""

    def add_port(self, port: SwitchPort, deadline: Deadline) -> None:
        """Have this port, and no other of its name, and wait until it works.

        OSError if it comes to nothing; the port may be there even so.
        """
        ...

    def delete_port(self, name: str, mac: str = "") -> None:
        """Forget a port that was added for this MAC, or for any; it takes some seconds at most.

        One that is not there is fine. One that nobody added for a guest is left alone.
        """
        ...
