"""Forgetting the connections of an address, in a namespace that tracks them.

And what of netfilter a kernel may not have.
"""

from __future__ import annotations

import contextlib
import socket

import pytest
from harness.namespace import Namespace

from hotplug.kernel import nft_abi
from hotplug.kernel.conntrack import COUNT, forget, tracking
from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.nfnetlink import Channel

TRACKING = """
    add table inet t
    add chain inet t c { type filter hook output priority 0; }
    add rule inet t c ct state new accept
    add table ip n
    add chain ip n o { type nat hook output priority -100; }
    add rule ip n o ip daddr 10.9.9.9 dnat to 10.0.0.2
"""
OWN = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.0.1", "10.1.0.2")
OWN6 = ("2001:db8::1", "2001:db8::2", "2001:db8::3")


@pytest.fixture
def host():
    with Namespace() as made:
        made.run("nft", "-f", "-", text=TRACKING)
        made.ip("link set lo up", *(f"address add {a} dev lo" for a in (*OWN, *OWN6)))
        made.ip("route add 10.9.9.9 dev lo")
        yield made


@pytest.fixture
def firewall():
    with contextlib.closing(KernelFirewall(None, None)) as made:
        yield made


def talk(host, source, destination, count=1):
    """UDP, so that conntrack remembers it for a while."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    for port in range(1000, 1000 + count):
        with host.call(socket.socket, family, socket.SOCK_DGRAM) as sender:
            sender.bind((source, port))
            sender.sendto(b"hello", (destination, 9))


def known(host):
    """Source and destination of what began each connection."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in host.run("conntrack", "-L", "-f", family).splitlines():
            words = dict(word.split("=") for word in reversed(line.split()) if "=" in word)
            found.add((words["src"], words["dst"]))
    return found


def test_those_of_an_address_go_and_others_stay(host, firewall):
    pairs = {(OWN[1], OWN[0]), (OWN[0], OWN[1]), (OWN[2], OWN[0])}
    for pair in pairs:
        talk(host, *pair)
    assert known(host) == pairs
    host.call(firewall.forget_connections, [OWN[1]])
    assert known(host) == {(OWN[2], OWN[0])}


def test_ipv6(host, firewall):
    pairs = {(OWN6[1], OWN6[0]), (OWN6[0], OWN6[1]), (OWN6[2], OWN6[0]), (OWN[1], OWN[0])}
    for pair in pairs:
        talk(host, *pair)
    assert known(host) == pairs
    host.call(firewall.forget_connections, [OWN6[1]])
    assert known(host) == {(OWN6[2], OWN6[0]), (OWN[1], OWN[0])}


def test_what_came_by_another_address(host, firewall):
    talk(host, OWN[0], "10.9.9.9")
    assert known(host) == {(OWN[0], "10.9.9.9")}
    host.call(firewall.forget_connections, [OWN[1]])
    assert known(host) == set()


def test_a_network(host, firewall):
    for pair in ((OWN[3], OWN[0]), (OWN[0], OWN[4]), (OWN[0], OWN[2])):
        talk(host, *pair)
    host.call(firewall.forget_connections, ["10.1.0.0/16", "2001:db8::/32"])
    assert known(host) == {(OWN[0], OWN[2])}


def test_many(host, firewall):
    talk(host, OWN[1], OWN[0], count=1500)
    talk(host, OWN[2], OWN[0])
    assert len(host.run("conntrack", "-L").splitlines()) == 1501
    host.call(firewall.forget_connections, [OWN[1]])
    assert known(host) == {(OWN[2], OWN[0])}


NOWHERE = 200  # a part of netfilter that no kernel has


def test_connections_that_the_kernel_lets_nobody_see(host, firewall, monkeypatch):
    monkeypatch.setattr(nft_abi, "NFNL_SUBSYS_CTNETLINK", NOWHERE)
    talk(host, OWN[1], OWN[0])
    host.call(firewall.forget_connections, [OWN[1], OWN6[1]])
    assert known(host) == {(OWN[1], OWN[0])}


def test_a_kernel_with_netfilter_and_without_nf_tables(host, firewall, monkeypatch):
    """Nothing is guarded there, so nothing is amiss."""
    monkeypatch.setattr(nft_abi, "NFNL_SUBSYS_NFTABLES", NOWHERE)
    host.call(firewall.unguard, "vif1.0")
    assert host.call(firewall.guarded) == []


class Untouched(Channel):
    def dump(self, message):
        raise AssertionError(message)


def test_conntrack_that_knows_nothing_is_not_asked(host, tmp_path):
    host.call(forget, Untouched(), [OWN[1]], str(tmp_path / "absent"))
    assert not host.call(tracking, COUNT)
    host.call(forget, Untouched(), [OWN[1]])
