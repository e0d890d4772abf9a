"""What handlers of network cards need from the outside, as protocols: links and the firewall.

Like ``ports.py``, for the other half of the kernel. The real ones are ``kernel/links.py`` and
``kernel/firewall.py``; every operation raises OSError with the link's name when the system
refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

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
    vlan_filtering: bool | None = None  # a bridge's: it heeds VLANs; None if it cannot
    calls_iptables: bool = False  # a bridge's own setting nf_call_iptables, or that of ip6tables


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different about a link; None leaves it as it is.

    If a part of it is refused, another may be done.
    """

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    master: int | None = None  # 0 releases it
    up: bool | None = None
    group_learning: bool | None = None  # of a bridge
    proxy_arp: bool | None = None  # answer for other hosts: net.ipv4.conf.LINK.proxy_arp
    known_as: str | None = None  # ENODEV if it has lost this name meanwhile; not with ``name``


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link. To add one that is there already is fine."""

    text: str  # without its prefix length
    prefix: int
    primary: bool = True  # not IFA_F_SECONDARY; that is for the kernel to say


@dataclass(frozen=True, slots=True)
class Flush:
    """The addresses that a link has, in its turn, are to go; but not what a later step adds."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who has an address on a link: a permanent entry."""

    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class Proxied:
    """Answer for this IPv6 address on a link, where its setting proxy_ndp is on."""

    address: str


@dataclass(frozen=True, slots=True)
class Route:
    """A route over a link, in the main table.

    To add one replaces that of the same destination and metric, over whatever link it leads.
    """

    destination: str  # "10.0.0.2/32", "2001:db8::2/128"
    metric: int = 0
    source: str = ""  # the preferred source address, "" for none


# What may be done to a link. An address, a neighbour, a route is put there.
Step: TypeAlias = Change | Flush | Address | Neighbour | Proxied | Route


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

    def apply(self, link: Link, steps: Sequence[Step]) -> list[OSError | None]:
        """Take steps in this order, at most one Flush among them, with one request.

        All are tried. What is returned is how each was refused, None if it was not.
        """
        ...

    def change(self, link: Link, *steps: Step) -> None:
        """The same; the first refusal is raised."""
        ...

    def addresses(self, link: Link) -> Sequence[Address]: ...

    def routes(self, link: Link) -> Sequence[Route]: ...

    def delete_route(self, link: Link, route: Route) -> None:
        """A route that is not there is fine."""
        ...

    def unproxy_neighbour(self, link: Link, address: str) -> None:
        """An entry that is not there is fine."""
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

    def unguard(self, link: str, *, unlikely: bool = False) -> None:
        """Forget a link, guarded or not; it costs less if it is ``unlikely`` that it was."""
        ...

    @property
    def port(self) -> int:
        """As whose the kernel tells everybody what we changed; 0 before the first."""
        ...

    def guarded(self) -> Sequence[str]:
        """Names of the links that are guarded."""
        ...

    def forwards(self, bridge: Link) -> bool:
        """Whether iptables sees what goes over a bridge, or ip6tables."""
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
