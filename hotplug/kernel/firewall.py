"""The firewall of this network namespace: guards.py, iptables.py and conntrack.py as one port."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hotplug.kernel import conntrack, nft
from hotplug.kernel.guards import Guards
from hotplug.kernel.iptables import Forward
from hotplug.kernel.nfnetlink import Channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.network import Allowance, Link
    from hotplug.ports import Deadline, Locks, Programs


class KernelFirewall:
    """Filters of guests' packets. For several threads."""

    __slots__ = ("_channel", "_forward", "_guards")

    def __init__(self, programs: Programs, locks: Locks) -> None:
        self._channel = Channel()
        self._guards = Guards(self._channel)
        self._forward = Forward(programs, locks)

    @property
    def port(self) -> int:
        """As whose the kernel tells our changes of nf_tables; 0 before the first."""
        return self._channel.port

    def close(self) -> None:
        """It opens again when it is used, perhaps in another network namespace."""
        self._channel.close()
        self._guards = Guards(self._channel)

    def guard(self, link: str, allowance: Allowance) -> None:
        """Let a link send only this, from now on; in the place of what it was allowed before."""
        self._guards.guard(checked(link), allowance)

    def keeps(self, link: str, allowance: Allowance) -> bool:
        """Whether a link still is guarded as it was told, as far as others' doings can be seen."""
        return self._guards.keeps(checked(link), allowance)

    def unguard(self, link: str, *, unlikely: bool = False) -> None:
        """Forget a link, guarded or not; it costs less if it is ``unlikely`` that it was."""
        self._guards.unguard(checked(link), unlikely=unlikely)

    def guarded(self) -> Sequence[str]:
        """Names of the links that are guarded."""
        return self._guards.guarded()

    def forwards(self, bridge: Link) -> bool:
        """Whether iptables sees what goes over a bridge, or ip6tables."""
        return self._forward.sees(bridge)

    def accept(self, link: str, words: Sequence[str], deadline: Deadline) -> None:
        """The stock scripts' rules in iptables' FORWARD, where they have an effect at all."""
        self._forward.accept(checked(link), words, deadline)

    def unaccept(self, link: str, deadline: Deadline) -> None:
        """Remove all of these that are a link's, however many."""
        self._forward.unaccept(checked(link), deadline)

    def forget_connections(self, addresses: Sequence[str]) -> None:
        """Drop what conntrack knows of these addresses: another guest had them before."""
        conntrack.forget(self._channel, addresses)


def checked(link: str) -> str:
    """The name of a link, which becomes part of rules. OSError if none can have it."""
    length = len(os.fsencode(link))
    if not 0 < length < nft.IFNAMSIZ or any(c in "/:" or c.isspace() or c == "\0" for c in link):
        raise OSError(errno.EINVAL, "no network interface can have this name", link)
    return link
