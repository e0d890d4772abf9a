"""Checklist lines 3, 14 to 17, 19 and 24: how a script for network cards is called."""

from __future__ import annotations

import pytest
from harness.cards import states
from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused


def everything(runner, net):
    """The whole store and every link."""
    return runner.place.store.tree("/local"), states(net)


def call(runner, backend, *arguments, **variables):
    """Run vif-bridge with just these arguments."""
    known = {"XENBUS_TYPE": "vif", "vif": backend.link, **variables}
    return runner.run(backend.relative, *arguments, script="vif-bridge", variables=known)


@K_CARD
@pytest.mark.parametrize("arguments", [("bogus",), ("",), (), ("type_if=vif",)])
def test_vif_unknown_action(card_runner, net, card, arguments):
    """3: vif-bridge bogus: exit 1, no xenstore write."""
    backend = card()
    before = everything(card_runner, net)
    result = call(card_runner, backend, *arguments)
    assert result.status == 1
    assert everything(card_runner, net) == before
    assert len(result.errors) == 1


def assert_nop(runner, net, backend, *arguments, **variables):
    """Exit 0, and nothing is read or written: there is not even a store."""
    before = everything(runner, net)
    nowhere = {"XENSTORED_PATH": "/nonexistent"} if not runner.agent else {}
    result = call(runner, backend, *arguments, **variables, **nowhere)
    assert (result.status, result.stdout, result.errors) == (0, b"", [])
    assert everything(runner, net) == before


@K_CARD
@pytest.mark.parametrize("action", ["add", "remove"])
def test_type_if_defaults_to_vif(card_runner, net, card, action):
    """14: vif-bridge add without type_if is NOP."""
    backend = card(tap=True)
    assert_nop(card_runner, net, backend, action, INTERFACE=f"{backend.link}-emu")


@K_CARD
@pytest.mark.parametrize("action", ["add", "remove"])
def test_vif_add_remove_nop(card_runner, net, card, action):
    """15: type_if=vif with add or remove: exit 0, nothing read or written."""
    backend = card()
    assert_nop(card_runner, net, backend, action, "type_if=vif")
    assert_nop(card_runner, net, backend, action, type_if="vif")


@K_CARD
@pytest.mark.parametrize("action", ["online", "offline"])
def test_tap_online_offline_nop(card_runner, net, card, action):
    """16: type_if=tap with online or offline: exit 0, nothing read or written."""
    backend = card(tap=True)
    name = f"{backend.link}-emu"
    assert_nop(card_runner, net, backend, action, "type_if=tap", INTERFACE=name)
    assert_nop(card_runner, net, backend, action, type_if="tap", INTERFACE=name)


@K_CARD
@pytest.mark.parametrize("action", ["online", "remove"])
def test_unknown_type_if(card_runner, net, card, action):
    """17: type_if=foo: exit 1, no xenstore write."""
    backend = card()
    before = everything(card_runner, net)
    result = call(card_runner, backend, action, "type_if=foo")
    assert result.status == 1
    assert everything(card_runner, net) == before


@K_CARD
@pytest.mark.parametrize(
    "missing", [{"XENBUS_PATH": None}, {"XENBUS_PATH": ""}, {"vif": None}, {"vif": ""}]
)
def test_missing_variable_of_a_vif(card_runner, net, card, missing):
    """4: exit 1, no xenstore write."""
    backend = card()
    before = everything(card_runner, net)
    assert call(card_runner, backend, "online", "type_if=vif", **missing).status == 1
    assert everything(card_runner, net) == before


@K_CARD
@pytest.mark.parametrize("missing", [{"INTERFACE": None}, {"INTERFACE": ""}])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_missing_interface_of_a_tap(card_runner, net, card, missing, action):
    """4: exit 1, no xenstore write."""
    backend = card(tap=True)
    before = everything(card_runner, net)
    assert call(card_runner, backend, action, "type_if=tap", **missing).status == 1
    assert everything(card_runner, net) == before


