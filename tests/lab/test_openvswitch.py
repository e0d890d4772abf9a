"""Cards on Open vSwitch, with the kernel's datapath, which elsewhere no test has."""

from __future__ import annotations

import pytest
from lab.guests import Guest
from lab.test_cards import attach, detach, reaches

CONTROL = "/usr/share/openvswitch/scripts/ovs-ctl"
SCRIPT = "script=vif-openvswitch"
SWITCH, NET = "ovs0", "10.95.0"
CYCLES = 5


@pytest.fixture
def switch(lab):
    lab.do(f"{CONTROL} start --system-id=random", limit=240)
    lab.do(
        f"ovs-vsctl add-br {SWITCH} && ip addr add {NET}.1/24 dev {SWITCH}"
        f" && ip addr add 10.94.0.1/24 dev {SWITCH} && ip link set {SWITCH} up"
    )
    yield SWITCH
    lab.do(f"ovs-vsctl del-br {SWITCH} && {CONTROL} stop")


def ports(machine):
    return machine.do(f"ovs-vsctl list-ports {SWITCH}").split()


@pytest.mark.long
def test_guests_on_a_switch(lab, switch):
    """They reach each other and dom0; VLANs part them; nothing is left of cards that went."""
    first = Guest(lab, "switched", address=f"{NET}.2", vifs=[f"bridge={switch},{SCRIPT}"])
    second = Guest(lab, "switched2", address=f"{NET}.3", vifs=[f"bridge={switch},{SCRIPT}"])
    first.start()
    second.start()
    assert reaches(first, f"{NET}.1")
    assert reaches(first, f"{NET}.3")
    there = ports(lab)
    assert len(there) == 2
    assert all(port in lab.do("ovs-dpctl show") for port in there)

    for guest, number in ((first, 2), (second, 3)):
        attach(guest, f"bridge={switch}.100 {SCRIPT}", f"10.94.0.{number}/24")
    assert reaches(first, "10.94.0.3")
    assert not reaches(first, "10.94.0.1")  # dom0's end is in no VLAN
    for guest in (first, second):
        detach(guest)
    for _ in range(CYCLES):
        attach(first, f"bridge={switch} {SCRIPT} vifname=web")
        assert ports(lab) == sorted([*there, "web"])
        detach(first)
    assert ports(lab) == there
    first.destroy()
    lab.wait_for(f"[ $(ovs-vsctl list-ports {SWITCH} | wc -l) = 1 ]", "its port is gone", 20)
    second.destroy()
    assert ports(lab) == []
