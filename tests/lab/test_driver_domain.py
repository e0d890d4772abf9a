"""A driver domain: our agent serves guests' disks there in place of ``xl devd``."""

from __future__ import annotations

from lab import netvm
from lab.guests import Disk, Guest


def test_it_serves_a_disk(lab, server):
    server.run("head -c 65536 /dev/urandom >/tmp/served.img")
    netvm.start_agent(server)
    guest = Guest(lab, "served", [Disk("xvda", "/tmp/served.img", backend=server.name)])
    guest.start()
    assert guest.run("sha256sum </dev/xvda") == server.run("sha256sum </tmp/served.img")
    assert "/tmp/served.img" in server.run("losetup -a")
    guest.destroy()
    assert server.run("losetup -a; ls -A /run/xen-hotplug/journal") == ""
