"""Cards whose guests are held to their addresses: what the scripts leave in the packet filter.

Whether packets are stopped is tested in tests/kernel, with real ones.
"""

from __future__ import annotations

from harness.lines import F_CARD
from harness.outcomes import assert_refused
from harness.rules import guarded
from harness.wires import socket_in

FORGED = bytes.fromhex("02000000beef")


@F_CARD
def test_a_card_with_addresses_is_guarded_until_it_goes(card_runner, net, card):
    backend = card(ip="10.0.0.2 2001:db8::2")
    assert card_runner.online(backend).status == 0
    assert guarded(net) == {backend.link}
    assert "UP" in net.links()[backend.link]["flags"]
    assert card_runner.offline(backend).status == 0
    assert guarded(net) == set()


@F_CARD
def test_a_card_without_addresses_is_not(card_runner, net, card):
    backend = card()
    assert card_runner.online(backend).status == 0
    assert guarded(net) == set()


@F_CARD
def test_a_renamed_card_is_guarded_under_its_new_name(card_runner, net, card):
    backend = card(ip="10.0.0.2", vifname="web")
    assert card_runner.online(backend).status == 0
    assert guarded(net) == {"web"}
    assert card_runner.offline(backend).status == 0
    assert guarded(net) == set()


@F_CARD
def test_an_address_that_is_none(card_runner, net, card):
    backend = card(ip="10.0.0.2 router")
    assert_refused(backend, card_runner.online(backend), "'router' is no IPv4 or IPv6 address")
    assert guarded(net) == set()
    assert "master" not in net.links()[backend.link]


@F_CARD
def test_a_card_without_a_mac_cannot_be_guarded(card_runner, net, card):
    backend = card(ip="10.0.0.2", mac=None)
    assert_refused(backend, card_runner.online(backend), f"{backend.relative}/mac")
    assert guarded(net) == set()


@F_CARD
def test_what_a_former_link_of_this_name_had_goes(card_runner, net, card):
    backend = card(ip="10.0.0.2")
    assert card_runner.online(backend).status == 0
    backend.write("ip", "")
    assert card_runner.online(backend).status == 0
    assert guarded(net) == set()


@F_CARD
def test_a_bridge_learns_no_forged_mac(card_runner, net, card):
    """Frames to its own group addresses come to it past every filter."""
    backend = card(ip="10.0.0.2")
    guest = net.peer(backend.link)
    net.ip("link", "set", "dev", guest, "up")
    assert card_runner.online(backend).status == 0
    with socket_in(net) as raw:
        raw.bind((guest, 0))
        for last in range(16):
            group = bytes.fromhex(f"0180c20000{last:02x}")
            raw.send(group + FORGED + bytes.fromhex("88cc") + bytes(46))
    assert FORGED.hex(":") not in net.run("bridge", "fdb", "show").stdout


@F_CARD
def test_a_bridge_of_cards_without_addresses_is_left_alone(card_runner, net, card):
    net.add_bridge("xenbr7")
    try:
        assert card_runner.online(card(bridge="xenbr7")).status == 0
        assert "no_linklocal_learn 0" in net.run("ip", "-d", "link", "show", "xenbr7").stdout
    finally:
        net.delete("xenbr7")
