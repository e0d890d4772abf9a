"""Links that are guarded: tables of ours in nf_tables.

- Two tables ``xen_hotplug``. That of the family bridge sees what comes in from a bridge's port,
  before the bridge learns or decides anything; that of the family inet what comes to this host's
  own stack from a link itself. There is one hook in each. It lets other links pass, looks the
  link's name up in a map for its chain, and then has the rules that are the same for all.
- A bridge hands frames to its own group address (01:80:c2:00:00:0X) to the stack as the port's,
  past the bridge's hook, IP or not (br_handle_frame, net/bridge/br_input.c). So of a guarded port,
  the map of inet drops everything. That the bridge learns their senders before, its own option
  must forbid (links.py). With bridge netfilter, what goes over a bridge comes to inet
  as the bridge's.
- What goes *to* guests is not filtered.
- A link is known by its name, as a rule would know it. Who renames it does so while it is down.
- A table goes with its last link. The kernel refuses to delete what has something in it, if it is
  asked to (NLM_F_NONREC), so that no guard of another process is lost.
- ``nft flush ruleset`` deletes our tables too; nothing but a new guard brings them back. Whether
  rules are what they were is told by their number, as nobody exchanges some of another's.
- A kernel without IPv6 has no family inet (NF_TABLES_INET depends on it). Then it is ip.
- On most hosts no card is guarded. That there was no table of ours is true until the number of the
  tables' generation is another one (nf_tables_getgen), which is one question in place of three.
  But it starts again with the module, and is told some instructions before what it stands for
  (nf_tables_commit). So only who expects no guard, and looks to be on the safe side, goes by it.
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
from hotplug.kernel.nfnetlink import NLM_F_NONREC, UNSUPPORTED, Message
from hotplug.kernel.nft import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.kernel.nfnetlink import Channel
    from hotplug.network import Allowance

TABLE = "xen_hotplug"
SET = "guarded"
MAP = "links"
HOOK = "from_links"
HOOKS = {abi.NFPROTO_BRIDGE: abi.NF_BR_PRE_ROUTING}  # of the others it is NF_INET_PRE_ROUTING
PRIORITY = -450  # before fragments are put together (-400) and connections are tracked (-200)
USE = 3  # what a table has without chains of links: the set, the map and the hook
LAYER3 = (abi.NFPROTO_INET, abi.NFPROTO_IPV4)  # the second if the kernel has not the first
ALL = (abi.NFPROTO_BRIDGE, *LAYER3)
FAMILIES = {abi.NFPROTO_BRIDGE: "bridge", abi.NFPROTO_INET: "inet", abi.NFPROTO_IPV4: "ip"}
ATTEMPTS = 10  # of a transaction that others come in the way of
MEANWHILE = (*(errno.EAGAIN, errno.EINTR, errno.ERESTART), errno.EBUSY, errno.EEXIST, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Found:
    """What is there of a link in a table."""

    hooked: int  # rules of the hook; -1 if there is none
    listed: bool  # in the set
    mapped: bool  # in the map
    chained: int  # rules of its chain, and the map's leading there; -1 if there is none


class Guards:
    """The guarded links of a network namespace. For several threads."""

    __slots__ = ("_bare", "_channel")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._bare: int | None = None  # a generation in which there was no table of ours

    def guard(self, link: str, allowance: Allowance) -> None:
        """Let a link send only this, from now on; in the place of what it was allowed before."""
        self._bare = None
        for layer3 in LAYER3:
            lacking = self._install(link, allowance, layer3)
            if lacking is None:
                break
            if lacking != layer3 or layer3 == LAYER3[-1]:
                raise unsupported(link, lacking)
        if allowance.routed:
            self._remove(link, (abi.NFPROTO_BRIDGE,))  # of a port that had this name before

    def keeps(self, link: str, allowance: Allowance) -> bool:
        """Whether nobody took away anything of what guard() made for a link."""
        return any(self._is_whole(link, allowance, layer3) for layer3 in LAYER3)

    def unguard(self, link: str, *, unlikely: bool = False) -> None:
        """Forget a link, guarded or not; if that is ``unlikely``, with one question at best."""
        if not unlikely:
            self._remove(link, ALL)
            return
        now = self._generation(link)
        if (now is None or now != self._bare) and not self._remove(link, ALL):
            self._bare = now

    def guarded(self) -> list[str]:
        names: set[str] = set()
        for family in LAYER3:
            for answer in self._listed(Table(family, TABLE)):
                names.update(names_in(answer))
        return sorted(names)

    def tables(self) -> list[str]:
        """The families in which there is a table of ours, as nft(8) calls them."""
        return [FAMILIES[table.family] for table in self._there(ALL, TABLE)]

    def clear(self) -> None:
        """Delete our tables with all that is in them: no link is guarded any more."""
        for _ in range(ATTEMPTS):
            there = self._there(ALL, TABLE)
            if not there:
                return
            self._commit(TABLE, [table.whole(abi.NFT_MSG_DELTABLE) for table in there])
        raise crowded(TABLE)

    def _install(self, link: str, allowance: Allowance, layer3: int) -> int | None:
        """None if it is done; the family that the kernel does not have; OSError."""
        for _ in range(ATTEMPTS):
            tables = wanted(link, allowance, layer3)
            messages = []
            for (table, own), found in zip(
                tables, self._look([t for t, _ in tables], link), strict=True
            ):
                messages += guarding(table, link, found, own)
            refused = self._commit(link, messages)
            if not refused:
                return None
            for index, code in refused.items():
                if code in UNSUPPORTED:
                    return messages[index].family
        raise crowded(link)

    def _is_whole(self, link: str, allowance: Allowance, layer3: int) -> bool:
        tables = wanted(link, allowance, layer3)
        found = self._look([table for table, _ in tables], link)
        return all(is_whole(there, own) for there, (_, own) in zip(found, tables, strict=True))

    def _remove(self, link: str, families: Sequence[int]) -> bool:
        """Take a link out of these tables, and the tables away that are empty then.

        False: there were none.
        """
        for _ in range(ATTEMPTS):
            tables = self._there(families, link)
            if not tables:
                return False
            messages = []
            for table, found in zip(tables, self._look(tables, link), strict=True):
                messages += forgetting(table, link, found)
            if not messages:
                return True
            if not self._commit(link, messages):
                self._clear()
                return True
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

    def _look(self, tables: Sequence[Table], link: str) -> list[Found]:
        """What is there of a link in each."""
        questions = []
        for table in tables:
            questions += [
                table.chain(abi.NFT_MSG_GETCHAIN, HOOK),
                table.chain(abi.NFT_MSG_GETCHAIN, chain(link)),
                table.elements(SET, link),
                table.elements(MAP, link),
            ]
        answers = iter(self._ask(questions, link))
        return [
            Found(
                hooked=-1 if hook is None else number(hook, abi.NFTA_CHAIN_USE),
                chained=-1 if own is None else number(own, abi.NFTA_CHAIN_USE),
                listed=listed is not None,
                mapped=mapped is not None,
            )
            for hook, own, listed, mapped in zip(answers, answers, answers, answers, strict=True)
        ]

    def _there(self, families: Sequence[int], link: str) -> list[Table]:
        """Our tables, as far as there are any: on most hosts no card is guarded."""
        tables = [Table(family, TABLE) for family in families]
        found = self._ask([table.whole(abi.NFT_MSG_GETTABLE) for table in tables], link)
        return [table for table, answer in zip(tables, found, strict=True) if answer is not None]

    def _generation(self, link: str) -> int | None:
        """The number of the state of all tables, which every transaction makes another one."""
        question = Message(abi.NFNL_SUBSYS_NFTABLES, abi.NFT_MSG_GETGEN, 0, b"")
        (answer,) = self._ask([question], link)
        return None if answer is None else number(answer, abi.NFTA_GEN_ID)

    def _ask(self, questions: Sequence[Message], link: str) -> list[bytes | None]:
        """What is there; nothing, if the kernel has no nf_tables."""
        try:
            return self._channel.look(questions)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return [None] * len(questions)
            raise refusal(link, error.errno or errno.EIO) from error

    def _listed(self, table: Table) -> list[bytes]:
        try:
            return self._channel.dump(table.elements(SET))
        except OSError as error:
            if error.errno in (errno.ENOENT, *UNSUPPORTED):
                return []
            raise

    def _clear(self) -> None:
        """Delete the tables that have no links any more; those of bridge are in the others too."""
        tables = [Table(family, TABLE) for family in ALL]
        found = self._channel.look([table.whole(abi.NFT_MSG_GETTABLE) for table in tables])
        for table, answer in zip(tables, found, strict=True):
            if answer is None:
                continue
            if number(answer, abi.NFTA_TABLE_USE) > USE:
                return
            # If it is refused, somebody guards a link just now, or was faster: it is theirs then.
            self._channel.commit(
                [
                    table.flush(HOOK),
                    table.chain(abi.NFT_MSG_DELCHAIN, HOOK),
                    table.set(abi.NFT_MSG_DELSET, MAP, NLM_F_NONREC),
                    table.set(abi.NFT_MSG_DELSET, SET, NLM_F_NONREC),
                    table.whole(abi.NFT_MSG_DELTABLE, NLM_F_NONREC),
                ]
            )


def refusal(link: str, code: int) -> OSError:
    return OSError(code, f"nf_tables refuses to filter it otherwise: {os.strerror(code)}", link)


def crowded(link: str) -> OSError:
    text = f"nf_tables refuses to filter it otherwise: others were faster {ATTEMPTS} times"
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


def wanted(
    link: str, allowance: Allowance, layer3: int
) -> list[tuple[Table, list[Message] | None]]:
    """The tables that a link must be in, with its own rules; None: it is dropped."""
    stack = Table(layer3, TABLE)
    if allowance.routed:
        return [(stack, antispoof.fill(stack, chain(link), allowance))]
    bridge = Table(abi.NFPROTO_BRIDGE, TABLE)
    return [(bridge, antispoof.fill(bridge, chain(link), allowance)), (stack, None)]


def is_whole(found: Found, own: Sequence[Message] | None) -> bool:
    """Whether a table still has what ``guarding`` put there."""
    chained = -1 if own is None else 1 + sum(m.kind == abi.NFT_MSG_NEWRULE for m in own)
    whole = found.hooked == len(hook_rules()) and found.chained == chained
    return whole and found.listed and found.mapped


def guarding(table: Table, link: str, found: Found, own: Sequence[Message] | None) -> list[Message]:
    """What makes a link's chain these rules, in a table as it was found."""
    messages = [*foundation(table, found), *forgetting(table, link, found)]
    if own is None:
        messages.append(table.put_drop(MAP, link))
    else:
        messages += [table.make_chain(chain(link)), *own, table.put_jump(MAP, link, chain(link))]
    return [*messages, table.put(SET, link)]


def foundation(table: Table, found: Found) -> list[Message]:
    """What a table lacks, or others changed, of what is the same for all links."""
    rules = hook_rules()
    if found.hooked == len(rules):
        return []
    if found.hooked < 0:
        hook = HOOKS.get(table.family, abi.NF_INET_PRE_ROUTING)
        begin = [
            table.make(),
            table.make_set(SET),
            table.make_set(MAP, of_verdicts=True),
            table.make_hook(HOOK, hook, PRIORITY),
        ]
    else:
        begin = [table.flush(HOOK)]
    return [*begin, *(table.rule(HOOK, rule) for rule in rules)]


def hook_rules() -> list[bytes]:
    name = nft.meta(abi.NFT_META_IIFNAME)
    return [
        name + nft.lookup(SET, inverted=True) + nft.ACCEPT,
        name + nft.lookup(MAP, mapped=True),
        *antispoof.of_all(),
    ]


def forgetting(table: Table, link: str, found: Found) -> list[Message]:
    messages = []
    if found.listed:
        messages.append(table.take(SET, link))
    if found.mapped:
        messages.append(table.take(MAP, link))
    if found.chained >= 0:
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
