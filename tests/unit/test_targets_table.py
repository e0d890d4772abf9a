"""Which module attaches which kind of disk."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_host import World

from hotplug.errors import HotplugError
from hotplug.handlers.targets import table
from hotplug.ports import Attachment

TREE = Path(__file__).parents[2]
KINDS = [*table.MODULES, "helper"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_who_attaches_files_pays_for_files():
    """A one-shot run imports what its disk needs."""
    code = f"import sys; sys.path.insert(0, '{TREE}'); import {table.__name__}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    package = table.__name__.rpartition(".")[0]
    imported = {name for name in output.stdout.split() if name.startswith(package)}
    assert imported == {package, *(f"{package}.{name}" for name in ("file", "phy", "table"))}


@pytest.mark.parametrize("kind", KINDS)
def test_modules_offer_what_the_table_wants(kind):
    module = table.target(table.MODULES.get(kind, kind))
    for name in ("prepare", "detach", "detach_unrecorded"):
        assert callable(getattr(module, name))


@pytest.mark.parametrize(
    ("script", "type_", "params", "text"),
    [
        ("block-tap", "phy", "nonsense", "Cannot parse required parameters"),
        ("block", "tap", "nonsense", "Cannot parse required parameters"),
        ("block-iscsi", "phy", "nonsense", "iqn= and portal= are required parameters"),
        ("block", "iscsi", "nonsense", "iqn= and portal= are required parameters"),
        ("block", "enbd", "san:1", "san:1: no kernel has an ENBD driver any more"),
        ("block", "nbd", "san", "Cannot parse required parameters: 'san' is neither"),
        ("block", "phy", "/nowhere", "/nowhere does not exist."),
        ("block", "nonsense", "/nowhere", "/nowhere does not exist."),
    ],
)
def test_the_script_or_the_type_names_the_kind(world, script, type_, params, text):
    with pytest.raises(HotplugError) as caught:
        world.add(world.disk(5, params, type=type_), script)
    assert str(caught.value).startswith(text)


def test_neither_device_nor_file(world):
    class Odd:
        is_block_device = is_file = False
        path = "/dev/null"

    disk = world.disk(5, "/dev/null")
    world.paths.locate = lambda _: contextlib.nullcontext(Odd())
    with pytest.raises(HotplugError, match="is neither a block device nor a regular file"):
        world.add(disk)


def test_the_journal_names_the_module(world):
    device = world.disk(5, "/srv/a.img")  # the journal decides, not what the backend says now
    world.tell("tap", {"minors": [0], "tapdisks": {"77": {"0": "vhd:/a"}}})
    facts = {"path": "/a", "params": "vhd:/a", "pid": 77, "minor": 0}
    host = world.host()
    with host.journal.claim(device, host.deadline) as entry:
        entry.record(Attachment("tap", facts))
    world.remove(device)
    assert world.state("tap")["minors"] == []
