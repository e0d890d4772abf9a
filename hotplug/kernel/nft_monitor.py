"""Whether others change a table of nf_tables, as the kernel tells everybody who listens.

- What it tells of a change has the port of whoever asked for that as its sender (ctx->portid in
  net/netfilter/nf_tables_api.c), so that we know our own.
- It is told once the whole transaction has come into effect. Of ``nft flush ruleset`` it tells
  every table, chain and rule that went.
- The name of the table is the attribute 1 in what is told of tables, chains, rules, sets and
  elements (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and so on).
- A socket without a port of its own is told nothing: 0 is whom nlmsg_notify leaves out.
- After ENOBUFS (news was lost) the socket goes on.
"""

from __future__ import annotations

import socket

from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import MAX_ANSWER, attributes
from hotplug.kernel.nfnetlink import GENERIC, NETLINK_NETFILTER, SOL_NETLINK, Answer, answers_in

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h


class Monitor:
    """Listens to the changes of tables of this name, in the network namespace it was made in."""

    __slots__ = ("_name", "_socket")

    def __init__(self, table: str) -> None:
        self._name = table.encode() + b"\0"
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def others_came(self, own: int) -> bool:
        """Whether somebody but ``own`` changed such a table since the last call, or may have."""
        found = False
        while True:
            try:
                data = self._socket.recv(MAX_ANSWER)
            except BlockingIOError:
                return found
            except OSError:
                found = True  # nobody knows what was lost
            else:
                found = found or any(self._is_others(told, own) for told in answers_in(data))

    def _is_others(self, told: Answer, own: int) -> bool:
        if told.port == own or told.kind >> 8 != abi.NFNL_SUBSYS_NFTABLES:
            return False
        return attributes(told.payload[GENERIC.size :]).get(1) == self._name
