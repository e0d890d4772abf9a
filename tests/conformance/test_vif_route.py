"""vif-route: lines 118 and 119 of the checklist, with real links in a network namespace."""

from __future__ import annotations

import pytest
from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused
from harness.rules import guarded

SCRIPT = "/etc/xen/scripts/vif-route"
OUTSIDE = {"eth0": "192.0.2.1", "eth1": "198.51.100.1"}


@pytest.fixture(autouse=True)
def outside(net):
    """The links to the world; eth2 has no address."""
    for name, address in {**OUTSIDE, "eth2": ""}.items():
        net.add_outside(name, address and f"{address}/24")
    yield
    net.delete(*OUTSIDE, "eth2")


@pytest.fixture
def routed(card):
    """Make cards whose script is vif-route."""

    def make(**keys):
        return card(script=SCRIPT, bridge=None, **keys)

    return make


@K_CARD
@pytest.mark.parametrize("gateway", [None, "", *OUTSIDE])
def test_route_metrics(card_runner, net, routed, gateway):
    """118: one route per ip word, metric 2 for vif, 1 for tap, gateway device netdev or eth0."""
    address = OUTSIDE[gateway or "eth0"]
    backend = routed(tap=True, ip="10.0.0.2 10.1.0.0/16")
    variables = {"netdev": gateway}
    assert card_runner.online(backend, variables=variables).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert card_runner.tap(backend, "add", variables=variables).status == 0
    for link, metric in ((backend.link, 2), (f"{backend.link}-emu", 1)):
        expected = {"10.0.0.2": (metric, address), "10.1.0.0/16": (metric, address)}
        assert net.routes_over(link) == expected
        assert f"{address}/32" in net.addresses(link)
        assert "UP" in net.links()[link]["flags"]
        assert net.setting(f"ipv4/conf/{link}/proxy_arp") == "1"
    assert card_runner.tap(backend, "remove", variables=variables).status == 0
    assert card_runner.offline(backend, variables=variables).status == 0
    assert net.routes_over(backend.link) == net.routes_over(f"{backend.link}-emu") == {}


@K_CARD
def test_route_without_addresses(card_runner, net, routed):
    """118: no word, no route."""
    backend = routed()
    assert card_runner.online(backend).status == 0
    assert net.routes_over(backend.link) == {}
    assert f"{OUTSIDE['eth0']}/32" in net.addresses(backend.link)


@F_CARD
def test_route_gateway_from_the_store(card_runner, net, routed):
    """118: where no toolstack sets netdev, as in a driver domain, gatewaydev is read."""
    backend = routed(ip="10.0.0.2", gatewaydev="eth1")
    assert card_runner.online(backend).status == 0
    assert net.routes_over(backend.link) == {"10.0.0.2": (2, OUTSIDE["eth1"])}


@F_CARD
def test_route_offline_best_effort(card_runner, net, routed):
    """119: gateway device without address: exit 0 (D44)."""
    backend = routed(ip="10.0.0.2")
    assert card_runner.online(backend).status == 0
    net.ip("address", "flush", "dev", "eth0")
    assert card_runner.offline(backend).status == 0
    assert net.routes_over(backend.link) == {}
    assert net.addresses(backend.link) == []
    assert "UP" not in net.links()[backend.link]["flags"]
    net.delete(backend.link)
    assert card_runner.offline(backend).status == 0


@F_CARD
def test_route_repeatable(card_runner, net, routed):
    """119: online twice is as good as once, also with other addresses (D44)."""
    backend = routed(ip="10.0.0.2 2001:db8::2", vifname="guest")
    assert card_runner.online(backend).status == 0
    before = net.routes_over("guest"), net.addresses("guest"), net.neighbours("guest")
    assert card_runner.online(backend).status == 0
    assert (net.routes_over("guest"), net.addresses("guest"), net.neighbours("guest")) == before
    backend.write("ip", "10.0.0.3")
    net.ip("address", "flush", "dev", "eth0")
    net.ip("address", "add", "203.0.113.9/24", "dev", "eth0")
    assert card_runner.online(backend).status == 0
    assert net.routes_over("guest") == {"10.0.0.3": (2, "203.0.113.9")}
    assert [a for a in net.addresses("guest") if ":" not in a] == ["203.0.113.9/32"]
    assert net.proxied("eth0") == set()


@F_CARD
def test_route_takes_over_a_route(card_runner, net, routed):
    """118: a stale route to the same address over another link is no hindrance."""
    net.ip("route", "add", "10.0.0.2", "dev", "eth1", "metric", "2")
    backend = routed(ip="10.0.0.2")
    assert card_runner.online(backend).status == 0
    assert "10.0.0.2" in net.routes_over(backend.link)
    assert "10.0.0.2" not in net.routes_over("eth1")


@F_CARD
def test_route_ipv6(card_runner, net, routed):
    """118: an IPv6 word is routed, and the gateway's link may answer for it."""
    backend = routed(ip="2001:db8::2 2001:db8:1::/64")
    assert card_runner.online(backend).status == 0
    expected = {"2001:db8::2": (2, ""), "2001:db8:1::/64": (2, "")}
    assert net.routes_over(backend.link) == expected
    assert net.proxied("eth0") == {"2001:db8::2"}
    assert card_runner.offline(backend).status == 0
    assert net.proxied("eth0") == set()
    assert net.routes_over(backend.link) == {}


