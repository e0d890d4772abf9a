"""Network cards on a real Xen: bridged, routed, natted; attached while guests run; forged.

Two guests serve all of it, for a guest takes longer to boot than all that is done with it.
"""

from __future__ import annotations

import pytest
from lab.guests import Guest

BRIDGE, NET = "xenbr1", "10.97.0"
CYCLES = 10
FORGED_MAC = "00:16:3e:66:66:66"


@pytest.fixture
def bridge(lab):
    """A second bridge in dom0, for cards that are attached while guests run."""
    lab.do(
        f"ip link add {BRIDGE} type bridge && ip addr add {NET}.1/24 dev {BRIDGE}"
        f" && ip link set {BRIDGE} up"
    )
    yield BRIDGE
    lab.do(f"ip link del {BRIDGE}")


def attach(guest, words, address="", number=1):
    """Give a guest another card, and have it up inside."""
    guest.machine.do(f"xl network-attach {guest.name} {words}")
    link = f"eth{number}"
    guest.run(f"until [ -e /sys/class/net/{link} ]; do sleep 0.1; done; ip link set {link} up")
    if address:
        guest.run(f"ip addr add {address} dev {link}")


def detach(guest, number=1):
    guest.machine.do(f"xl network-detach {guest.name} {number}")
    guest.run(f"while [ -e /sys/class/net/eth{number} ]; do sleep 0.1; done")


def reaches(guest, address, options=""):
    """Whether a guest gets an answer; ARP may take the first second."""
    said = guest.run(f"ping -c 3 -W 1 {options} {address} >/dev/null && echo yes || echo no")
    return said.split()[-1] == "yes"


def rules(machine):
    return machine.do("nft list tables; iptables-save -t filter | grep -c xen-hotplug || true")


def vifs(machine):
    return machine.do("xenstore-ls -f /local/domain/0/backend/vif | grep -c online || true").strip()


def test_bridged_guests(lab, bridge):
    """They reach each other and dom0; cards come and go while they run; a forger is silenced."""
    before = rules(lab)
    first = Guest(lab, "first", address="10.99.0.2")
    second = Guest(lab, "second", address="10.99.0.3")
    first.start()
    second.start()
    assert reaches(first, "10.99.0.1")
    assert reaches(first, "10.99.0.3")
    assert reaches(second, "10.99.0.2")

    hot_cards(first, bridge, before)
    jumbo_frames(first, bridge)
    a_name_of_its_own(first, bridge)
    a_forger(first, second, bridge)
    assert rules(lab) == before
    first.destroy()
    second.destroy()


def hot_cards(guest, bridge, before):
    """Ten times attached and detached: nothing is left, neither in xenstore nor in the kernel."""
    machine = guest.machine
    there, links = machine.call("leftovers"), machine.do("ls /sys/class/net")
    for _ in range(CYCLES):
        attach(guest, f"bridge={bridge} ip={NET}.2", f"{NET}.2/24")
        detach(guest)
    assert machine.call("leftovers") == there
    assert machine.do("ls /sys/class/net") == links
    assert rules(machine) == before
    assert vifs(machine) == "2"


def jumbo_frames(guest, bridge):
    machine = guest.machine
    machine.do(f"ip link set {bridge} mtu 9000")
    attach(guest, f"bridge={bridge}", f"{NET}.2/24")
    domid = machine.call("guests")[guest.name]
    assert machine.do(f"cat /sys/class/net/vif{domid}.1/mtu") == "9000\n"
    assert machine.do(f"xenstore-read /local/domain/{domid}/device/vif/1/mtu") == "9000\n"
    guest.run("ip link set eth1 mtu 9000")
    assert reaches(guest, f"{NET}.1", "-s 8900")
    detach(guest)
    machine.do(f"ip link set {bridge} mtu 1500")
    attach(guest, f"bridge={bridge} mtu=8000", f"{NET}.2/24")
    domid = machine.call("guests")[guest.name]
    assert machine.do(f"cat /sys/class/net/vif{domid}.1/mtu") == "8000\n"
    assert machine.do(f"xenstore-read /local/domain/{domid}/device/vif/1/mtu") == "8000\n"
    detach(guest)


