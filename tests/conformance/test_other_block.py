"""Checklist lines 124 to 127: the other block scripts, and properties of every block script."""

from __future__ import annotations

import json
import os

import pytest
from harness.lines import F_FRESH, F, K
from hypothesis import HealthCheck, given, settings
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


# Backends as nobody should write them: every key may be missing, empty or wrong.
KEYS = st.fixed_dictionaries(
    {},
    optional={
        "params": st.sampled_from(
            [
                "{file}",
                "{device}",
                "{readonly}",
                "",
                "/nowhere",
                "/dev/null",
                "{file}/x",
                "x:y",
                "/",
            ]
        ),
        "mode": st.sampled_from(["r", "w", "w!", "", "rw", "x", "\\", "ü"]),
        "state": st.sampled_from(["2", "2", "2", "1", "4", "6", "", "two"]),
        "frontend-id": st.sampled_from(["{domid}", "{domid}", "", "x", "99999", "-1"]),
        "type": st.sampled_from(["phy", "phy", "file", "", "tap", "nonsense", "../../bin/true"]),
        "physical-device": st.sampled_from(["{number}", "", "nonsense", "7:fffff"]),
        "hotplug-status": st.sampled_from(["", "error", "busy", "connected"]),
        "hotplug-error": st.just("an old error"),
        "node": st.sampled_from(["", "/dev/loop9999", "/dev/null", "nonsense"]),
    },
)


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
    """A backend with exactly these keys."""
    owner = guest()
    known = {**targets, "domid": owner.domid}
    values = {key: value.format(**known) if "{" in value else value for key, value in keys.items()}
    plain = dict.fromkeys(["frontend-id", "state", "type"])
    return owner.disk(None, None, keys={**plain, **values})


def examples(runner):
    """How often: a one-shot run costs an interpreter."""
    return settings(
        max_examples=60 if runner.kind == "agent" else 15,
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
