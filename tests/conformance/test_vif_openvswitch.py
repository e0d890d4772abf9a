"""Lines 122 and 123 of the checklist, and what else a card on Open vSwitch must do.

The switch is a real one, in the namespace of the runs; all its programs find it by OVS_RUNDIR.
"""

from __future__ import annotations

import json

import pytest
from harness.lines import F_CARD, K_CARD
from harness.openvswitch import switch as running_switch
from harness.outcomes import assert_refused
from harness.place import place
from harness.run import Runner

PORT_MAC = "fe:ff:ff:ff:ff:ff"
SCRIPT = {"script": "vif-openvswitch"}
ODD_NAMES = [
    'a "guest"',
    "two  blanks and an end ",
    "x -- del-br ovs0",
    "x' -- --if-exists del-br ovs0 -- comment '",
    "$(reboot); `reboot`",
    "back\\slash \\x41",
    "дом",
]
WRONG = ["ovs0..100", "ovs0.", "ovs0:", ".100", ":100", "ovs0.a", "ovs0:1:", "ovs0.1.2", ""]


@pytest.fixture(scope="module")
def ovs(net):
    with running_switch(net) as made:
        made.add_bridge("ovs0")
        made.add_bridge("ovs1")
        yield made


@pytest.fixture(scope="module")
def card_runner(request, net, ovs):
    """As elsewhere, with the switch in the environment of the runs and of the agent."""
    launcher = (*net.launcher, "env", f"OVS_RUNDIR={ovs.directory}")
    with place() as made:
        runner = Runner(request.param, made, launcher=launcher)
        if request.param == "agent":
            runner.start_agent()
        yield runner
        if runner.agent is not None:
            assert runner.agent.stop() == 0


@pytest.fixture
def ported(card, ovs):
    """Make cards whose bridge is of the switch."""

    def make(bridge="ovs0", **keys):
        return card(bridge=bridge, **keys)

    yield make
    for bridge in ("ovs0", "ovs1"):
        for port in ovs.ports(bridge):
            ovs.vsctl("del-port", port)


def online(runner, backend):
    return runner.online(backend, **SCRIPT)


def offline(runner, backend):
    return runner.offline(backend, **SCRIPT)


def assert_connected(backend, result):
    assert result.status == 0, result.stderr
    keys = backend.tree()
    assert keys["hotplug-status"] == b"connected"
    assert "hotplug-error" not in keys


@K_CARD
def test_ovs_bridge_spec(card_runner, net, ovs, ported):
    """122: ovs0.100:200:300: bridge ovs0, tag 100, trunks 200 and 300; a..b: ERR."""
    for bridge, tag, trunks in (
        ("ovs0.100:200:300", [100], [200, 300]),
        ("ovs0.100", [100], []),
        ("ovs0:7", [], [7]),
        ("ovs0", [], []),
    ):
        backend = ported(bridge)
        assert_connected(backend, online(card_runner, backend))
        assert backend.link in ovs.ports("ovs0")
        assert ovs.port(backend.link) == (tag, trunks)
    link = net.links()[backend.link]
    assert link["address"] == PORT_MAC
    assert "UP" in link["flags"]
    wrong = ported("a..b")
    assert_refused(wrong, online(card_runner, wrong), "No valid bridge was specified")


@F_CARD
@pytest.mark.parametrize("name", ODD_NAMES)
def test_ovs_name_inert(card_runner, ovs, ported, name):
    """123: a VM name with quotes, blanks and " -- " stays one value (D29)."""
    backend = ported()
    vm = backend.store.read(f"/local/domain/{backend.domid}/vm").decode()
    backend.store.write(f"{vm}/name", name)
    assert_connected(backend, online(card_runner, backend))
    assert ovs.external_ids(backend.link) == {
        "xen-vm-name": name,
        "xen-vm-uuid": vm.removeprefix("/vm/"),
        "attached-mac": backend.read("mac").decode(),
    }
    assert ovs.vsctl("list-br").split() == ["ovs0", "ovs1"]


@F_CARD
def test_a_name_that_is_no_text(card_runner, ovs, ported):
    backend = ported()
    vm = backend.store.read(f"/local/domain/{backend.domid}/vm").decode()
    backend.store.write(f"{vm}/name", b"caf\xe9 -- x")
    assert_connected(backend, online(card_runner, backend))
    assert ovs.external_ids(backend.link)["xen-vm-name"] == r"caf\xe9 -- x"


@F_CARD
@pytest.mark.parametrize("bridge", WRONG)
def test_a_wrong_spec_changes_nothing(card_runner, net, ovs, ported, bridge):
    backend = ported(bridge)
    net.ip("link", "set", backend.link, "up")
    result = online(card_runner, backend)
    assert_refused(backend, result, f"No valid bridge was specified: {backend.relative}/bridge is")
    assert "UP" in net.links()[backend.link]["flags"]
    assert ovs.ports("ovs0") == []


@F_CARD
@pytest.mark.parametrize("bridge", ["ovs0.4096", "ovs0:1:99999"])
def test_vlans_have_a_limit(card_runner, ported, bridge):
    backend = ported(bridge)
    assert_refused(backend, online(card_runner, backend), f"is '{bridge}'; VLANs are 0 to 4095")


