"""The stock scripts' rules in iptables' chain FORWARD (frob_iptable in vif-common.sh).

They accept what a guest sends over a bridge, for hosts whose FORWARD drops by default. Such a host
sees bridged packets only where bridge netfilter is on, for the whole network namespace or for the
bridge (br_nf_pre_routing, net/bridge/br_netfilter_hooks.c); elsewhere nothing is run.

- As with the stock scripts: without words, all that the guest sends; with words, what comes from
  these, and DHCP requests; always, all that goes to it. Where iptables does not work, nothing.
- IPv6 words are ip6tables' business, and only then is it touched. The guest must find its
  neighbours there: all its ICMPv6 is accepted.
- Each rule has a comment that names the link. What is there with it is replaced, by one transaction
  of iptables-restore; so repeating changes nothing, and nothing is left of other words.
- The stock script's have no comment. Where there is none of ours, the card is one that it set up,
  or whose rules an uninstall made stock's, and what has its very form goes with the card.
- iptables-save writes a rule with -A, from the words that iptables-restore takes with -D.
- The stock script deletes by the words of a rule, one of those that let in with one of those that
  let out, and gives up where the second is missing. So it has as many of these as of those.
- iptables-restore reads from a file, not from a pipe of ours: an open file without a name.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hotplug.network import Link
    from hotplug.ports import Deadline, Locks, Programs

LOCK = "iptables"
BRIDGE_NETFILTER = "/proc/sys/net/bridge"
BRIDGE_OF = "/sys/class/net/{}/brport/bridge/bridge"
NAME = re.compile(r"\w[\w.@-]*", re.ASCII)  # a + at its end, for one, would mean many links
TAG = re.compile(r' -m comment --comment "xen-hotplug ([^"\\]+)"')  # as iptables-save writes it
SETTING = 16  # bytes of a file with a number
DHCP = "-p udp -m udp --sport 68 --dport 67"


@dataclass(frozen=True, slots=True)
class Tool:
    """One family's iptables."""

    name: str
    switch: str  # its file below /proc/sys/net/bridge, and with nf_ in the place of bridge-nf-
    configuration: str  # the match of what every guest may say to get its address
    colon: bool  # whether its addresses have one


@dataclass(frozen=True, slots=True)
class Handover:
    """What makes rules of ours the stock script's, in the words of iptables-restore."""

    tool: Tool
    changes: tuple[str, ...]
    kept: tuple[str, ...]  # links whose rules stay ours


TOOLS = (
    Tool("iptables", "call-iptables", DHCP, colon=False),
    Tool("ip6tables", "call-ip6tables", "-p ipv6-icmp", colon=True),
)


class Forward:
    """FORWARD of this network namespace."""

    __slots__ = ("_locks", "_programs")

    def __init__(self, programs: Programs, locks: Locks) -> None:
        self._programs = programs
        self._locks = locks

    def sees(self, bridge: Link) -> bool:
        """Whether what goes over a bridge comes to one of the families."""
        for_all = [setting(switch(tool)) for tool in TOOLS]
        return b"1" in for_all or (bridge.calls_iptables and for_all != [None, None])

    def accept(self, link: str, words: Sequence[str], deadline: Deadline) -> None:
        for tool in TOOLS:
            ours = [word for word in words if (":" in word) == tool.colon]
            wanted = list(rules(tool, link, ours, limited=bool(words)))
            if tool.colon and not ours:
                wanted = []  # as stock: IPv6 is the administrator's
            if is_on(tool, link):
                self._replace(tool, link, wanted, deadline)

    def unaccept(self, link: str, deadline: Deadline) -> None:
        """The link may be no port any more, and bridge netfilter have been switched off."""
        if not NAME.fullmatch(link):
            return  # nor were they ever told one
        for tool in TOOLS if os.path.exists(BRIDGE_NETFILTER) else ():
            self._replace(tool, link, [], deadline, of_stock=True)

    def handing_over(self, deadline: Deadline) -> Iterator[Handover]:
        """What there is of ours for cards, of each family that has some."""
        for tool in TOOLS if os.path.exists(BRIDGE_NETFILTER) else ():
            handover = self._handover(tool, deadline)
            if handover.changes or handover.kept:
                yield handover

    def hand_over(self, tool: Tool, deadline: Deadline) -> None:
        """Make our rules of a family stock's, as they are now."""
        with self._locks.hold(LOCK, deadline):
            changes = self._handover(tool, deadline).changes
            if changes:
                self._restore(tool, "FORWARD", changes, deadline)

    def _handover(self, tool: Tool, deadline: Deadline) -> Handover:
        return handed_over(tool, (self._saved(tool, deadline) or "").splitlines(), is_there)

    def _replace(
        self,
        tool: Tool,
        link: str,
        wanted: Sequence[str],
        deadline: Deadline,
        *,
        of_stock: bool = False,
    ) -> None:
        if not NAME.fullmatch(link):
            raise OSError(errno.EINVAL, "iptables cannot be told a link of this name", link)
        with self._locks.hold(LOCK, deadline):
            saved = self._saved(tool, deadline)
            if saved is None:
                return
            old = [line for line in saved.splitlines() if is_ours(line, link)]
            if of_stock and not old and not tool.colon:
                old = [line for line in saved.splitlines() if is_stocks(line, link)]
            changes = [f"-D{line.removeprefix('-A')}" for line in old] + list(wanted)
            if changes:
                self._restore(tool, link, changes, deadline)

    def _saved(self, tool: Tool, deadline: Deadline) -> str | None:
        """The table as iptables-save writes it; None if there is no iptables that works."""
        try:
            finished = self._programs.run([f"{tool.name}-save", "-t", "filter"], deadline)
        except FileNotFoundError:
            return None
        return os.fsdecode(finished.stdout) if finished.status == 0 else None

    def _restore(self, tool: Tool, link: str, changes: Sequence[str], deadline: Deadline) -> None:
        text = "\n".join(["*filter", *changes, "COMMIT", ""])
        seconds = str(max(1, int(deadline.remaining())))
        with open(os.memfd_create("xen-hotplug"), "wb", buffering=0) as file:
            file.write(os.fsencode(text))
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            argv = [f"{tool.name}-restore", "--noflush", "--wait", seconds, path]
            finished = self._programs.run(argv, deadline)
        if finished.status != 0:
            said = " ".join(os.fsdecode(finished.stderr).split())
            raise OSError(
                errno.EIO, f"{tool.name} refuses the rules of its bridge port: {said}", link
            )


