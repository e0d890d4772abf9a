"""vif-bridge: lines 96 to 111 of the checklist, with real links in a network namespace."""

from __future__ import annotations

from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused

PORT_MAC = "fe:ff:ff:ff:ff:ff"


def assert_port(net, link, bridge="xenbr0", mtu=1500):
    found = net.links()[link]
    assert (found.get("master"), found["address"], found["mtu"]) == (bridge, PORT_MAC, mtu)
    assert "UP" in found["flags"]


@K_CARD
def test_bridge_online_sequence(card_runner, net, card):
    """96: down, MAC, flush, MTU, enslave, up, then status connected last."""
    backend = card()
    net.ip("address", "add", "10.9.9.9/24", "dev", backend.link)
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)
    assert not [a for a in net.addresses(backend.link) if not a.startswith("fe80:")]
    assert backend.read("hotplug-status") == b"connected"


@K_CARD
def test_bridge_offline(card_runner, net, card):
    """98: port down and released, exit 0, no write."""
    backend = card()
    assert card_runner.online(backend).status == 0
    backend.close()
    before = backend.tree()
    assert card_runner.offline(backend).status == 0
    found = net.links()[backend.link]
    assert "master" not in found
    assert "UP" not in found["flags"]
    assert backend.tree() == before


@K_CARD
def test_bridge_missing_online(card_runner, card):
    """99: absent bridge: status error, text contains its name."""
    backend = card(bridge="nobridge")
    assert_refused(backend, card_runner.online(backend), "nobridge")


@F_CARD
def test_vlans_of_no_sense_are_refused(card_runner, net, card):
    """The key is named, and the link is left as it was (D59)."""
    backend = card(vlan="10/20")
    net.ip("link", "set", backend.link, "up")
    result = card_runner.online(backend)
    assert_refused(backend, result, f"{backend.relative}/vlan is '10/20', which has no PVID")
    assert "UP" in net.links()[backend.link]["flags"]


@F_CARD
def test_vlans_need_a_bridge_that_heeds_them(card_runner, net, card):
    """A guest that shall be in a VLAN never gets onto the bridge without one (D59)."""
    backend = card(vlan="10")
    assert_refused(backend, card_runner.online(backend), backend.link, "VLANs")
    found = net.links()[backend.link]
    assert "master" not in found
    assert "UP" not in found["flags"]
