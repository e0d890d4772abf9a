"""The commands for people: what they print, and what they do."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from harness import locks, loops
from harness.guests import Guest
from harness.loops import make_file
from harness.run import Runner

from hotplug.handlers import table


@pytest.fixture(params=["agent", "no agent"])
def host(request, place):
    """Commands do the same with an agent and without one."""
    if request.param == "agent":
        return request.getfixturevalue("runner")
    return request.getfixturevalue("oneshot")


@pytest.mark.parametrize(
    "words", [("--help",), *((word, "--help") for word in ("block", "gc", "install", "uninstall"))]
)
def test_help(command, words):
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert out.startswith("usage: xen-hotplug")


def test_scripts_dir(command):
    code, out, _ = command("scripts-dir")
    assert code == 0
    names = {"block", "block-drbd-probe", "block-dummy", "block-enbd", "block-iscsi", "block-nbd"}
    others = {"block-tap", "qemu-ifup", "vif-setup", "vscsi", "xen-hotplug-cleanup"}
    assert set(os.listdir(out.strip())) == {*names, *others, *table.CARD_SCRIPTS}


@pytest.mark.parametrize("spelling", ["path", "numbers", "name", "environment"])
def test_add_and_remove(host, command, disk, tmp_path, spelling):
    backend = disk()
    name = backend.store.read(f"/local/domain/{backend.domid}/name").decode()
    words, variables = {
        "path": ([backend.path], {}),
        "numbers": ([f"{backend.domid}/{backend.devid}"], {}),
        "name": ([f"{name}:xvda"], {}),
        "environment": ([], {"XENBUS_PATH": backend.relative}),
    }[spelling]
    assert command("block", "add", *words, variables=variables) == (0, "", "")
    assert backend.read("hotplug-status") == b"connected"
    assert len(loops.below(tmp_path)) == 1
    assert command("block", "remove", *words, variables=variables) == (0, "", "")
    assert not loops.below(tmp_path)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, "which disk? name a BACKEND, for example 5/51712, or set XENBUS_PATH"),
        (["nobody:xvda"], 2, "there is no guest 'nobody' with a disk here; see `xen-hotplug block"),
        (
            ["rubbish"],
            2,
            "'rubbish' names no disk; say backend/vbd/5/51712, 5/51712 or myguest:xvda",
        ),
        (["a/b/c"], 2, "'a/b/c' is not a backend path; it should look like backend/vbd/5/51712"),
        (["9/51712"], 1, "there is no backend backend/vbd/9/51712; was the device removed?"),
        (["5/" + "1" * 5000], 2, "names no disk"),
    ],
)
def test_wrong_words(host, command, words, status, sentence):
    code, out, err = command("block", "add", *words)
    assert (code, out) == (status, "")
    assert err.startswith("xen-hotplug: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_disk_that_the_guest_does_not_have(command, disk):
    backend = disk()
    name = backend.store.read(f"/local/domain/{backend.domid}/name").decode()
    code, _, err = command("block", "add", f"{name}:xvdz")
    assert code == 2
    assert err == f"xen-hotplug: guest '{name}' has no disk xvdz; it has xvda\n"


def test_a_failure_is_one_sentence(host, command, place, tmp_path):
    backend = Guest(place.store).disk(str(tmp_path / "none.img"))
    code, out, err = command("block", "add", backend.relative)
    assert (code, out) == (1, "")
    assert err == f"xen-hotplug: {backend.relative}: {tmp_path}/none.img does not exist.\n"
    assert backend.read("hotplug-status") == b"error"


def test_list(host, command, place, disk, tmp_path):
    assert command("block", "list") == (0, "No guest has a disk here.\n", "")
    backend, broken = disk(), Guest(place.store).disk(str(tmp_path / "none.img"), "r")
    assert host.add(backend).status == 0
    assert host.add(broken).status == 1
    code, out, _ = command("block", "list", "--json")
    assert code == 0
    first, second = json.loads(out)
    assert first["file"] == str(tmp_path / "disk.img")
    assert first["device"] == backend.read("node").decode()
    assert (first["mode"], first["state"], first["vdev"]) == ("w", "waiting", "xvda")
    assert second["state"] == "error"
    assert second["error"] == f"{tmp_path}/none.img does not exist."
    code, out, _ = command("block", "list")
    lines = out.splitlines()
    assert lines[0].split() == ["DEVICE", "GUEST", "VDEV", "MODE", "STATE", "ON", "FILE"]
    assert str(tmp_path / "disk.img") in lines[1]
    subprocess.run(["losetup", "--detach", first["device"]], check=True)
    assert json.loads(command("block", "list", "--json")[1])[0]["state"] == "lost"
    assert host.remove(backend).status == 0


def test_gc(oneshot, command, disk, tmp_path):
    """A backend that was deleted while nobody was there to see it."""
    gone, kept = disk("gone.img"), disk("kept.img")
    for backend in (gone, kept):
        assert oneshot.add(backend).status == 0
    foreign = loops.attach(make_file(tmp_path / "foreign.img"))
    try:
        gone.delete()
        line = f"file {tmp_path}/gone.img, which was attached for {gone.relative}\n"
        assert command("gc", "--dry-run") == (0, f"would detach {line}", "")
        assert len(loops.below(tmp_path)) == 3
        assert command("gc") == (0, f"detached {line}", "")
        left = sorted(os.path.basename(loop.backing) for loop in loops.below(tmp_path))
        assert left == ["foreign.img", "kept.img"]
        nothing = "Nothing is attached that no backend wants.\n"
        assert command("gc") == (0, nothing, "")
    finally:
        loops.detach(foreign)
    assert oneshot.remove(kept).status == 0


def test_gc_without_a_journal(oneshot, command, disk, place, tmp_path):
    gone = disk("gone.img")
    assert oneshot.add(gone).status == 0
    (place.rundir / "journal" / f"vbd.{gone.domid}.{gone.devid}").unlink()
    gone.delete()
    code, out, _ = command("gc")
    assert code == 0
    assert f"{tmp_path}/gone.img" in out
    assert not loops.below(tmp_path)


def test_reconcile(host, command, disk, tmp_path):
    waiting, lost = disk("waiting.img"), disk("lost.img")
    assert host.add(lost).status == 0
    node = lost.read("node").decode()
    subprocess.run(["losetup", "--detach", node], check=True)
    code, out, _ = command("reconcile", "--dry-run")
    assert code == 1
    assert f"would attach {waiting.relative}, which waits for its disk" in out
    assert f"{node} is no longer bound to {tmp_path}/lost.img" in out
    assert waiting.read("hotplug-status") is None
    assert command("reconcile")[0] == 1
    assert waiting.read("hotplug-status") == b"connected"
    for backend in (waiting, lost):
        assert host.remove(backend).status == 0


def test_status(runner, command, status, disk, place):
    backend = disk()
    assert runner.add(backend).status == 0
    facts = status()
    assert facts["agent"]["pid"] == runner.agent.pid
    assert facts["agent"]["events"] == {"finished": 1, "failed": 0}
    assert facts["agent"]["attached"] == 1
    assert facts["agent"]["sources"] == ["control"]
    assert 5 < facts["memory_mib"] < 80
    assert facts["loops"]["ours"] == 1
    assert facts["loops"]["bound"] >= 1
    assert facts["locks"] == []
    code, out, _ = command("status")
    assert code == 0
    assert f"pid {runner.agent.pid}" in out
    assert "queue     empty" in out
    assert "attached  1 devices" in out
    assert "loops     1 of the" in out
    assert runner.remove(backend).status == 0


def test_status_names_who_holds_a_lock_that_we_wait_for(runner, command, status, disk, place):
    backend = disk()
    with locks.held(place.block_lock):
        run = runner.start(backend, "add")
        locks.wait_for_waiter(place.block_lock)
        facts = status()
        assert facts["locks"][0]["lock"] == str(place.block_lock)
        assert facts["locks"][0]["pid"] == os.getpid()
        assert "pytest" in facts["locks"][0]["process"]
        job = facts["agent"]["queue"][0]
        assert job["event"] == f"block add {backend.relative}"
        assert job["doing"] == "waiting for the lock 'block'"
        assert f"is held by pid {os.getpid()}" in command("status")[1]
    assert run.wait().status == 0
    assert runner.remove(backend).status == 0


def test_status_without_an_agent(oneshot, command, place):
    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert out.startswith(f"No agent serves {place.rundir}")


def test_no_store(command):
    missing = {"XENSTORED_PATH": "/nonexistent/socket"}
    for words in (("block", "list"), ("gc",), ("block", "add", "5/51712"), ("agent",)):
        code, out, err = command(*words, variables=missing)
        assert (code, out) == (1, ""), words
        assert "/nonexistent/socket" in err
        assert err.count("\n") == 1, err


def test_disks_of_running_guests_outlive_install_and_uninstall(
    host, place, command, disk, tmp_path
):
    """Whoever attached a disk, whoever is in place then detaches it."""
    toolstack = Runner("stock", place)  # runs what is in the folder, whosever it is
    options = ("--scripts", str(place.scripts), "--no-unit")
    folder = sorted(os.listdir(place.scripts))
    old, new = disk("old.img"), disk("new.img")
    assert toolstack.add(old).status == 0

    code, out, err = command("install", *options)
    assert (code, err) == (0, "")
    assert f"{place.scripts}/block: now ours; the stock script is block.stock\n" in out
    assert toolstack.run(new, "add").status == 0
    assert toolstack.run(old, "remove").status == 0
    assert [os.path.basename(loop.backing) for loop in loops.below(tmp_path)] == ["new.img"]

    code, _, err = command("uninstall", *options)
    assert (code, err) == (0, "")
    assert sorted(os.listdir(place.scripts)) == folder
    assert toolstack.run(new, "remove").status == 0
    assert not loops.below(tmp_path)
    place.store.remove(new.path)
    assert command("gc")[0] == 0  # our notes of it