def a_name_of_its_own(guest, bridge):
    machine = guest.machine
    attach(guest, f"bridge={bridge} vifname=web", f"{NET}.2/24")
    assert f"master {bridge}" in machine.do("ip link show web")
    assert reaches(guest, f"{NET}.1")
    detach(guest)
    assert machine.dom0("ip link show web").status != 0


def a_forger(guest, other, bridge):
    """Held to one address: with another one, or another MAC, it reaches nobody."""
    attach(guest, f"bridge={bridge} ip={NET}.2", f"{NET}.2/24")
    attach(other, f"bridge={bridge}", f"{NET}.3/24")
    assert reaches(guest, f"{NET}.1")
    assert reaches(guest, f"{NET}.3")
    guest.run(f"ip addr add {NET}.99/24 dev eth1")
    assert not reaches(guest, f"{NET}.3", f"-I {NET}.99")
    assert reaches(guest, f"{NET}.3", f"-I {NET}.2")
    own = guest.run("cat /sys/class/net/eth1/address").split()[-1]
    become(guest, FORGED_MAC)
    assert not reaches(guest, f"{NET}.3")
    assert not reaches(guest, f"{NET}.1")
    become(guest, own)
    assert reaches(guest, f"{NET}.3")
    # Without addresses to be held to, it may do what it likes.
    become(other, FORGED_MAC)
    other.run(f"ip addr add {NET}.98/24 dev eth1")
    assert reaches(other, f"{NET}.2", f"-I {NET}.98")
    detach(guest)
    detach(other)


def become(guest, mac):
    guest.run(f"ip link set eth1 down && ip link set eth1 address {mac} && ip link set eth1 up")


def test_routed_and_natted_guests(lab):
    """Cards that are no bridge's ports: dom0 routes to them, and between them."""
    guests = [Guest(lab, f"remote-{n}", address=f"10.99.0.{n}") for n in (2, 3)]
    for guest in guests:
        guest.start()
    lab.do("sysctl -qw net.ipv4.ip_forward=1")
    routed_to(lab, *guests)
    natted(lab, *guests)
    lab.do("sysctl -qw net.ipv4.ip_forward=0")
    for guest in guests:
        guest.destroy()


def routed_to(lab, *guests):
    addresses = [f"10.96.0.{number}" for number in range(2, 2 + len(guests))]
    for guest, address in zip(guests, addresses, strict=True):
        attach(guest, f"script=vif-route ip={address} gatewaydev=xenbr0", f"{address}/32")
        for other in {"10.99.0.1", *addresses} - {address}:
            guest.run(f"ip route add {other} dev eth1 src {address}")
        domid = lab.call("guests")[guest.name]
        assert f"{address} dev vif{domid}.1" in lab.do("ip route")
        lab.do(f"busybox ping -c 2 -W 3 {address}")
        assert reaches(guest, "10.99.0.1", f"-I {address}")
    assert reaches(guests[0], addresses[1], f"-I {addresses[0]}")
    assert reaches(guests[1], addresses[0], f"-I {addresses[1]}")
    for guest in guests:
        detach(guest)
    assert "10.96.0." not in lab.do("ip route")


def natted(lab, *guests):
    addresses = []
    for guest in guests:
        domid = lab.call("guests")[guest.name]
        network = f"10.{domid // 256}.{domid % 256}"
        attach(guest, "script=vif-nat", f"{network}.2/16", number=1)
        router = f"{network}.129"
        assert router in lab.do(f"ip addr show dev vif{domid}.1")
        assert reaches(guest, router)
        addresses.append(f"{network}.2")
    assert reaches(guests[0], addresses[1])
    assert reaches(guests[1], addresses[0])
    for guest in guests:
        detach(guest)
