"""A driver domain for network cards: our agent there, in the place of ``xl devd``."""

from __future__ import annotations

import json
import statistics

import pytest
from lab.guests import Guest, driver_domain
from lab.image import TREE
from lab.test_cards import attach, detach, reaches

SERVER = "10.99.0.1"  # of the bridge in the driver domain
AGENT = "setsid xen-hotplug agent --driver-domain </dev/null >>/run/agent.log 2>&1 & sleep 2"
DEVD = "xl devd -F </dev/null >/run/devd.log 2>&1 & sleep 2"
PID = "$(pgrep -f 'xen-hotplug agent')"
SPAWNED = "/tmp/spawned"
WATCH = f"strace -f -qq -e trace=execve,fork,vfork -o {SPAWNED} -p {PID} >/dev/null 2>&1 & sleep 2"
ROUNDS = 5
STOCK = "vif-bridge"


@pytest.fixture
def netvm(lab):
    guest = driver_domain(lab)
    guest.start()
    yield guest
    guest.destroy()


def served(lab, name, number, netvm):
    """A guest whose card is on a bridge of the driver domain."""
    card = f"bridge=xenbr0,backend={netvm.name}"
    return Guest(lab, name, address=f"10.99.0.{number}", vifs=[card])


def test_a_netvm_serves_guests(lab, netvm):
    """Guests from before and after the agent; it is restarted; no process is started per event."""
    early = served(lab, "early", 2, netvm)
    early.start()
    assert not reaches(early, SERVER)  # nobody has made its card a port yet
    netvm.run(AGENT)
    assert reaches(early, SERVER)
    late = served(lab, "late", 3, netvm)
    late.start()
    assert reaches(late, "10.99.0.2")

    netvm.run(f"kill -9 {PID}; sleep 1; {AGENT}")
    assert reaches(early, "10.99.0.3")
    netvm.run(WATCH)
    ports = "ls /sys/class/net/xenbr0/brif"
    there = netvm.run(ports)
    for _ in range(3):
        attach(late, f"backend={netvm.name} bridge=xenbr0 ip=10.99.0.4", "10.99.0.4/32")
        detach(late)
    assert netvm.run(ports) == there
    assert netvm.run(f"pkill strace; sleep 1; cat {SPAWNED}") == ""
    early.destroy()
    late.destroy()
    assert netvm.run(f"{ports}; ls -A /run/xen-hotplug/journal; nft list tables") == ""
    assert netvm.run("xenstore-ls backend | grep -c online || true") == "0"


def test_beside_devd(lab, netvm):
    """How long from a backend's event to ``connected``: ours, and the stock script by xl devd."""
    guest = served(lab, "guest", 2, netvm)
    netvm.run(AGENT)
    guest.start()
    took = {"ours": timed(guest, netvm)}
    netvm.run(f"kill {PID}; sleep 2")
    netvm.run(DEVD)
    took["devd"] = timed(guest, netvm)
    medians = {side: statistics.median(times) for side, times in took.items()}
    assert medians["ours"] < medians["devd"], took
    path = TREE / "build" / "bench" / f"lab-driver-domain-{lab.image.release.xen}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**took, "p50": medians}))
    guest.destroy()


def timed(guest, netvm):
    """Seconds from InitWait to ``connected``, by a watch in dom0."""
    machine = guest.machine
    found = []
    for _ in range(ROUNDS):
        domid = machine.call("guests")[guest.name]
        home = f"/local/domain/{machine.call('guests')[netvm.name]}/backend/vif/{domid}/1"
        machine.do(f"python3 -IS /lab/connected.py {home} >/tmp/connected &")
        attach(guest, f"backend={netvm.name} bridge=xenbr0")
        machine.wait_for("[ -s /tmp/connected ]", "it is connected", 60)
        found.append(float(machine.do("cat /tmp/connected; rm /tmp/connected")))
        detach(guest)
    return found
