"""A side of a scenario with network cards: built for real, acted on, looked at, made like another.

Links are looked at with iproute2, and filters with nft and iptables: nobody's code here.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from differential.cards import USUAL, Card, Extras, Link, Move, Readdress, Run, Seen, Write
from differential.dhcp import Files
from harness.cards import bridge_netfilter
from harness.guests import Guest
from harness.locks import wait_until

if TYPE_CHECKING:
    from differential.cards import Operation, Scenario
    from harness.guests import Backend
    from harness.netns import Netns
    from harness.run import Result, Runner

BRIDGES = {"xenbr0": 1500, "br-jumbo": 9000, "eth7": 1500}
OUTSIDE = {"eth0": "192.0.2.1", "eth1": "198.51.100.1", "eth2": ""}  # to the world
LOOK = "link|address|route|neigh show nud permanent|neigh show proxy|netconf".replace("|", "\n")
FILTERS = "nft -j list ruleset; iptables -S FORWARD"
ACCEPT = "-A FORWARD -m physdev --physdev-in {} --physdev-is-bridged -j ACCEPT"


@dataclass(slots=True)
class Side:
    """A side for one scenario."""

    runner: Runner
    net: Netns
    scenario: Scenario
    script: str = "vif-bridge"
    backends: list[Backend] = field(default_factory=list)
    of: dict[int, str] = field(default_factory=dict)  # index of a link -> which it is
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.files = Files(self.net.etc, self.scenario.server)

    # Building

    def build(self) -> None:
        self.files.make()
        lines = []
        for number, card in enumerate(self.scenario.cards):
            backend = self._make_backend(number, card)
            lines += self._links(number, card, backend.link)
            if card.accepted:
                self.net.run("iptables", *ACCEPT.format(backend.link).split())
            self.backends.append(backend)
        self.batch(*lines)
        numbers = {link["ifname"]: link["ifindex"] for link in self._ask("link")[0]}
        for number, backend in enumerate(self.backends):
            self.of[numbers[backend.link]] = f"{number} vif"
            self.of[numbers[f"{backend.link}-emu"]] = f"{number} tap"

    def _make_backend(self, number: int, card: Card) -> Backend:
        keys = {
            "bridge": card.bridge,
            "mtu": card.mtu,
            "vifname": card.vifname,
            "ip": card.ip,
            "handle": card.handle,
            "gatewaydev": card.gatewaydev,
            "hotplug-error": card.error,
            **({} if card.mac == USUAL else {"mac": card.mac}),
        }
        guest = Guest(self.runner.place.store, domid=number + 1, vm=f"/vm/{number}")
        backend = guest.card(script=f"/etc/xen/scripts/{self.script}", keys=keys)
        if not card.frontend:
            guest.store.remove(backend.frontend)
        return backend

    @staticmethod
    def _links(number: int, card: Card, link: str) -> list[str]:
        lines = [
            f"link add {link} type veth peer name g{number}",
            f"link add {link}-emu type veth peer name t{number}",
        ]
        if card.address or card.idle:
            lines += [f"address add 10.7.{number}.1/24 dev {link}"]
        if card.address:
            lines += [f"link set {link} up", f"link set {link}-emu up"]
        return lines

    def batch(self, *lines: str) -> None:
        command = ["ip", "-n", self.net.name, "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), check=True, capture_output=True, text=True)

    # Doing

    def perform(self, operation: Operation) -> Seen:
        backend = self.backends[operation.card % len(self.backends)]
        status = 0
        match operation:
            case Run():
                status = self._run(backend, operation).status
            case Move(bridge=bridge):
                name = name_of(self.links(), backend)
                if name is not None:
                    self.batch(f"link set {name} {f'master {bridge}' if bridge else 'nomaster'}")
            case Write(ip=ip):
                backend.write("ip", ip)
            case Readdress(address=address):
                self._readdress(address)
        return self.look(status)

    def _run(self, backend: Backend, run: Run) -> Result:
        card = self.scenario.cards[self.backends.index(backend)]
        parameters = dict(card.parameters)
        options: dict[str, Any] = {"variables": parameters}
        if card.as_words:
            options = {"words": tuple(f"{key}={value}" for key, value in parameters.items())}
        if run.action == "online":
            return self.runner.online(backend, **options)
        if run.action == "offline":
            result = self.runner.offline(backend, **options)
            backend.write("state", 2)  # it may come again
            backend.write("online", 1)
            return result
        return self.runner.tap(backend, run.action, **options)

    def _readdress(self, address: str) -> None:
        added = [f"address add {address}/24 dev eth0"] if address else []
        self.batch("address flush dev eth0", *added)

    # Looking

    def look(self, status: int = 0) -> Seen:
        filters = self.net.run("sh", "-c", FILTERS).stdout
        ruleset, end = json.JSONDecoder().raw_decode(filters)
        found = self._ask(LOOK)
        host = {
            "FORWARD": tuple(filters[end:].strip().splitlines()[1:]),
            "forwarding": [one["forwarding"] for one in found[5] if one["interface"] == "all"],
            "outside": {
                one["ifname"]: own["local"]
                for one in found[1]
                if one["ifname"] in OUTSIDE
                for own in one["addr_info"]
                if own["family"] == "inet"
            },
            **self.files.read(),
        }
        store = self.runner.place.store.tree("/local/domain")
        return Seen(status, self._links_in(found), store, host, self._extras(found, ruleset))

    def links(self) -> dict[str, Link]:
        """Without what every namespace numbers and names in its own way."""
        return self._links_in(self._ask(LOOK))

    def _ask(self, questions: str) -> list[list[dict[str, Any]]]:
        command = ["ip", "-n", self.net.name, "-j", "-d", "-batch", "-"]
        done = subprocess.run(command, input=questions, check=True, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _links_in(self, found: list[list[dict[str, Any]]]) -> dict[str, Link]:
        links, addresses, routes = found[:3]
        routes = [*routes, *json.loads(self.net.ip("-j", "-6", "route"))]
        proxies = {
            one["interface"] for one in found[5] if one["family"] == "inet" and one["proxy_neigh"]
        }
        own = {one["ifindex"]: one["addr_info"] for one in addresses}
        return {
            name: Link(
                self.of[link["ifindex"]],
                "UP" in link["flags"],
                link["address"] if link["address"].startswith("fe:ff") else "",
                link["mtu"],
                link.get("master"),
                tuple(
                    f"{one['local']}/{one['prefixlen']}"
                    for one in own[link["ifindex"]]
                    if one["scope"] == "global"
                ),
                routes_over(name, routes),
                name in proxies,
            )
            for link in links
            if link["ifindex"] in self.of
            for name in (link["ifname"],)
        }

    def _extras(self, found: list[list[dict[str, Any]]], ruleset: dict[str, Any]) -> Extras:
        which = {link["ifname"]: self.of.get(link["ifindex"], "") for link in found[0]}
        maps = [item["map"] for item in ruleset["nftables"] if "map" in item]
        return Extras(
            frozenset(element[0] for one in maps for element in one.get("elem", ())),
            frozenset(
                (which[one["dev"]], one["dst"], one["lladdr"])
                for one in found[3]
                if which[one["dev"]]
            ),
            frozenset((one["dev"], one["dst"]) for one in found[4]),
        )

    # Making it like another

    def become(self, other: Seen) -> None:
        """Have links, store and files as the other side has them, but for what only ours has."""
        mine = self.look()
        store = self.runner.place.store
        for key in mine.store.keys() | other.store.keys():
            if key not in other.store:
                store.remove(f"/local/domain/{key}")
            elif mine.store.get(key) != other.store[key]:
                store.write(f"/local/domain/{key}", other.store[key])
        self.files.write(other.host)
        self._become_linked(mine.links, other.links)
        if mine.host["FORWARD"] != other.host["FORWARD"]:
            self.net.run("iptables", "-F", "FORWARD")
            for rule in other.host["FORWARD"]:
                self.net.run("iptables", *rule.split())
        left = self.look()._replace(extras=other.extras, status=other.status)
        assert left == other

    def _become_linked(self, mine: dict[str, Link], wanted: dict[str, Link]) -> None:
        names = {link.of: name for name, link in mine.items()}
        changed = {name: names[link.of] for name, link in wanted.items() if mine.get(name) != link}
        temporary = {name: f"tmp{number}" for number, name in enumerate(changed)}
        lines = []
        for name, now in changed.items():
            lines += [f"link set {now} down", f"link set {now} nomaster"]
            lines += [f"address flush dev {now}", f"link set {now} name {temporary[name]}"]
        for name in changed:
            link = wanted[name]
            master = f"master {link.master}" if link.master else "nomaster"
            mac = f"address {link.mac}" if link.mac else ""
            lines += [f"link set {temporary[name]} name {name}"]
            lines += [f"link set {name} mtu {link.mtu} {mac} {master}"]
            lines += [f"address add {address} dev {name}" for address in link.addresses]
            lines += [f"link set {name} up"] if link.up else []
        for name in changed:
            for destination, metric, source in wanted[name].routes:
                src = f"src {source}" if source else ""
                lines += [f"route replace {destination} dev {name} metric {metric} {src}"]
        self.batch(*lines)
        for name in changed:
            setting = f"net/ipv4/conf/{name}/proxy_arp={int(wanted[name].proxy)}"
            self.net.run("sysctl", "-qw", setting)

    def tear_down(self) -> None:
        self.batch(*(f"link delete {name}" for name in self.links()))
        if any(isinstance(operation, Readdress) for operation in self.scenario.operations):
            self._readdress(OUTSIDE["eth0"])
        if any(card.accepted for card in self.scenario.cards):
            self.net.run("iptables", "-F", "FORWARD")
        for path in ("/local/domain", "/vm", "/libxl"):
            self.runner.place.store.remove(path)
        journal = self.runner.place.rundir / "journal"
        if self.runner.agent is not None:
            wait_until(lambda: not any(journal.iterdir()), "the agent has reclaimed everything")
        for left in journal.iterdir() if journal.exists() else ():
            left.unlink()
        if self.runner.agent is None:  # nobody takes back what outlives a link
            self.net.run("nft", "flush", "ruleset")
            proxied = self.look().extras.proxied
            self.batch(*(f"neigh del proxy {address} dev {link}" for link, address in proxied))
        self.files.remove()  # the agent may have had entries there to take back
        self.runner.place.syslog.take()


def prepare(net: Netns) -> None:
    """What every scenario with bridges finds in a namespace."""
    bridge_netfilter(net, on=False)
    for name, mtu in BRIDGES.items():
        net.add_bridge(name, mtu)


def prepare_outside(net: Netns) -> None:
    """What every scenario with routes finds there."""
    for name, address in OUTSIDE.items():
        net.add_outside(name, address and f"{address}/24")


def routes_over(name: str, routes: list[dict[str, Any]]) -> tuple[tuple[str, int, str], ...]:
    """All but the kernel's own."""
    found = [
        (route["dst"], route.get("metric", 0), route.get("prefsrc", ""))
        for route in routes
        if route.get("dev") == name and route.get("protocol") != "kernel"
    ]
    return tuple(sorted(found))


def name_of(links: dict[str, Link], backend: Backend) -> str | None:
    vifname = (backend.read("vifname") or b"").decode()
    return next((name for name in (backend.link, vifname) if name in links), None)
