"""Network namespaces, in which runs and agents find the links that a test made for them.

Links are looked at and changed with iproute2, which is nobody's code here.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLONE_NEWNET = 0x40000000
_names = itertools.count(1)
WITH_ETC = 'mount --bind "$1" /etc; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Netns:
    """A namespace with a name, as ``ip netns`` has them."""

    name: str
    etc: Path | None = None  # what a run finds as /etc, if that is another folder

    @property
    def launcher(self) -> tuple[str, ...]:
        """A command that runs another one in here, with this namespace's /sys."""
        command = ("ip", "netns", "exec", self.name)  # which makes a mount namespace as well
        if self.etc is None:
            return command
        return (*command, "sh", "-ec", WITH_ETC, "sh", str(self.etc))

    def ip(self, *words: str) -> str:
        command = ["ip", "-n", self.name, *words]
        done = subprocess.run(command, check=True, capture_output=True)
        return os.fsdecode(done.stdout)  # a link's name is any bytes

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        full = [*self.launcher, *command]
        return subprocess.run(full, check=check, capture_output=True, text=True)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and those that it starts, in here for a while."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as here:
            enter(here.fileno())
            try:
                yield
            finally:
                enter(home.fileno())

    def neighbours(self, link: str) -> dict[str, str]:
        """The permanent ones: address and MAC."""
        found = json.loads(self.ip("-j", "neigh", "show", "dev", link))
        return {one["dst"]: one["lladdr"] for one in found if "PERMANENT" in one["state"]}

    def proxied(self, link: str) -> set[str]:
        """The addresses that this host answers for on a link."""
        return {
            one["dst"] for one in json.loads(self.ip("-j", "neigh", "show", "proxy", "dev", link))
        }

    def setting(self, name: str) -> str:
        """A sysctl, e.g. ``ipv4/conf/vif5.0/proxy_arp``."""
        return self.run("cat", f"/proc/sys/net/{name}").stdout.strip()

    def links(self) -> dict[str, dict[str, Any]]:
        """Every link by name, as ``ip -j -d link`` describes it."""
        return {link["ifname"]: link for link in json.loads(self.ip("-j", "-d", "link"))}

    def addresses(self, link: str) -> list[str]:
        found = json.loads(self.ip("-j", "address", "show", "dev", link))
        return [f"{a['local']}/{a['prefixlen']}" for a in found[0]["addr_info"]]

    def routes(self) -> list[str]:
        return [line.strip() for line in self.ip("route").splitlines()]

    def routes_over(self, link: str) -> dict[str, tuple[int, str]]:
        """Metric and source address of each route over a link but the kernel's own."""
        found = {}
        for version in ("-4", "-6"):
            for route in json.loads(self.ip("-j", version, "route", "show", "dev", link)):
                if route.get("protocol") != "kernel":
                    source = route.get("prefsrc", "")
                    found[route["dst"]] = (route.get("metric", 0), source)
        return found

    def add_outside(self, name: str, address: str = "") -> None:
        """A link to the world, which has an address if one is given."""
        self.ip("link", "add", "name", name, "type", "bridge")  # any kind will do
        if address:
            self.ip("address", "add", address, "dev", name)
        self.ip("link", "set", "dev", name, "up")

    def add_bridge(self, name: str, mtu: int = 1500) -> None:
        self.ip("link", "add", "name", name, "mtu", str(mtu), "type", "bridge")
        self.ip("link", "set", "dev", name, "up")

    @staticmethod
    def peer(name: str) -> str:
        """The other end of a vif: the guest's card."""
        return f"g{name.removeprefix('vif')}"[:15]

    def add_vif(self, name: str, peer: str = "") -> str:
        """A link that stands for a vif, with its other end."""
        peer = peer or self.peer(name)
        self.ip("link", "add", "name", name, "type", "veth", "peer", "name", peer)
        return peer

    def add_tap(self, name: str) -> None:
        self.ip("tuntap", "add", "dev", name, "mode", "tap")

    def delete(self, *names: str) -> None:
        for name in names:
            if name in self.links():
                self.ip("link", "delete", "dev", name)


def enter(descriptor: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def netns(etc: Path | None = None) -> Iterator[Netns]:
    """A namespace of its own, gone afterwards with all that is in it."""
    made = Netns(f"xh-{os.getpid()}-{next(_names)}", etc)
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.ip("link", "set", "dev", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", made.name], check=True)
