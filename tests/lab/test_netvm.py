"""A driver domain for network cards: our agent there, in the place of ``xl devd``."""

from __future__ import annotations

import json

import pytest
from lab import driver_bench, netvm
from lab.guests import Guest
from lab.image import TREE
from lab.test_cards import attach, detach, reaches

SERVER = "10.99.0.1"  # of the bridge in the driver domain
CYCLES = 10
PATIENCE = 10.0  # seconds that libxl waits for a backend to go; then it fails, or just goes on
ROUNDS = 3
PORTS = "ls /sys/class/net/xenbr0/brif"


def served(server, name, number):
    """A guest whose card is on a bridge of the driver domain."""
    card = f"bridge=xenbr0,backend={server.name}"
    return Guest(server.machine, name, address=f"10.99.0.{number}", vifs=[card])


@pytest.mark.long
def test_a_netvm_serves_guests(lab, server):
    """Guests from before and after the agent, which is killed and started again meanwhile."""
    early, late = served(server, "early", 2), served(server, "late", 3)
    early.start()
    assert not reaches(early, SERVER)  # nobody has made its card a port yet
    netvm.start_agent(server)
    early.run("until ping -c 1 -W 1 10.99.0.1; do :; done >/dev/null")
    late.start()
    assert reaches(late, SERVER)
    assert reaches(late, early.address)

    netvm.end(server, netvm.AGENT, 9)
    assert reaches(early, late.address)
    netvm.start_agent(server)
    assert reaches(early, late.address)
    a_frontend_reconnects(late, server)
    cards_come_and_go(late, server)
    a_flushed_ruleset(late, server)
    assert reaches(late, early.address)
    gone_while_no_agent_ran(early, server)
    took = lab.dom0(f"xl destroy {late.name}")
    assert took.status == 0, str(took)
    assert took.seconds < PATIENCE
    netvm.await_nothing(server)


def a_frontend_reconnects(guest, server):
    """Its driver goes and comes back. The backend's state is 6 meanwhile: that is no removal."""
    before = server.run(f"{PORTS}; cat /run/xen-hotplug/journal/*")
    domid = guest.machine.call("guests")[guest.name]
    state = f"$(xenstore-read backend/vif/{domid}/0/state)"
    guest.run("echo vif-0 >/sys/bus/xen/drivers/vif/unbind")
    server.run(f"until [ {state} = 6 ]; do sleep 0.1; done", limit=30)
    server.run("sleep 2")  # time for what must not happen
    assert server.run(f"{PORTS}; cat /run/xen-hotplug/journal/*") == before
    guest.run(
        "echo vif-0 >/sys/bus/xen/drivers/vif/bind;"
        " until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done;"
        f" ip addr add {guest.address}/24 dev eth0; ip link set eth0 up"
    )
    server.run(f"until [ {state} = 4 ]; do sleep 0.1; done", limit=30)
    assert server.run(f"{PORTS}; cat /run/xen-hotplug/journal/*") == before
    assert reaches(guest, SERVER)


def cards_come_and_go(guest, server):
    """Nothing is left of ten cards that were held to an address, and no process was started.

    What the kernel itself starts for a card is not ours, and is all that there is.
    """
    card = f"backend={server.name} bridge=xenbr0 ip=10.99.0.4"
    attach(guest, card)  # the first of its kind
    detach(guest)
    before = server.run(f"{PORTS}; ls /run/xen-hotplug/journal")
    so_far = netvm.trace(server)
    for _ in range(CYCLES):
        attach(guest, card)
        took = guest.machine.dom0(f"xl network-detach {guest.name} 1")
        assert took.status == 0, str(took)
        assert took.seconds < PATIENCE
    tasks, count = netvm.traced(server)
    assert [line for line in tasks if netvm.BY_KERNEL not in line] == []
    assert count - so_far == len(tasks)
    assert len(tasks) >= CYCLES  # of netback's, so that these points do tell
    assert server.run(f"{PORTS}; ls /run/xen-hotplug/journal") == before
    assert server.run("nft list tables") == ""
    assert server.run("xenstore-ls backend/vif | grep -c online") == "2"


def a_flushed_ruleset(guest, server):
    """The agent holds a guest to its address again."""
    attach(guest, f"backend={server.name} bridge=xenbr0 ip=10.99.0.4")
    before = server.run("nft list table bridge xen_hotplug")
    server.run("nft flush ruleset; until nft list table inet xen_hotplug; do sleep 0.1; done")
    assert server.run("nft list table bridge xen_hotplug") == before
    detach(guest)


def gone_while_no_agent_ran(guest, server):
    """libxl waits in vain and deletes the backend itself; the next agent takes back the rest."""
    count = "ls /run/xen-hotplug/journal | wc -l"
    netvm.end(server, netvm.AGENT, 9)
    guest.machine.do(f"xl destroy {guest.name}")
    assert server.run("xenstore-ls backend/vif | grep -c online") == "1"
    assert server.run(count) == "2"
    netvm.start_agent(server)
    server.run(f"until [ $({count}) = 1 ]; do sleep 0.1; done")
    assert server.run("xenstore-ls backend/vif | grep -c online") == "1"


@pytest.mark.long
def test_a_netvm_is_started_again(lab, server):
    """Its guests run on: each loses its card, and gets one of the new domain's."""
    guests = [served(server, "one", 2), served(server, "two", 3)]
    netvm.start_agent(server)
    for guest in guests:
        guest.start()
        assert reaches(guest, SERVER)
    server.destroy()
    for guest in guests:
        detach(guest, 0)
    server.start()
    netvm.start_agent(server)
    for guest in guests:
        attach(guest, f"bridge=xenbr0 backend={server.name}", f"{guest.address}/24", 0)
        assert reaches(guest, SERVER)
    assert reaches(guests[0], guests[1].address)
    for guest in guests:
        guest.destroy()
    netvm.await_nothing(server)


@pytest.mark.long
def test_it_refuses_to_run_beside_devd(server):
    netvm.start_devd(server)
    said = server.run(f"{netvm.AGENT} --driver-domain 2>&1; echo status=$?")
    assert "already serves this domain's devices" in said
    assert said.endswith("status=1")
    netvm.end(server, netvm.DEVD)
    netvm.start_agent(server)


@pytest.mark.long
def test_connected_sooner_than_by_devd(lab):
    """The stock vif-bridge, run by xl devd, in the same domain."""
    found = driver_bench.measure(lab, ROUNDS, turns=1)
    path = TREE / "build" / "bench" / f"lab-driver-domain-{lab.image.release.xen}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    assert max(found["ours"]["connected_s"]) < min(found["devd"]["connected_s"])
    assert found["ours"]["processes"] == 0 < found["devd"]["processes"]
