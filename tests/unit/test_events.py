"""Paths to devices, and the words of a script run to events."""

import pytest

from hotplug.errors import UsageError
from hotplug.events import Action, Device
from hotplug.invocation import Invocation


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("backend/vbd/5/51712", "backend"),
        ("/local/domain/0/backend/vbd/5/51712", "/local/domain/0/backend"),
    ],
)
def test_a_path_is_kept_as_given(path, base):
    device = Device.parse(path)
    assert device == Device("vbd", 5, 51712)
    assert device.base == base
    assert device.path == path
    assert device.key == "vbd.5.51712"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "vbd",
        "backend/vbd/5",
        "backend/vbd/x/51712",
        "backend/vbd/5/51712/state",
        "a b",
        "x-vbd/5/6",
        "vbd/5/51712",
        "/vbd/5/51712",
        "attic/backend/vbd/5/51712",
        "local/domain/0/backend/vbd/5/51712",
        "/local/domain/x/backend/vbd/5/51712",
        "/libxl/5/device/vbd/5/51712",
    ],
)
def test_other_paths_are_refused(path):
    with pytest.raises(UsageError, match="is not a backend path"):
        Device.parse(path)


def invocation(*arguments, script="/etc/xen/scripts/block", **variables):
    variables.setdefault("XENBUS_PATH", "backend/vbd/5/51712")
    return Invocation((script, *arguments), variables)


def test_the_command_is_the_first_word_without_equals():
    assert invocation("a=b", "add", "remove").event().action is Action.ADD


@pytest.mark.parametrize("arguments", [(), ("foo",), ("a=b",)])
def test_unknown_command(arguments):
    with pytest.raises(UsageError, match="Invalid command"):
        invocation(*arguments).event()


def test_no_backend():
    with pytest.raises(UsageError, match="XENBUS_PATH"):
        invocation("add", XENBUS_PATH="").event()


def test_bytes_survive():
    decoded = Invocation.decode(
        [b"/s/block", b"add"], {b"XENBUS_PATH": b"backend/vbd/1/2"}, b"/\xff"
    )
    assert decoded.cwd == "/\udcff"
    assert decoded.event().cwd == "/\udcff"


def test_parameters_stand_anywhere_beside_the_action():
    words = ("netdev=eth1", "online", "type_if=vif", "x=1")
    card = {"XENBUS_PATH": "backend/vif/5/0", "vif": "vif5.0"}
    event = invocation(*words, script="/s/vif-route", **card).event()
    assert event.action is Action.ONLINE
    assert event.parameters == {"netdev": "eth1", "type_if": "vif"}


def test_cleaning_up_needs_no_word():
    assert invocation(script="/s/xen-hotplug-cleanup").event().action is Action.REMOVE
