"""What a script was run for: vif-setup and those that know no backend."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplug.agent import dispatch
from hotplug.config import Config
from hotplug.events import Action, Device
from hotplug.invocation import Invocation

SETUP = "/etc/xen/scripts/vif-setup"


def setup(script, *words):
    variables = {} if script is None else {"script": script}
    return Invocation((SETUP, *words), variables)


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (None, ("/etc/xen/scripts/vif-bridge", "online")),
        ("", ("/etc/xen/scripts/vif-bridge", "online")),
        ("/srv/my vif", ("/srv/my vif", "online")),
        ("/srv/vif netdev=eth1", ("/srv/vif", "netdev=eth1", "online")),
        ("/srv/my vif  bridge=a ip= ", ("/srv/my vif", "bridge=a", "ip=", "online")),
        ("/srv/a=b/vif", ("/srv/a=b/vif", "online")),
        ("/srv/vif =x", ("/srv/vif =x", "online")),
    ],
)
def test_behind_setup(script, argv):
    assert setup(script, "online").behind_setup().argv == argv


@given(st.text(), st.lists(st.text(), max_size=4))
def test_words_stay_whole(script, words):
    argv = setup(script, *words).behind_setup().argv
    assert argv[len(argv) - len(words) :] == tuple(words)
    assert len(argv) > len(words)


@pytest.mark.parametrize(
    ("script", "native"),
    [
        (None, True),
        ("/etc/xen/scripts/vif-route netdev=eth1", True),
        ("/etc/xen//scripts/../scripts/vif-nat", True),
        ("/other/scripts/vif-bridge", True),
        ("/usr/local/bin/vif-bridge", False),
        ("/etc/xen/scripts/vif-mine", False),
        ("/etc/xen/scripts/block", False),
        ("vif-bridge", False),
        (SETUP, False),
    ],
)
def test_resolve(script, native):
    found = dispatch.resolve(Config(scripts="/other/scripts"), setup(script, "online"))
    assert found.is_setup is not native


def test_parameters_behind_the_path_count():
    call = Invocation(
        (SETUP, "online", "type_if=vif"),
        {
            "script": "/etc/xen/scripts/vif-route netdev=eth1",
            "XENBUS_PATH": "backend/vif/5/0",
            "vif": "vif5.0",
        },
    )
    event = dispatch.resolve(Config(), call).event()
    assert (event.action, event.device) == (Action.ONLINE, Device("vif", 5, 0))
    assert event.parameters == {"netdev": "eth1", "type_if": "vif"}


@pytest.mark.parametrize("name", ["qemu-ifup", "block-drbd-probe"])
def test_no_backend(name):
    call = Invocation((f"/etc/xen/scripts/{name}", "tap0", "xenbr0"), {})
    assert call.knows_no_backend
    assert dispatch.event_of(call, 4711).device == Device("run", 0, 4711)


@pytest.mark.parametrize("words", [(), ("remove",), ("online",), ("bogus",)])
def test_vscsi_is_told_one_thing_only(words):
    assert Invocation(("/etc/xen/scripts/vscsi", *words), {}).event() is None


def test_vscsi_add():
    variables = {"XENBUS_PATH": "backend/vscsi/5/0"}
    event = Invocation(("/etc/xen/scripts/vscsi", "add"), variables).event()
    assert (event.action, event.device) == (Action.ADD, Device("vscsi", 5, 0))
