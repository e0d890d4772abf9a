"""A real Open vSwitch does what its database is told, and says why if it does not."""

from __future__ import annotations

import contextlib
import errno
import threading
import time

import pytest
from harness import openvswitch
from harness.locks import wait_until
from harness.netns import netns
from harness.wires import SILENCE, Frame, wire

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import AbandonedError
from hotplug.kernel.openvswitch import OpenVSwitch
from hotplug.network import SwitchPort

MAC = "00:16:3e:00:00:01"
IDS = {"xen-vm-name": "guest", "xen-vm-uuid": "5f0f", "attached-mac": MAC}
FRAME = b"are you there?"
ODD = [
    'a "guest" -- del-br ovs0',
    "two\nlines\tand a tab",
    "x' ; reboot; '",
    "дом \N{GRINNING FACE}",
    "{[]},:",
    "\\x22 \\",
    "",
]


@pytest.fixture(scope="module")
def namespace():
    with netns() as made:
        yield made


@pytest.fixture(scope="module")
def running(namespace):
    """A switch with two bridges and four links that could be ports."""
    for number in range(4):
        namespace.add_vif(f"v{number}", f"g{number}")
        namespace.ip("link", "set", f"v{number}", "up")
        namespace.ip("link", "set", f"g{number}", "up")
    with openvswitch.switch(namespace) as switch:
        switch.add_bridge("ovs0")
        switch.add_bridge("ovs1")
        yield switch


@pytest.fixture
def switch(running):
    yield running
    for bridge in ("ovs0", "ovs1"):
        for port in running.ports(bridge):
            running.vsctl("del-port", port)


@pytest.fixture
def own(namespace):
    """A switch that a test may break, with one bridge."""
    with netns() as home, openvswitch.switch(home) as switch:
        home.add_vif("v0", "g0")
        switch.add_bridge("ovs0")
        yield switch


def port(name="v0", bridge="ovs0", tag=None, trunks=(), ids=IDS):
    return SwitchPort(name, bridge, tag, trunks, ids)


def add(switch, *arguments, seconds=10.0, **options):
    OpenVSwitch(switch.socket, seconds).add_port(
        port(*arguments, **options), EventDeadline(seconds + 5)
    )


def delete(switch, *arguments):
    OpenVSwitch(switch.socket).delete_port(*arguments)


def test_a_port_works_when_it_was_added(switch):
    add(switch, tag=100, trunks=(200, 300))
    assert switch.ports("ovs0") == ["v0"]
    assert switch.port("v0") == ([100], [200, 300])
    assert switch.external_ids("v0") == IDS
    number, problem = switch.row("Interface", "v0", "ofport", "error")
    assert number > 0
    assert problem == ["set", []]
    assert "v0" in switch.appctl("dpif/show")


def test_without_a_tag_there_is_none(switch):
    add(switch)
    assert switch.port("v0") == ([], [])


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_one_value(switch, name):
    add(switch, ids={**IDS, "xen-vm-name": name})
    assert switch.external_ids("v0") == {**IDS, "xen-vm-name": name}


def test_bytes_that_are_no_text_are_spelled_out(switch):
    add(switch, ids={**IDS, "xen-vm-name": "a\udcff\0b"})
    assert switch.external_ids("v0")["xen-vm-name"] == r"a\xff\x00b"


def test_added_twice_it_is_one_port_as_it_was_wanted_last(switch):
    add(switch, tag=100)
    add(switch, tag=200)
    assert switch.ports("ovs0") == ["v0"]
    assert switch.port("v0") == ([200], [])


def test_a_port_moves_to_another_bridge(switch):
    add(switch)
    add(switch, bridge="ovs1")
    assert switch.ports("ovs0") == []
    assert switch.ports("ovs1") == ["v0"]


def test_what_ovs_vsctl_added_is_taken_over(switch):
    switch.vsctl("add-port", "ovs1", "v0", "tag=7")
    add(switch)
    assert switch.ports("ovs1") == []
    assert switch.port("v0") == ([], [])


def test_a_fake_bridge_stands_for_a_vlan(switch):
    switch.vsctl("add-br", "vlan7", "ovs0", "7")
    add(switch, bridge="vlan7")
    assert switch.ports("vlan7") == ["v0"]
    assert switch.port("v0") == ([7], [])
    delete(switch, "vlan7")
    with pytest.raises(FileExistsError, match="a bridge of Open vSwitch has this name"):
        add(switch, "vlan7")
    assert switch.vsctl("br-to-parent", "vlan7") == "ovs0"
    switch.vsctl("del-br", "vlan7")


def test_a_missing_bridge_is_named_and_nothing_changes(switch):
    add(switch)
    with pytest.raises(OSError, match="Open vSwitch has no bridge of this name") as caught:
        add(switch, bridge="ovs9")
    assert caught.value.filename == "ovs9"
    assert switch.ports("ovs0") == ["v0"]