@F_CARD
def test_a_missing_bridge(card_runner, net, ported):
    """One sentence, and the link is as after offline."""
    backend = ported("ovs9")
    result = online(card_runner, backend)
    text = (
        f"{backend.link} cannot be made a port of ovs9: ovs9: Open vSwitch has no bridge of this"
        " name"
    )
    assert_refused(backend, result, text)
    assert "UP" not in net.links()[backend.link]["flags"]


@F_CARD
@pytest.mark.parametrize("key", ["vm", "name", "uuid", "mac"])
def test_a_missing_key_stops_everything(card_runner, ovs, ported, key):
    """Stock goes on to `connected` with an error beside it (D32)."""
    backend = ported(mac=None) if key == "mac" else ported()
    home = f"/local/domain/{backend.domid}"
    path = f"{home}/vm"
    if key in ("name", "uuid"):
        path = f"{backend.store.read(path).decode()}/{key}"
    if key == "mac":
        path = f"{backend.relative}/mac"
    else:
        backend.store.remove(path)
    assert_refused(backend, online(card_runner, backend), f"{path} is missing in xenstore")
    assert ovs.ports("ovs0") == []


@F_CARD
def test_the_key_for_linux_bridges_is_refused(card_runner, ported):
    backend = ported(vlan="10p")
    assert_refused(
        backend, online(card_runner, backend), f"{backend.relative}/vlan is for Linux bridges"
    )


@K_CARD
def test_online_twice(card_runner, ovs, ported):
    backend = ported()
    assert_connected(backend, online(card_runner, backend))
    assert_connected(backend, online(card_runner, backend))
    assert ovs.ports("ovs0") == [backend.link]


@K_CARD
def test_a_port_moves_with_its_key(card_runner, ovs, ported):
    backend = ported()
    assert_connected(backend, online(card_runner, backend))
    backend.write("bridge", "ovs1.5")
    assert_connected(backend, online(card_runner, backend))
    assert ovs.ports("ovs0") == []
    assert ovs.ports("ovs1") == [backend.link]


@K_CARD
def test_offline_takes_the_port(card_runner, net, ovs, ported):
    backend = ported()
    assert_connected(backend, online(card_runner, backend))
    before = backend.tree()
    assert offline(card_runner, backend).status == 0
    assert ovs.ports("ovs0") == []
    assert "UP" not in net.links()[backend.link]["flags"]
    assert backend.tree() == {**before, "online": b"0", "state": b"6"}
    assert offline(card_runner, backend).status == 0


@F_CARD
def test_offline_takes_what_stock_added(card_runner, ovs, ported):
    backend = ported()
    ids = json.dumps(backend.read("mac").decode())
    ovs.vsctl(
        *("add-port", "ovs0", backend.link),
        *("--", "set", "interface", backend.link, f"external-ids:attached-mac={ids}"),
    )
    assert offline(card_runner, backend).status == 0
    assert ovs.ports("ovs0") == []


@F_CARD
def test_offline_leaves_ports_of_the_host(card_runner, ovs, ported):
    """An online that failed because the name was taken is followed by an offline of that name."""
    backend = ported(vifname="ovs1")
    assert_refused(backend, online(card_runner, backend), backend.link, "ovs1 already exists")
    assert offline(card_runner, backend).status == 0
    assert ovs.vsctl("list-br").split() == ["ovs0", "ovs1"]
    assert ovs.vsctl("list-ifaces", "ovs1") == ""
    assert "ovs1" in ovs.appctl("dpif/show")
    backend.drop("vifname")  # or the fixture would take it for the card's link


@K_CARD
def test_a_renamed_card(card_runner, net, ovs, ported):
    backend = ported(vifname="web0")
    assert_connected(backend, online(card_runner, backend))
    assert ovs.ports("ovs0") == ["web0"]
    assert "web0" in net.links()
    assert offline(card_runner, backend).status == 0
    assert ovs.ports("ovs0") == []


@K_CARD
def test_a_tap_beside_its_vif(card_runner, net, ovs, card):
    backend = card(tap=True, bridge="ovs0.8")
    assert card_runner.tap(backend, "add", **SCRIPT).status == 0
    tap = f"{backend.link}-emu"
    assert ovs.ports("ovs0") == [tap]
    assert ovs.port(tap) == ([8], [])
    assert backend.read("hotplug-status") == b""
    assert card_runner.tap(backend, "remove", **SCRIPT).status == 0
    assert ovs.ports("ovs0") == []


@F_CARD
def test_a_switch_that_is_gone(card_runner, net, ovs, ported):
    """Clear words, nothing left; and the removal succeeds all the same."""
    backend = ported()
    ovs.kill("server")  # its socket stays, and refuses
    try:
        result = online(card_runner, backend)
        assert_refused(backend, result, f"{ovs.socket}: ", "is Open vSwitch running?")
        assert offline(card_runner, backend).status == 0
    finally:
        ovs.start_server()
    other = ported()
    assert_connected(other, online(card_runner, other))
    assert offline(card_runner, other).status == 0
    assert offline(card_runner, backend).status == 0
