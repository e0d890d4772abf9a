"""vif-bridge: lines 96 to 103 and 109 to 111 of the checklist, with real links in a namespace."""

from __future__ import annotations

import pytest
from harness.cards import assert_port, assert_released, frontend_mtu
from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused


@pytest.fixture
def bridge(net):
    """Make further bridges."""
    made = []

    def make(name, mtu=1500):
        net.add_bridge(name, mtu)
        made.append(name)

    yield make
    net.delete(*made)


@K_CARD
def test_bridge_online_sequence(card_runner, net, card):
    """96: down, MAC, flush, MTU, enslave, up, then status connected last."""
    backend = card()
    net.ip("address", "add", "10.9.9.9/24", "dev", backend.link)
    net.ip("address", "add", "10.9.9.10/24", "dev", backend.link)
    net.ip("link", "set", "dev", backend.link, "up")
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)
    assert not [a for a in net.addresses(backend.link) if not a.startswith("fe80:")]
    assert backend.read("hotplug-status") == b"connected"


@K_CARD
def test_bridge_tap_add(card_runner, net, card):
    """97: same port setup, no hotplug-status, no FE/mtu."""
    backend = card(tap=True, mtu=1400)
    tap = f"{backend.link}-emu"
    before = card_runner.place.store.tree("/local")
    assert card_runner.tap(backend, "add").status == 0
    assert_port(net, tap, mtu=1400)
    assert card_runner.place.store.tree("/local") == before
    assert card_runner.tap(backend, "remove").status == 0
    assert_released(net, tap)
    assert card_runner.place.store.tree("/local") == before


@K_CARD
def test_bridge_offline(card_runner, net, card):
    """98: port down and released, exit 0, no write."""
    backend = card()
    assert card_runner.online(backend).status == 0
    backend.close()
    before = card_runner.place.store.tree("/local")
    assert card_runner.offline(backend).status == 0
    assert_released(net, backend.link)
    assert card_runner.place.store.tree("/local") == before


@K_CARD
def test_bridge_offline_of_no_link(card_runner, net, card):
    """98: the driver may have been faster: exit 0, no write."""
    backend = card()
    assert card_runner.online(backend).status == 0
    net.delete(backend.link)
    backend.close()
    before = card_runner.place.store.tree("/local")
    assert card_runner.offline(backend).status == 0
    assert card_runner.place.store.tree("/local") == before


@K_CARD
def test_bridge_missing_online(card_runner, card):
    """99: absent bridge: status error, text contains its name."""
    backend = card(bridge="nobridge")
    assert_refused(backend, card_runner.online(backend), "nobridge")


@K_CARD
def test_bridge_missing_for_a_tap(card_runner, card):
    """99: a tap that fails says so in the backend of its vif."""
    backend = card(bridge="nobridge", tap=True)
    assert_refused(backend, card_runner.tap(backend, "add"), "nobridge")


@F_CARD
def test_bridge_missing_offline(card_runner, net, bridge, card, hook):
    """100: absent bridge: exit 0, firewall rules and hooks still processed (D34)."""
    bridge("br-doomed")
    backend = card(bridge="br-doomed")
    assert card_runner.online(backend).status == 0
    net.delete("br-doomed")
    backend.close()
    before = card_runner.place.store.tree("/local")
    seen = hook("seen", 'echo "$command $dev $bridge"')
    assert card_runner.offline(backend).status == 0
    assert seen() == [f"offline {backend.link} br-doomed"]
    assert card_runner.place.store.tree("/local") == before


@F_CARD
def test_offline_releases_from_the_actual_bridge(card_runner, net, bridge, card):
    """98: a port that was moved to another bridge does not stay there (D35)."""
    bridge("br-other")
    backend = card()
    assert card_runner.online(backend).status == 0
    net.ip("link", "set", "dev", backend.link, "master", "br-other")
    assert card_runner.offline(backend).status == 0
    assert_released(net, backend.link)


@K_CARD
def test_bridge_legacy_name(card_runner, net, bridge, card):
    """101: xenbr3 absent and eth3 a bridge: eth3 is used; xenbr3 present: it is used."""
    bridge("eth3")
    first = card(bridge="xenbr3")
    assert card_runner.online(first).status == 0
    assert_port(net, first.link, "eth3")
    bridge("xenbr3")
    second = card(bridge="xenbr3")
    assert card_runner.online(second).status == 0
    assert_port(net, second.link, "xenbr3")


@K_CARD
def test_legacy_name_of_no_bridge(card_runner, net, card):
    """101: eth3 is an interface, but no bridge."""
    backend = card(bridge="xenbr3")
    net.add_tap("eth3")
    try:
        assert_refused(backend, card_runner.online(backend), "xenbr3")
    finally:
        net.delete("eth3")


