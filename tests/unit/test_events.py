"""Paths to devices, and the words of a script run to events."""

import pytest

from hotplug.errors import UsageError
from hotplug.events import Action, Device
from hotplug.invocation import Invocation
from hotplug.sources import udev


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


UEVENT = {
    "ACTION": "add",
    "SUBSYSTEM": "xen-backend",
    "XENBUS_TYPE": "vbd",
    "XENBUS_PATH": "backend/vbd/5/51712",
    "XENBUS_BASE_PATH": "backend",
}


def test_uevent():
    event = udev.event_for(UEVENT)
    assert event.action is Action.ADD
    assert event.device == Device("vbd", 5, 51712)
    assert event.variables["UDEV_CALL"] == "1"


@pytest.mark.parametrize(
    "change",
    [
        {"XENBUS_TYPE": "vif"},
        {"ACTION": "bind"},
        {"ACTION": "online"},
        {"XENBUS_PATH": "nonsense"},
        {"XENBUS_PATH": ""},
    ],
)
def test_other_uevents_are_passed_over(change):
    assert udev.event_for({**UEVENT, **change}) is None