def is_on(tool: Tool, link: str) -> bool:
    """Whether this family's iptables sees what goes over bridges, or over the link's."""
    for_all = setting(switch(tool))
    own = f"{BRIDGE_OF.format(link)}/nf_{tool.switch.replace('-', '_')}"
    return for_all == b"1" or (for_all is not None and setting(own) == b"1")


def switch(tool: Tool) -> str:
    """That of all bridges."""
    return f"{BRIDGE_NETFILTER}/bridge-nf-{tool.switch}"


def setting(path: str) -> bytes | None:
    """None: no bridge netfilter, or no port of a bridge. Every card asks: hence no file object."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, SETTING).strip()
        finally:
            os.close(descriptor)
    except OSError:  # also if the bridge goes just now
        return None


def tag(link: str) -> str:
    return f"xen-hotplug {link}"


def is_ours(line: str, link: str) -> bool:
    """Whether a line of iptables-save is a rule of a link's; quotes in others' are escaped."""
    return line.startswith("-A FORWARD ") and f'--comment "{tag(link)}"' in line


def is_stocks(line: str, link: str) -> bool:
    """Whether a line of iptables-save is what the stock script sets for a link."""
    name = re.escape(link)
    port = rf"-m physdev --physdev-in {name} --physdev-is-bridged"
    forms = (
        rf"(-s \S+ )?{port}",
        rf"-p udp {port} -m udp --sport 68 --dport 67",
        rf"-m physdev --physdev-out {name} --physdev-is-bridged",
    )
    return any(re.fullmatch(rf"-A FORWARD {form} -j ACCEPT", line) for form in forms)


def rules(tool: Tool, link: str, words: Sequence[str], *, limited: bool) -> Iterator[str]:
    matches = [f"-s {word}" for word in dict.fromkeys(words)]
    matches += [tool.configuration] if limited else [""]
    port = f'-m comment --comment "{tag(link)}" -j ACCEPT'
    for match in matches:
        yield f"-I FORWARD -m physdev --physdev-is-bridged --physdev-in {link} {match} {port}"
    yield f"-I FORWARD -m physdev --physdev-is-bridged --physdev-out {link} {port}"


def handed_over(tool: Tool, saved: Sequence[str], is_there: Callable[[str], bool]) -> Handover:
    """Our rules become stock's where they stand; those of links that are gone go.

    Stock has none of IPv6, and would never delete them: they stay ours, to be told from others'.
    """
    lines = [line for line in saved if line.startswith("-A FORWARD ")]
    links = [found[1] if (found := TAG.search(line)) else "" for line in lines]
    there = {link for link in links if link and is_there(link)}
    kept = there if tool.colon else set()
    changes: list[str] = []
    number = 0  # of the rule that was looked at last, in the chain as it is after the changes
    for line, link in zip(lines, links, strict=True):
        number += 1
        if not link or link in kept:
            continue
        changes.append(f"-D{line.removeprefix('-A')}")
        rule = TAG.sub("", line).removeprefix("-A FORWARD ")
        copies = 0
        if link in there:
            ins = sum(lets_in(other, link) for other in lines)
            copies = 1 if lets_in(line, link) else max(1, ins)
        changes += [f"-I FORWARD {number} {rule}"] * copies
        number += copies - 1
    return Handover(tool, tuple(changes), tuple(sorted(kept)))


def lets_in(line: str, link: str) -> bool:
    """Whether a rule of ours is about what the guest sends."""
    return is_ours(line, link) and f"--physdev-in {link} " in line


def is_there(link: str) -> bool:
    import socket  # noqa: PLC0415 - costs milliseconds, and disks do not come here

    try:
        socket.if_nametoindex(link)
    except OSError:
        return False
    return True
