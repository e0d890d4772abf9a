"""Links that are guarded: tables of ours in nf_tables.

- Two tables ``xen_hotplug``. That of the family bridge sees what comes in from a bridge's port,
  before the bridge learns or decides anything; that of the family inet what comes to this host's
  own stack from a link itself. There is one hook in each, and it looks the link's name up in a
  map: no packet and no event costs more because there are other guests.
- A bridge hands frames to its own group address (01:80:c2:00:00:0X) to the stack as the port's,
  past the bridge's hook, IP or not (br_handle_frame, net/bridge/br_input.c). So of a guarded port,
  the table of inet drops everything. With bridge netfilter, what goes over a bridge comes to inet
  as the bridge's.
- What goes *to* guests is not filtered, and other interfaces are not in the map.
- A link is known by its name, as a rule would know it. Who renames it guards the new name first.
- A table goes with its last link. The kernel refuses to delete one with chains in it if it is
  asked to (NLM_F_NONREC), so that no guard of another process is lost.
- ``nft flush ruleset`` deletes our tables too; nothing but a new guard brings them back.
- A kernel without IPv6 has no family inet (NF_TABLES_INET depends on it). Then it is ip.
- Whatever is deleted or refused costs a transaction an RCU grace period, 10 ms. So we look what is
  there, and ask for no more than is needed; if it was changed meanwhile, we look again.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.kernel import antispoof, nfnetlink, nft
from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import attributes
from hotplug.kernel.nft import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.kernel.nfnetlink import Channel, Message
    from hotplug.network import Allowance

TABLE = "xen_hotplug"
MAP = "links"
HOOK = "from_links"
HOOKS = {abi.NFPROTO_BRIDGE: abi.NF_BR_PRE_ROUTING}  # of the others it is NF_INET_PRE_ROUTING
PRIORITY = -450  # before fragments are put together (-400) and connections are tracked (-200)
USE = 2  # what a table has without links: the map and the hook
LAYER3 = (abi.NFPROTO_INET, abi.NFPROTO_IPV4)  # the second if the kernel has not the first
ATTEMPTS = 10  # of a transaction that others come in the way of
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
MEANWHILE = (*(errno.EAGAIN, errno.EINTR, errno.ERESTART), errno.EBUSY, errno.EEXIST, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Found:
    """What is there of a link in a table."""

    hooked: int  # rules of the hook; -1 if there is none
    mapped: bool
    chained: bool


class Guards:
    """The guarded links of a network namespace. For several threads."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def guard(self, link: str, allowance: Allowance) -> None:
        """Let a link send only this, from now on; in the place of what it was allowed before."""
        for layer3 in LAYER3:
            lacking = self._install(link, allowance, layer3)
            if lacking is None:
                break
            if lacking != layer3 or layer3 == LAYER3[-1]:
                raise unsupported(link, lacking)
        if allowance.routed:
            self._remove(link, (abi.NFPROTO_BRIDGE,))  # of a port that had this name before

    def unguard(self, link: str) -> None:
        """Forget a link, guarded or not."""
        self._remove(link, (abi.NFPROTO_BRIDGE, *LAYER3))

    def guarded(self) -> list[str]:
        names: set[str] = set()
        for family in LAYER3:
            listing = Table(family, TABLE).elements(MAP, nfnetlink.NLM_F_DUMP)
            names.update(name for answer in self._get(listing) for name in names_in(answer))
        return sorted(names)

    def _install(self, link: str, allowance: Allowance, layer3: int) -> int | None:
        """None if it is done; the family that the kernel does not have; OSError."""
        for _ in range(ATTEMPTS):
            messages = []
            for table, rules in wanted(link, allowance, layer3):
                messages += guarding(table, link, self._look(table, link), rules)
            refused = self._commit(link, messages)
            if not refused:
                return None
            for index, code in refused.items():
                if code in UNSUPPORTED:
                    return messages[index].family
        raise crowded(link)

    def _remove(self, link: str, families: Sequence[int]) -> None:
        """Take a link out of these tables, and the tables away that are empty then."""
        for _ in range(ATTEMPTS):
            tables = [Table(family, TABLE) for family in families]
            messages = [m for t in tables for m in forgetting(t, link, self._look(t, link))]
            if not messages:
                return
            if not self._commit(link, messages):
                for family in {message.family for message in messages}:
                    self._clear(Table(family, TABLE))
                return
        raise crowded(link)

    def _commit(self, link: str, messages: Sequence[Message]) -> dict[int, int]:
        """What was refused because somebody was faster, or the kernel cannot; OSError for more."""
        try:
            refused = self._channel.commit(messages)
        except OSError as error:
            refused = {0: error.errno or errno.EIO}
        for code in refused.values():
            if code not in (*MEANWHILE, *UNSUPPORTED):
                raise refusal(link, code)
        return refused

    def _look(self, table: Table, link: str) -> Found:
        hook = self._get(table.chain(abi.NFT_MSG_GETCHAIN, HOOK))
        return Found(
            hooked=number(hook[0], abi.NFTA_CHAIN_USE) if hook else -1,
            mapped=bool(self._get(table.elements(MAP, 0, link))),
            chained=bool(self._get(table.chain(abi.NFT_MSG_GETCHAIN, chain(link)))),
        )

    def _get(self, message: Message) -> list[bytes]:
        """What is there, nothing if it is not."""
        try:
            return self._channel.ask(message)
        except OSError as error:
            if error.errno in (errno.ENOENT, *UNSUPPORTED):
                return []
            raise OSError(error.errno, f"cannot be read: {error.strerror}", TABLE) from error

    def _clear(self, table: Table) -> None:
        """Delete a table that has no links any more; only that."""
        found = self._get(table.whole(abi.NFT_MSG_GETTABLE))
        if not found or number(found[0], abi.NFTA_TABLE_USE) > USE:
            return
        only = nfnetlink.NLM_F_NONREC
        # If it is refused, somebody guards a link just now, or was faster: it is their table then.
        self._channel.commit(
            [
                table.flush(HOOK),
                table.chain(abi.NFT_MSG_DELCHAIN, HOOK),
                table.set(abi.NFT_MSG_DELSET, MAP, only),
                table.whole(abi.NFT_MSG_DELTABLE, only),
            ]
        )