def test_a_port_cannot_have_a_bridges_name(switch):
    with pytest.raises(FileExistsError, match="a bridge of Open vSwitch has this name"):
        add(switch, "ovs1")


def test_a_vlan_that_the_database_refuses_is_told(switch):
    with pytest.raises(OSError, match="ovsdb-server refused: constraint violation: 5000 is not"):
        add(switch, tag=5000)
    assert switch.ports("ovs0") == []


def test_a_link_that_is_not_there_is_told(switch):
    problem = "Open vSwitch cannot use it: could not open network device v99 .No such device."
    with pytest.raises(OSError, match=problem) as caught:
        add(switch, "v99")
    assert caught.value.filename == "v99"


def test_a_port_is_deleted_once_and_for_all(switch):
    add(switch)
    delete(switch, "v0", MAC)
    assert switch.ports("ovs0") == []
    assert "v0" not in switch.appctl("dpif/show")
    delete(switch, "v0", MAC)


def test_only_what_was_added_for_this_card_is_deleted(switch):
    switch.vsctl("add-port", "ovs0", "v1")
    add(switch)
    delete(switch, "ovs0")
    delete(switch, "v1")
    delete(switch, "v0", "00:16:3e:00:00:02")
    assert switch.ports("ovs0") == ["v0", "v1"]
    delete(switch, "v0")
    assert switch.ports("ovs0") == ["v1"]


def test_many_at_once(switch):
    problems = []

    def work(name):
        try:
            for bridge in ("ovs0", "ovs1", "ovs0"):
                add(switch, name, bridge)
        except OSError as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(f"v{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert switch.ports("ovs0") == ["v0", "v1", "v2", "v3"]


def test_one_port_from_two_sides(switch):
    problems = []

    def work(bridge):
        try:
            for _ in range(5):
                add(switch, bridge=bridge)
        except OSError as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(bridge,)) for bridge in ("ovs0", "ovs1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(switch.ports("ovs0") + switch.ports("ovs1")) == ["v0"]


def test_vlans_are_kept_apart(switch, namespace):
    add(switch, "v0", tag=100)
    add(switch, "v1", tag=100)
    add(switch, "v2", tag=200)
    add(switch, "v3", trunks=(100, 300))
    with contextlib.ExitStack() as stack:
        first, second, other, trunk = (
            stack.enter_context(wire(namespace, f"g{number}")) for number in range(4)
        )
        first.send(FRAME)
        assert second.receive(FRAME) == Frame(None, FRAME)
        assert trunk.receive(FRAME) == Frame(100, FRAME)
        assert other.receive(FRAME, SILENCE) is None
        trunk.send(b"in " + FRAME, vlan=100)
        assert first.receive(b"in " + FRAME) == Frame(None, b"in " + FRAME)
        trunk.send(b"out " + FRAME, vlan=200)
        assert other.receive(b"out " + FRAME, SILENCE) is None


# What hangs or is gone


def test_without_a_server(tmp_path):
    missing = OpenVSwitch(str(tmp_path / "db.sock"))
    with pytest.raises(
        FileNotFoundError, match="No such file or directory; is Open vSwitch running"
    ) as caught:
        missing.add_port(port(), EventDeadline(5))
    assert caught.value.filename == str(tmp_path / "db.sock")
    with pytest.raises(FileNotFoundError):
        missing.delete_port("v0")


def test_a_server_that_died(own):
    own.kill("server")
    with pytest.raises(ConnectionRefusedError, match="refused; is Open vSwitch running") as caught:
        add(own)
    assert caught.value.filename == own.socket


def test_a_server_that_hangs(own):
    with own.frozen("server"):
        before = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer for 1 s; is Open vSwitch running"):
            add(own, seconds=1.0)
        assert time.monotonic() - before < 2
    wait_until(lambda: own.ports("ovs0") == [], "nothing was done in the end")


def test_a_switch_that_hangs_then_goes_on(own):
    with own.frozen("vswitchd"):
        with pytest.raises(TimeoutError, match="has not made this port in 1 s") as caught:
            add(own, seconds=1.0)
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.filename == "v0"
        delete(own, "v0", MAC)
    assert own.ports("ovs0") == []
    add(own)


def test_an_event_that_nobody_waits_for_ends_soon(own):
    deadline = EventDeadline(10)
    with own.frozen("vswitchd"):
        threading.Timer(0.3, deadline.abandon).start()
        before = time.monotonic()
        with pytest.raises(AbandonedError):
            OpenVSwitch(own.socket).add_port(port(), deadline)
        assert time.monotonic() - before < 2


def test_restarted_daemons(own):
    add(own)
    own.stop("vswitchd")
    own.stop("server")
    own.start_server()
    own.start_vswitchd()
    assert own.ports("ovs0") == ["v0"]
    add(own, tag=3)
    assert own.port("v0") == ([3], [])
    delete(own, "v0", MAC)
    assert own.ports("ovs0") == []