@F_CARD
def test_bridge_autodetect(card_runner, net, bridge, card):
    """102: none configured: the only bridge is used; none or several: ERR (D36)."""
    only = card(bridge=None)
    assert card_runner.online(only).status == 0
    assert_port(net, only.link)
    bridge("br-second")
    choice = card(bridge=None)
    several = "several bridges: br-second, xenbr0"
    assert_refused(choice, card_runner.online(choice), several)
    net.delete("br-second", "xenbr0")
    try:
        lost = card(bridge=None)
        assert_refused(lost, card_runner.online(lost), "this host has no bridge")
    finally:
        net.add_bridge("xenbr0")


@K_CARD
def test_bridge_already_member(card_runner, net, card):
    """103: port already in the bridge: not re-enslaved, brought up, success."""
    backend = card()
    assert card_runner.online(backend).status == 0
    # A port that leaves its bridge and comes back is as good as new.
    net.ip("link", "set", "dev", backend.link, "type", "bridge_slave", "priority", "5")
    net.ip("link", "set", "dev", backend.link, "down")
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)
    assert net.links()[backend.link]["linkinfo"]["info_slave_data"]["priority"] == 5
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_port_of_another_bridge_moves(card_runner, net, bridge, card):
    """96: the port comes to be in its bridge, wherever it was."""
    bridge("br-former")
    backend = card()
    net.ip("link", "set", "dev", backend.link, "master", "br-former")
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)


@K_CARD
def test_mtu_source(card_runner, net, bridge, card):
    """109: BE/mtu if set, else the bridge's MTU, written in decimal to FE/mtu for vif."""
    bridge("br-jumbo", mtu=9000)
    own = card(bridge="br-jumbo", mtu=1400)
    assert card_runner.online(own).status == 0
    assert_port(net, own.link, "br-jumbo", mtu=1400)
    assert frontend_mtu(own) == b"1400"
    other = card(mtu="")
    assert card_runner.online(other).status == 0
    assert_port(net, other.link)
    assert frontend_mtu(other) == b"1500"


@K_CARD
def test_mtu_of_a_jumbo_bridge(card_runner, net, bridge, card):
    """109: the first port of a bridge with a large MTU, and the second one."""
    bridge("br-jumbo", mtu=9000)
    for backend in (card(bridge="br-jumbo"), card(bridge="br-jumbo")):
        assert card_runner.online(backend).status == 0
        assert_port(net, backend.link, "br-jumbo", mtu=9000)
        assert frontend_mtu(backend) == b"9000"


@K_CARD
@pytest.mark.parametrize("value", [0, "abc", "-1500"])
def test_mtu_that_is_none(card_runner, net, card, value):
    """109: what is no number above 0 is skipped."""
    backend = card(mtu=value)
    net.ip("link", "set", "dev", backend.link, "mtu", "1450")
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link, mtu=1450)
    assert frontend_mtu(backend) == b"1500"


@F_CARD
@pytest.mark.parametrize("value", [70000, 1 << 31, 1 << 40, "9" * 2000, "\u0661\u0665", "\xb2"])
def test_mtu_not_advertised_on_failure(card_runner, net, card, value):
    """110: MTU change refused: FE/mtu unchanged (D40)."""
    backend = card(mtu=value.encode() if isinstance(value, str) else value)
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)
    assert frontend_mtu(backend) == b"1500"


@F_CARD
def test_frontend_not_resurrected(card_runner, net, card):
    """43: a frontend that the toolstack deleted stays so."""
    backend = card()
    backend.store.remove(backend.frontend)
    assert card_runner.online(backend).status == 0
    assert backend.store.directory(backend.frontend) == []
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_enslave_failure_text(card_runner, net, card):
    """111: status error with a text (D05)."""
    backend = card(bridge="lo")
    text = f"{backend.link} cannot be made a port of lo"
    assert_refused(backend, card_runner.online(backend), text)
    assert_released(net, backend.link)


@F_CARD
def test_no_link_has_text(card_runner, card):
    """126: a tap that is not there."""
    backend = card()
    result = card_runner.tap(backend, "add")
    assert_refused(backend, result, f"there is no network interface {backend.link}-emu")


@F_CARD
def test_vif_and_tap_of_one_card(card_runner, net, card):
    """98: each of a card's two links is taken back by its own event."""
    backend = card(tap=True)
    tap = f"{backend.link}-emu"
    assert card_runner.online(backend).status == 0
    assert card_runner.tap(backend, "add").status == 0
    assert card_runner.tap(backend, "remove").status == 0
    assert_port(net, backend.link)
    assert_released(net, tap)
    assert card_runner.tap(backend, "add").status == 0
    assert card_runner.offline(backend).status == 0
    assert_released(net, backend.link)
    assert_port(net, tap)
    assert card_runner.tap(backend, "remove").status == 0
    assert_released(net, tap)


@F_CARD
def test_two_onlines_at_once(card_runner, net, card):
    """96: a second run for the same card waits for the first."""
    backend = card()
    runs = [card_runner.start_card(backend, "online") for _ in range(4)]
    assert [run.wait().status for run in runs] == [0, 0, 0, 0]
    assert_port(net, backend.link)
    assert backend.read("hotplug-status") == b"connected"


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
    assert_released(net, backend.link)
