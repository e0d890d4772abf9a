"""What a guest on a routed vif can send: beyond the host, and to the host itself.

Reverse path filters are off, so that nothing but the guard stands in the way.
"""

from __future__ import annotations

import contextlib
import socket

import pytest
from harness.frames import DATA, UDP, ethernet, ipv4, ipv6, udp
from harness.lan import (
    HOST,
    HOST6,
    HOST_MAC,
    LINK,
    MAC,
    OTHER,
    OTHER6,
    OTHER_MAC,
    OUTSIDE,
    OUTSIDE6,
    OWN,
    OWN6,
    Lan,
)

from hotplug.kernel.firewall import KernelFirewall
from hotplug.network import Allowance

ROUTED = Allowance(MAC, (OWN, "10.0.7.0/24", OWN6), routed=True)
ONLY_MAC = Allowance(MAC, routed=True)
HELLO = udp(1000, 2000)
V4, V6 = 0x0800, 0x86DD


def to_outside(source, payload=HELLO, mac=MAC):
    packet = (
        ipv6(source, OUTSIDE6, payload, UDP) if ":" in source else ipv4(source, OUTSIDE, payload)
    )
    return ethernet(mac, V6 if ":" in source else V4, packet, to=HOST_MAC)


FORGED = {
    "IPv4": to_outside(OTHER),
    "IPv4 of the host": to_outside("10.0.0.9"),
    "IPv6": to_outside(OTHER6),
    "another MAC": to_outside(OWN, mac=OTHER_MAC),
    "DHCP offer": to_outside(OWN, udp(67, 68)),
    "DHCPv6 advertise": to_outside(OWN6, udp(547, 546)),
}
HONEST = {
    "IPv4": to_outside(OWN),
    "IPv4 of its network": to_outside("10.0.7.255"),
    "IPv6": to_outside(OWN6),
}


@pytest.fixture(scope="module")
def lan():
    made = Lan(routed=True)
    yield made
    made.close()


@pytest.fixture
def firewall(lan):
    made = KernelFirewall(None, None)
    with contextlib.closing(made):
        yield made
        lan.host.call(made.unguard, LINK)
        assert "xen_hotplug" not in lan.host.run("nft", "list", "tables")


def arriving(lan, frames_):
    return {name for name, frame in frames_.items() if lan.reached_by(frame, frame[-len(DATA) :])}


def test_without_a_guard_all_arrive(lan, firewall):
    assert arriving(lan, FORGED) == FORGED.keys()
    assert arriving(lan, HONEST) == HONEST.keys()


def test_guarded(lan, firewall):
    lan.host.call(firewall.guard, LINK, ROUTED)
    assert arriving(lan, FORGED) == set()
    assert arriving(lan, HONEST) == HONEST.keys()


def test_only_a_mac(lan, firewall):
    lan.host.call(firewall.guard, LINK, ONLY_MAC)
    assert arriving(lan, FORGED) == {"IPv4", "IPv4 of the host", "IPv6"}
    assert arriving(lan, HONEST) == HONEST.keys()


@pytest.mark.parametrize(
    ("family", "host", "own", "other"),
    [(socket.AF_INET, HOST, OWN, OTHER), (socket.AF_INET6, HOST6, OWN6, OTHER6)],
)
def test_the_host_itself(lan, firewall, family, host, own, other):
    with lan.host.call(socket.socket, family, socket.SOCK_DGRAM) as listener:
        listener.bind((host, 0))
        listener.settimeout(5)
        port = listener.getsockname()[1]

        def send(source, data):
            payload = udp(1000, port, data, between=(source, host))
            packet = (
                ipv6(source, host, payload, UDP) if ":" in source else ipv4(source, host, payload)
            )
            lan.send(ethernet(MAC, V6 if ":" in source else V4, packet, to=HOST_MAC))

        send(other, b"forged")
        assert listener.recv(100) == b"forged"
        lan.host.call(firewall.guard, LINK, ROUTED)
        send(other, b"forged")
        send(own, b"honest")
        assert listener.recv(100) == b"honest"


def test_a_real_connection(lan, firewall):
    lan.host.call(firewall.guard, LINK, ROUTED)
    for family, host, own in ((socket.AF_INET, HOST, OWN), (socket.AF_INET6, HOST6, OWN6)):
        with lan.host.call(socket.create_server, (host, 0), family=family) as server:
            address = server.getsockname()[:2]
            with lan.guest.call(socket.create_connection, address, 10) as client:
                assert client.getsockname()[0] == own


def test_a_vif_that_was_a_port_is_filtered_once(lan, firewall):
    for kind in (Allowance(MAC, (OWN,)), ROUTED, Allowance(MAC, (OWN,)), ROUTED):
        lan.host.call(firewall.guard, LINK, kind)
        tables = lan.host.run("nft", "list", "tables").splitlines()
        ours = [
            "table inet xen_hotplug",
            *(["table bridge xen_hotplug"] if not kind.routed else []),
        ]
        assert sorted(tables) == sorted(ours)
        assert lan.host.call(firewall.guarded) == [LINK]
    assert arriving(lan, HONEST) == HONEST.keys()
