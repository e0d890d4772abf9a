"""A driver domain: our agent serves guests' disks there in place of ``xl devd``."""

from __future__ import annotations

import pytest
from lab.guests import Disk, Guest, driver_domain

AGENT = "setsid xen-hotplug agent --driver-domain </dev/null >/run/agent.log 2>&1 & sleep 1"


@pytest.fixture
def server(lab):
    guest = driver_domain(lab)
    guest.start()
    yield guest
    guest.destroy()


def test_it_serves_a_disk(lab, server):
    server.run("head -c 65536 /dev/urandom >/tmp/served.img")
    server.run(AGENT)
    guest = Guest(lab, "served", [Disk("xvda", "/tmp/served.img", backend=server.name)])
    guest.start()
    assert guest.run("sha256sum </dev/xvda") == server.run("sha256sum </tmp/served.img")
    assert "/tmp/served.img" in server.run("losetup -a")
    guest.destroy()
    assert server.run("losetup -a; ls -A /run/xen-hotplug/journal") == ""
