"""Checklist lines 124 to 127: the other block scripts, and properties of every block script."""

from __future__ import annotations

import json
import os

import pytest
from harness.lines import F_FRESH, F, K
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

# tap-ctl of blktap 3 (Xen 4.19+): one line a call is noted, the state is a directory of minors.
TAP_CTL = """#!/bin/sh
echo "$@" >> {state}/calls
case "$1" in
allocate) echo /run/blktap-control/tapdisk/tapdisk-3 ;;
spawn) echo 4711 ;;
attach) ;;
open) echo "$7" > {state}/open ;;
list) test ! -e {state}/open || echo "pid=4711 minor=3 state=0 args=$(cat {state}/open)" ;;
close|detach|free|destroy) rm -f {state}/open ;;
*) exit 1 ;;
esac
"""


def assert_error(disk, result, text):
    assert result.status == 1
    assert disk.read("hotplug-status") == b"error"
    assert disk.read("hotplug-error").decode() == text
    assert disk.read("physical-device") is None


BAD_PARAMS = [
    ("block-dummy", "file:/some/where", "Invalid type: file"),
    ("block-dummy", "dummy", "Cannot parse required parameters"),
    ("block-dummy", "dummy:/nowhere/at/all", "/nowhere/at/all does not exist."),
    ("block-iscsi", "portal=10.0.0.1", "iqn= and portal= are required parameters"),
    ("block-iscsi", "iqn=iqn.2001-05.org:x", "iqn= and portal= are required parameters"),
    ("block-iscsi", "nonsense", "iqn= and portal= are required parameters"),
    (
        "block-iscsi",
        "iqn=iqn.2001-05.org:x,portal=10.0.0.1,multipath=maybe",
        "multipath valid values are y and n, maybe not a valid value",
    ),
]


@K
@pytest.mark.parametrize(("script", "params", "text"), BAD_PARAMS)
def test_dummy_and_iscsi_params(runner, guest, script, params, text):
    """124: wrong type, missing iqn or portal, bad multipath: status error."""
    disk = guest().disk(params)
    assert_error(disk, runner.add(disk, script=script), text)


@F_FRESH
def test_tap_vbd3_keys(fresh_runner, guest, image, tmp_path):
    """125: master: pid, minor, physical-device-path, status; no physical-device."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "tap-ctl").write_text(TAP_CTL.format(state=tmp_path))
    (tools / "tap-ctl").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    fresh_runner.restart_agent(path)

    file = image()
    disk = guest().disk(f"aio:{file}", kind="vbd3", keys={"type": "tap"})
    before = disk.tree()
    result = fresh_runner.add(disk, script="block-tap", variables=path)
    assert result.status == 0
    keys = disk.tree()
    assert {key: value for key, value in keys.items() if key not in before} == {
        "pid": b"4711",
        "minor": b"3",
        "physical-device-path": b"/run/blktap-control/nbd4711.3",
        "hotplug-status": b"connected",
    }
    calls = (tmp_path / "calls").read_text().splitlines()
    assert f"open -p 4711 -m 3 -a aio:{file}" in calls

    assert fresh_runner.remove(disk, script="block-tap", variables=path).status == 0
    assert not (tmp_path / "open").exists()
    disk.delete()


# Backends as nobody should write them: up to three keys of a good one are changed, or missing.
GOOD = {
    "frontend-id": "{domid}",
    "params": "{file}",
    "mode": "w",
    "state": "2",
    "type": "phy",
}
CHANGES = {
    "params": ["{device}", "{readonly}", "{file}/x", "", "/none", "/dev/zero", "x:y", "/", None],
    "mode": ["r", "w!", "", "rw", "x", "\\", "ü", None],
    "state": ["1", "4", "6", "", "two", None],
    "frontend-id": ["", "x", "99999", "-1", None],
    "type": ["file", "", "tap", "nonsense", "../../bin/true", None],
    "physical-device": ["{number}", "", "nonsense", "7:fffff"],
    "hotplug-status": ["", "error", "busy", "connected"],
    "hotplug-error": ["an old error"],
    "node": ["", "/dev/loop9999", "/dev/null", "nonsense"],
}
KEYS = st.lists(
    st.sampled_from([(key, value) for key, values in CHANGES.items() for value in values]),
    max_size=3,
    unique_by=lambda change: change[0],
).map(lambda changes: {**GOOD, **dict(changes)})


@pytest.fixture
def targets(image, block_device):
    """What the odd backends may name."""
    device = block_device()
    number = os.stat(device).st_rdev
    return {
        "file": image(),
        "readonly": image(mode=0o444),
        "device": device,
        "number": f"{os.major(number):x}:{os.minor(number):x}",
    }


def odd_disk(guest, targets, keys):
    """A backend with these keys."""
    owner = guest()
    known = {**targets, "domid": owner.domid}
    values = {
        key: value.format(**known) if value and "{" in value else value
        for key, value in keys.items()
    }
    return owner.disk(None, None, keys=values)


def examples(runner):
    """How often: a one-shot run costs an interpreter."""
    return settings(
        max_examples=150 if runner.kind == "agent" else 25,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def explore(runner, guest, targets, holds):
    """Add and remove odd backends; ``holds`` says what must hold after each run.

    The same examples each time; the differential test is the one that goes exploring.
    """

    @examples(runner)
    @given(keys=KEYS)
    @example(keys={**GOOD, "params": "/none"})  # stock: connected, and no text (D01)
    @example(keys={**GOOD, "frontend-id": None, "state": None})  # is there a backend at all?
    @example(keys={**GOOD, "physical-device": "", "hotplug-status": "connected"})
    @example(keys={**GOOD, "physical-device": "nonsense", "hotplug-status": "connected"})
    def run(keys):
        disk = odd_disk(guest, targets, keys)
        for action in ("add", "remove"):
            result = runner.run(disk, action)
            holds(result, disk.tree(), json.dumps([action, keys]))
        disk.delete()

    run()


@F
def test_nonzero_exit_has_text(runner, guest, targets):
    """126: whenever BE exists and xenstore answers, a non-zero exit leaves hotplug-error."""

    def holds(result, keys, what):
        assert result.status in {0, 1}, what
        if result.status:
            assert keys.get("hotplug-error"), what
            assert keys["hotplug-status"] in {b"error", b"busy"}, what

    explore(runner, guest, targets, holds)


@F
def test_connected_implies_device(runner, guest, targets):
    """127: a vbd never has status connected without physical-device."""

    def holds(result, keys, what):
        if keys.get("hotplug-status") == b"connected":
            assert keys.get("physical-device"), what

    explore(runner, guest, targets, holds)