@K_CARD
def test_absolute_xenbus_path_of_a_vif(card_runner, net, card):
    """6: an absolute XENBUS_PATH behaves the same."""
    backend = card()
    assert card_runner.online(backend, relative=False).status == 0
    assert net.links()[backend.link]["master"] == "xenbr0"
    assert backend.read("hotplug-status") == b"connected"
    assert card_runner.offline(backend, relative=False).status == 0
    assert "master" not in net.links()[backend.link]


@F_CARD
def test_backend_of_another_kind(card_runner, net, card, guest, image):
    """127: a disk is no network card, and is not told that it is connected."""
    disk = guest().disk(image())
    result = card_runner.run(
        disk.relative, "online", "type_if=vif", script="vif-bridge", variables={"vif": "vif1.0"}
    )
    assert result.status == 1
    assert b"no network card" in result.stderr
    assert disk.read("hotplug-status") is None


@pytest.fixture
def bridges(net):
    names = ("br-argument", "br-variable")
    for name in names:
        net.add_bridge(name)
    yield
    net.delete(*names)


@K_CARD
@pytest.mark.parametrize(
    ("store", "argument", "variable", "wanted"),
    [
        ("xenbr0", "br-argument", "br-variable", "xenbr0"),
        ("xenbr0", "", "br-variable", "xenbr0"),
        (None, "br-argument", "br-variable", "br-argument"),
        (None, "", "br-variable", "br-variable"),
    ],
)
def test_parameter_precedence(card_runner, net, bridges, card, store, argument, variable, wanted):
    """19: bridge from xenstore beats argument beats environment."""
    backend = card(bridge=store)
    words = [f"bridge={argument}"] if argument else []
    variables = {"XENBUS_TYPE": "vif", "vif": backend.link, "bridge": variable}
    result = card_runner.run(
        backend, "online", "type_if=vif", *words, script="vif-bridge", variables=variables
    )
    assert result.status == 0
    assert net.links()[backend.link]["master"] == wanted


@F_CARD
def test_empty_key_wins(card_runner, net, bridges, card):
    """19: an existing but empty node beats the environment; then a bridge has to be found."""
    backend = card(bridge="")
    assert_refused(
        backend,
        card_runner.online(backend, variables={"bridge": "br-variable"}),
        "Could not find bridge, and none was specified",
    )


@K_CARD
def test_names_come_from_the_store_only(card_runner, net, card):
    """19: vifname and mtu in the environment or the arguments count for nothing."""
    backend = card()
    result = card_runner.run(
        backend,
        "online",
        "type_if=vif",
        "mtu=1300",
        "vifname=argument",
        script="vif-bridge",
        variables={"vif": backend.link, "mtu": "1200", "vifname": "variable"},
    )
    assert result.status == 0
    assert net.links()[backend.link]["mtu"] == 1500


@F_CARD
def test_arguments_of_a_card_never_evaluated(card_runner, card, tmp_path):
    """18: argument "x=1;touch /f" creates no file (D27)."""
    backend = card()
    file = tmp_path / "f"
    result = card_runner.run(
        backend,
        "online",
        "type_if=vif",
        f"netdev=1;touch {file}",
        f"x=1;touch {file}",
        f"$(touch {file})=1",
        script="vif-bridge",
        variables={"vif": backend.link},
    )
    assert result.status == 0
    assert not file.exists()


@F_CARD
def test_udev_call_suppressed_by_key(card_runner, net, card):
    """24: UDEV_CALL set and libxl/disable_udev present: NOP. See test_invocation.py."""
    backend = card()
    before = everything(card_runner, net)
    store = card_runner.place.store
    store.write("/local/domain/0/libxl/disable_udev", "1")
    try:
        for value, status in (("1", b""), ("", b"connected")):
            assert card_runner.online(backend, variables={"UDEV_CALL": value}).status == 0
            assert backend.read("hotplug-status") == status
            assert (states(net) == before[1]) == (not status)
    finally:
        store.remove("/local/domain/0/libxl")
