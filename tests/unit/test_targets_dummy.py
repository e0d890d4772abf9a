"""Disks ``dummy:<file>``: the words; attaching is that of files."""

from __future__ import annotations

import pytest
from fakes_host import World

from hotplug.errors import HotplugError
from hotplug.handlers.targets import Attached, dummy, file
from hotplug.ports import Number

DUMMY = "block-dummy"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ("dummy", "Cannot parse required parameters"),
        ("dummy:", "Cannot parse required parameters"),
        (":/a", "Cannot parse required parameters"),
        ("file:/a", "Invalid type: file"),
        ("dummy:/nowhere", "/nowhere does not exist."),
        ("dummy:/dev/sda", "/dev/sda does not exist."),
    ],
)
@pytest.mark.parametrize("script", [DUMMY, "block"])
def test_refusals(world, params, text, script):
    world.paths.devices["/dev/sda"] = ("/dev/sda", Number(8, 0))
    with pytest.raises(HotplugError) as caught:
        world.add(world.disk(5, params, type="dummy"), script)
    assert str(caught.value) == text


def test_the_rest_is_a_file(world, monkeypatch):
    seen = []

    def prepare(_host, _disk, located, _resources):
        seen.append(located.path)
        return lambda _entry, _undo: Attached({"physical-device": b"7:1"})

    monkeypatch.setattr(file, "prepare", prepare)
    world.paths.devices["/a:b c"] = ("/a:b c", None)
    device = world.disk(5, "dummy:/a:b c")
    world.add(device, DUMMY)
    assert seen == ["/a:b c"]
    assert world.keys(device) == {"physical-device": b"7:1", "hotplug-status": b"connected"}


def test_left_by_the_stock_script(world, monkeypatch):
    seen = []
    monkeypatch.setattr(file, "detach_unrecorded", lambda _, disk, __: seen.append(disk.params))
    world.remove(world.disk(5, "dummy:/a:b c", node="/dev/loop7"), DUMMY)
    assert seen == ["/a:b c"]
    assert dummy.file_of("dummy:/a:b c") == "/a:b c"
