"""Lines 104 to 108 of the checklist: a network card that is called something else."""

from __future__ import annotations

import os

import pytest
from harness.cards import assert_port, assert_released, frontend_mtu, states
from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused


@K_CARD
def test_vifname_rename(card_runner, net, card):
    """104: online renames; offline acts on the new name."""
    backend = card(vifname="web0")
    assert card_runner.online(backend).status == 0
    assert backend.link not in net.links()
    assert_port(net, "web0")
    assert backend.read("hotplug-status") == b"connected"
    backend.close()
    assert card_runner.offline(backend).status == 0
    assert_released(net, "web0")


@F_CARD
def test_vifname_of_a_link_that_is_up(card_runner, net, card):
    """104: only Linux 6.2 and later rename it so; it is taken down first."""
    backend = card(vifname="web0")
    net.ip("link", "set", "dev", backend.link, "up")
    assert card_runner.online(backend).status == 0
    assert_port(net, "web0")


@K_CARD
def test_vifname_tap_suffix(card_runner, net, card):
    """105: tap is renamed to <vifname>-emu on add."""
    backend = card(vifname="web1", tap=True)
    assert card_runner.tap(backend, "add").status == 0
    assert f"{backend.link}-emu" not in net.links()
    assert_port(net, "web1-emu")
    assert card_runner.tap(backend, "remove").status == 0
    assert_released(net, "web1-emu")


@pytest.fixture
def foreign(net):
    """A link of somebody else, in a bridge and up."""
    net.add_vif("taken", "gtaken")
    net.ip("link", "set", "dev", "taken", "master", "xenbr0", "up")
    yield "taken"
    net.delete("taken")


@K_CARD
def test_vifname_conflict(card_runner, net, card, foreign):
    """106: foreign interface with that name: ERR naming both, no other effect."""
    backend = card(vifname=foreign)
    before = states(net)
    assert_refused(backend, card_runner.online(backend), backend.link, foreign)
    assert states(net) == before


@F_CARD
def test_vifname_conflict_and_offline(card_runner, net, card, foreign):
    """106: the toolstack destroys the guest then; the other's interface is left alone."""
    backend = card(vifname=foreign)
    before = states(net)
    assert card_runner.online(backend).status == 1
    assert card_runner.offline(backend).status == 0
    assert states(net) == before


@F_CARD
def test_vifname_repeatable(card_runner, net, card):
    """107: online twice succeeds (D41)."""
    backend = card(vifname="web2", tap=True)
    for _ in range(3):
        assert card_runner.online(backend).status == 0
        assert card_runner.tap(backend, "add").status == 0
    assert_port(net, "web2")
    assert_port(net, "web2-emu")
    assert card_runner.tap(backend, "remove").status == 0


@F_CARD
def test_vifname_after_a_failure(card_runner, net, card, hook):
    """107: what failed half-way has its first name again, and can be repeated."""
    backend = card(vifname="web3", tap=True)
    hook("failing", "exit 1")
    assert card_runner.online(backend).status == 1
    assert card_runner.tap(backend, "add").status == 1
    assert_released(net, backend.link)
    assert_released(net, f"{backend.link}-emu")
    hook("failing", "exit 0")
    assert card_runner.online(backend).status == 0
    assert card_runner.tap(backend, "add").status == 0
    assert_port(net, "web3")
    assert_port(net, "web3-emu")
    assert card_runner.tap(backend, "remove").status == 0


@F_CARD
def test_vifname_mtu_path(card_runner, net, card):
    """108: MTU goes to the real frontend of the device, no other node is created (D08)."""
    backend = card(vifname="web4", mtu=1400)
    before = card_runner.place.store.tree("/local")
    assert card_runner.online(backend).status == 0
    assert frontend_mtu(backend) == b"1400"
    base = backend.path.removeprefix("/local/")
    changed = {f"{base}/hotplug-status", f"{backend.frontend.removeprefix('/local/')}/mtu"}
    after = card_runner.place.store.tree("/local")
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert differing == changed


@K_CARD
def test_longest_vifname(card_runner, net, card):
    """104: 15 bytes."""
    backend = card(vifname="a23456789012345")
    assert card_runner.online(backend).status == 0
    assert_port(net, "a23456789012345")


@F_CARD
@pytest.mark.parametrize("name", [b"w\xc3\xa4b", b"w\xe4\xffb", b"-x", b"$(id)", b"a\\x41", b"w*"])
def test_odd_bytes_in_vifname(card_runner, net, card, name):
    """104: a name is what Linux allows (D28, D30)."""
    backend = card(vifname=name)
    assert card_runner.online(backend).status == 0
    assert_port(net, os.fsdecode(name))
    # Nobody, who looks for a bridge, minds it either.
    other = card(bridge=None)
    assert card_runner.online(other).status == 0
    assert card_runner.offline(backend).status == 0
    assert_released(net, os.fsdecode(name))


@F_CARD
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a234567890123456", "at most 15 bytes"),
        ("a b", "not allowed"),
        ("a/b", "not allowed"),
        ("..", "not allowed"),
        ("a:b", "not allowed"),
        ("vif%d", "not allowed"),
        ("a\tb", "not allowed"),
        ("all", "not allowed"),
        ("default", "not allowed"),
    ],
)
def test_bad_vifname(card_runner, net, card, name, word):
    """106: the text says what is wrong, and the link is as it was."""
    backend = card(vifname=name)
    before = states(net)
    assert_refused(backend, card_runner.online(backend), word)
    assert states(net) == before
    backend.write("vifname", "")  # for whoever tidies up


@F_CARD
def test_vifname_with_room_for_the_vif_only(card_runner, net, card):
    """105: 12 bytes are too many with -emu behind them."""
    backend = card(vifname="a23456789012", tap=True)
    assert_refused(backend, card_runner.tap(backend, "add"), "at most 15 bytes")
    assert card_runner.online(backend).status == 0