@F_CARD
def test_route_ipv6_moves_to_the_next_guest(card_runner, net, routed):
    """119: a guest that is restored beside the old one keeps its address when that one goes."""
    former, new = routed(ip="2001:db8::2 2001:db8::3"), routed(ip="2001:db8::2")
    for backend in (former, new):
        assert card_runner.online(backend).status == 0
    assert card_runner.offline(former).status == 0
    assert "2001:db8::2" in net.routes_over(new.link)
    assert net.proxied("eth0") == {"2001:db8::2"}
    assert card_runner.offline(new).status == 0
    assert net.proxied("eth0") == set()


@F_CARD
def test_route_ipv6_off(card_runner, net, routed):
    """118: IPv6 that is off does not break IPv4."""
    backend = routed(ip="2001:db8::2 10.0.0.2")
    for link in (backend.link, "eth0"):
        net.run("sysctl", "-w", f"net/ipv6/conf/{link}/disable_ipv6=1")
    assert card_runner.online(backend).status == 0
    assert net.routes_over(backend.link) == {"10.0.0.2": (2, OUTSIDE["eth0"])}


@F_CARD
def test_route_fixed_neighbours(card_runner, net, routed):
    """118: who has a guest's address is not decided by ARP."""
    backend = routed(ip="10.0.0.2 10.1.0.0/16 2001:db8::2")
    assert card_runner.online(backend).status == 0
    mac = backend.read("mac").decode()
    assert net.neighbours(backend.link) == {"10.0.0.2": mac, "2001:db8::2": mac}


@F_CARD
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gatewaydev": "eth2"}, ["eth2", "gatewaydev"]),
        ({"gatewaydev": "eth9"}, ["eth9", "gatewaydev"]),
        ({"ip": "10.0.0.300"}, ["/ip", "10.0.0.300"]),
        ({"ip": "10.0.0.5/24"}, ["/ip", "10.0.0.5/24"]),
    ],
)
def test_route_refused(card_runner, net, routed, keys, words):
    """118: an error that says what is wrong, and nothing done."""
    backend = routed(**keys)
    assert_refused(backend, card_runner.online(backend), *words)
    assert "UP" not in net.links()[backend.link]["flags"]
    assert net.addresses(backend.link) == []


@K_CARD
def test_route_hooks_of_a_card_that_nobody_knows(card_runner, net, routed, hook):
    """115: at offline too, main_ip is the address of the gateway's link."""
    backend = routed(ip="10.0.0.2")
    seen = hook("seen", 'echo "$command $main_ip $ipcmd $metric"')
    assert card_runner.offline(backend).status == 0
    assert seen() == [f"offline {OUTSIDE['eth0']} del 2"]


@F_CARD
def test_route_hooks_where_the_gateway_has_no_address(card_runner, net, routed, hook):
    """115: what was set up is known; and what is not is no reason to leave the hooks out."""
    backend, never = routed(ip="10.0.0.2"), routed()
    assert card_runner.online(backend).status == 0
    net.ip("address", "flush", "dev", "eth0")
    seen = hook("seen", 'echo "$command <$main_ip>"')
    assert card_runner.offline(backend).status == 0
    assert card_runner.offline(never).status == 0
    assert seen() == [f"offline <{OUTSIDE['eth0']}>", "offline <>"]


@F_CARD
def test_route_undone(card_runner, net, routed):
    """116: a hook that fails takes everything back, the entries on the gateway's link too."""
    folder = card_runner.place.scripts / "vif-post.d"
    folder.mkdir(exist_ok=True)
    hook = folder / "fail.hook"
    hook.write_text('#!/bin/sh\necho "$main_ip $ipcmd $metric" >&2\nexit 3\n')
    hook.chmod(0o755)
    try:
        backend = routed(ip="10.0.0.2 2001:db8::2")
        result = card_runner.online(backend)
    finally:
        hook.unlink()
    assert_refused(backend, result, "fail.hook", f"{OUTSIDE['eth0']} add 2")
    assert net.routes_over(backend.link) == {}
    assert net.addresses(backend.link) == []
    assert net.proxied("eth0") == set()
    assert guarded(net) == set()
    assert card_runner.place.rundir.joinpath("journal").exists()
    assert not list(card_runner.place.rundir.joinpath("journal").iterdir())


@F_CARD
def test_route_guarded(card_runner, net, routed):
    """118: the guest is held to its addresses for as long as its links are up."""
    backend = routed(tap=True, ip="10.0.0.2 2001:db8::2", vifname="g")
    assert card_runner.online(backend).status == 0
    assert card_runner.tap(backend, "add").status == 0
    assert guarded(net) == {"g", "g-emu"}
    assert card_runner.tap(backend, "remove").status == 0
    assert guarded(net) == {"g"}
    assert card_runner.offline(backend).status == 0
    assert guarded(net) == set()
    assert "xen_hotplug" not in net.run("nft", "list", "tables").stdout