def refusal(link: str, code: int) -> OSError:
    return OSError(code, f"nf_tables refuses to change its filter: {os.strerror(code)}", link)


def crowded(link: str) -> OSError:
    text = f"nf_tables refuses to change its filter: others were faster {ATTEMPTS} times"
    return OSError(errno.EBUSY, text, link)


def unsupported(link: str, family: int) -> OSError:
    missing = "nf_tables with its family bridge" if family in HOOKS else "nf_tables"
    text = (
        f"the kernel has no packet filter ({missing}), so that the guest cannot be kept from"
        " forging its addresses; load or build it, or allow that by the setting antispoof"
    )
    return OSError(errno.EOPNOTSUPP, text, link)


def chain(link: str) -> str:
    return f"link-{link}"  # nft's names begin with a letter, and HOOK could be a link's name


def wanted(link: str, allowance: Allowance, layer3: int) -> list[tuple[Table, list[Message]]]:
    """The tables that a link must be in, with the rules of its chain in each."""
    stack = Table(layer3, TABLE)
    if allowance.routed:
        return [(stack, antispoof.fill(stack, chain(link), allowance))]
    bridge = Table(abi.NFPROTO_BRIDGE, TABLE)
    return [
        (bridge, antispoof.fill(bridge, chain(link), allowance)),
        (stack, [stack.rule(chain(link), nft.DROP)]),
    ]


def guarding(table: Table, link: str, found: Found, rules: Sequence[Message]) -> list[Message]:
    """What makes a link's chain these rules, in a table as it was found."""
    messages = []
    if found.hooked < 0:
        hook = HOOKS.get(table.family, abi.NF_INET_PRE_ROUTING)
        messages += [table.make(), table.make_map(MAP), table.make_hook(HOOK, hook, PRIORITY)]
    if found.hooked <= 0:
        links = nft.meta(abi.NFT_META_IIFNAME) + nft.lookup(MAP, mapped=True)
        messages.append(table.rule(HOOK, links))
    if found.mapped:
        messages.append(table.unmap(MAP, link))
    messages.append(table.make_chain(chain(link)))
    if found.chained:
        messages.append(table.flush(chain(link)))
    return [*messages, *rules, table.map_jump(MAP, link, chain(link))]


def forgetting(table: Table, link: str, found: Found) -> list[Message]:
    messages = []
    if found.mapped:
        messages.append(table.unmap(MAP, link))
    if found.chained:
        messages.append(table.chain(abi.NFT_MSG_DELCHAIN, chain(link)))
    return messages


def number(answer: bytes, type_: int) -> int:
    return int.from_bytes(attributes(answer)[type_], "big")


def names_in(answer: bytes) -> list[str]:
    """The keys of some elements of the map."""
    elements = attributes(answer).get(abi.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    keys = [attributes(element)[abi.NFTA_SET_ELEM_KEY] for element in nfnetlink.each(elements)]
    names = [attributes(key)[abi.NFTA_DATA_VALUE] for key in keys]
    return [os.fsdecode(name.rstrip(b"\0")) for name in names]
