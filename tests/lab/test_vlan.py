"""VLANs on a real bridge: dom0's kernel filters, which many a developer's kernel does not.

No guest is needed: veth pairs stand for the cards, and network namespaces for the guests.
"""

from __future__ import annotations

import json

import pytest

DOMID = 900  # nobody's
BRIDGE = "vlanbr"
SCRIPT = "/etc/xen/scripts/vif-bridge"
# A guest's card, its VLANs, and the tag that the guest itself uses.
GUESTS = {0: ("10", None), 1: ("10p/20-22", None), 2: ("30p/10+10x1", 10), 3: ("20", None)}

LETTERS = {("Egress Untagged", "PVID"): "p", ("Egress Untagged",): "u", (): "t"}


def backend(number):
    return f"/local/domain/0/backend/vif/{DOMID}/{number}"


def link(number):
    return f"vif{DOMID}.{number}"


def run(machine, number, action):
    """The script, as libxl runs it."""
    variables = f"XENBUS_PATH=backend/vif/{DOMID}/{number} XENBUS_TYPE=vif vif={link(number)}"
    return machine.dom0(f"{variables} script={SCRIPT} {SCRIPT} {action} type_if=vif")


def write_keys(machine, number, vlan):
    keys = {
        "frontend-id": DOMID,
        "handle": number,
        "mac": f"00:16:3e:00:00:0{number}",
        "bridge": BRIDGE,
        "vlan": vlan,
        "state": 2,
    }
    words = " ".join(f"{backend(number)}/{key} '{value}'" for key, value in keys.items())
    machine.do(f"xenstore-write {backend(number)} '' {words}")


def plug(machine, number):
    """A guest in a namespace; its other end is a card."""
    name = f"guest{number}"
    machine.do(
        f"ip netns add {name}"
        f" && ip link add {link(number)} type veth peer name eth0 netns {name}"
        f" && ip -n {name} link set eth0 up"
    )
    tag, device = GUESTS[number][1], "eth0"
    if tag is not None:
        device = f"eth0.{tag}"
        machine.do(
            f"ip -n {name} link add link eth0 name {device} type vlan id {tag}"
            f" && ip -n {name} link set {device} up"
        )
    machine.do(f"ip -n {name} address add 10.98.0.{number + 1}/24 dev {device}")


def vlans(machine, number):
    """What the kernel says of a port: a VLAN's letter, as in the key, or t for a tag."""
    found = json.loads(machine.do("bridge -j vlan show"))
    (port,) = [entry for entry in found if entry["ifname"] == link(number)]
    return {
        vlan: LETTERS[tuple(sorted(entry.get("flags", ())))]
        for entry in port["vlans"]
        for vlan in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)
    }


def reaches(machine, number, other):
    command = f"ip netns exec guest{number} busybox ping -c 2 -W 3 10.98.0.{other + 1}"
    return machine.dom0(command).status == 0


@pytest.fixture
def cards(lab):
    lab.do(f"ip link add {BRIDGE} type bridge vlan_filtering 1 && ip link set {BRIDGE} up")
    for number, (vlan, _) in GUESTS.items():
        plug(lab, number)
        write_keys(lab, number, vlan)
    yield lab
    for number in GUESTS:
        assert run(lab, number, "offline").status == 0
        lab.do(f"ip link delete {link(number)}; ip netns delete guest{number}")
        lab.do(f"xenstore-rm {backend(number)}")
    lab.do(f"xenstore-rm /local/domain/0/backend/vif/{DOMID}; ip link delete {BRIDGE}")


def test_a_port_is_in_exactly_its_vlans(cards):
    """And guests reach each other through these alone."""
    for number in GUESTS:
        result = run(cards, number, "online")
        assert result.status == 0, result
    assert vlans(cards, 0) == {10: "p"}
    assert vlans(cards, 1) == {10: "p", 20: "t", 21: "t", 22: "t"}
    assert vlans(cards, 2) == {10: "t", 20: "t", 30: "p"}
    assert reaches(cards, 0, 1)
    assert reaches(cards, 0, 2)
    assert not reaches(cards, 0, 3)
    assert not reaches(cards, 3, 1)

    cards.do(f"xenstore-write {backend(1)}/vlan 1-4094u/20p")
    assert run(cards, 1, "online").status == 1
    cards.do(f"xenstore-write {backend(1)}/vlan 2/20p")
    assert run(cards, 1, "online").status == 0
    assert vlans(cards, 1) == {2: "t", 20: "p"}
    assert reaches(cards, 3, 1)
    assert not reaches(cards, 0, 1)


def test_all_vlans_and_many_single_ones(cards):
    write_keys(cards, 0, "1p/2-4094u")
    assert run(cards, 0, "online").status == 0
    assert vlans(cards, 0) == {1: "p", **dict.fromkeys(range(2, 4095), "u")}
    write_keys(cards, 0, "1+2x2046/2p")
    assert run(cards, 0, "online").status == 0
    assert vlans(cards, 0) == {2: "p", **dict.fromkeys(range(1, 4094, 2), "t")}


def test_a_port_whose_vlans_are_no_more_has_the_bridges_own(cards):
    assert run(cards, 0, "online").status == 0
    cards.do(f"xenstore-rm {backend(0)}/vlan")
    assert run(cards, 0, "online").status == 0
    assert vlans(cards, 0) == {1: "p"}
    cards.do(f"bridge vlan add dev {link(0)} vid 77")  # whoever does this wants it
    assert run(cards, 0, "online").status == 0
    assert vlans(cards, 0) == {1: "p", 77: "t"}


def test_a_bridge_that_heeds_no_vlans_is_left_alone(cards):
    cards.do(f"ip link set {BRIDGE} type bridge vlan_filtering 0")
    assert run(cards, 0, "online").status == 1
    text = cards.do(f"xenstore-read {backend(0)}/hotplug-error")
    assert f"ip link set {BRIDGE} type bridge vlan_filtering 1" in text
    settings = json.loads(cards.do(f"ip -j -d link show {BRIDGE}"))[0]["linkinfo"]["info_data"]
    assert settings["vlan_filtering"] == 0
    assert "master" not in json.loads(cards.do(f"ip -j link show {link(0)}"))[0]
