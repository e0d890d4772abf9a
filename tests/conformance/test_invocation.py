"""Checklist lines 1 to 13, 18 and 24: how a script is called."""

from __future__ import annotations

import shutil

import pytest
from harness import loops
from harness.lines import F, K

LAUNCH_FROM_DELETED = ("sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"')


def assert_connected(disk):
    keys = disk.tree()
    assert keys["hotplug-status"] == b"connected"
    assert keys["physical-device"]


def everything(runner):
    """The whole store, but for what xenstored itself keeps."""
    return {top: runner.place.store.tree(f"/{top}") for top in ("local", "libxl", "vm")}


@K
def test_command_is_first_argument_without_equals(runner, guest, image):
    """1: in "a=b add" the command is add."""
    disk = guest().disk(image())
    assert runner.run(disk, "a=b", "add").status == 0
    assert_connected(disk)
    disk.close()
    assert runner.run(disk, "a=b", "=", "remove", "add").status == 0
    loops.wait_until_none(disk.read("params").decode())


@K
@pytest.mark.parametrize("arguments", [("online",), ("foo",), (), ("a=b",), ("",)])
def test_block_unknown_action(runner, guest, image, arguments):
    """2: block with online, foo or nothing: exit 1, no xenstore write, one err log line."""
    disk = guest().disk(image())
    before = everything(runner)
    result = runner.run(disk, *arguments)
    assert result.status == 1
    assert everything(runner) == before
    assert len(result.errors) == 1


@F
@pytest.mark.parametrize("action", ["add", "remove"])
def test_too_many_words_have_text(runner, guest, image, action):
    """126: a call that we do not take, of an action that the script knows."""
    disk = guest().disk(image())
    assert runner.run(disk, action, *["a=b"] * 64).status == 1
    assert disk.read("hotplug-status") == b"error"
    assert disk.read("hotplug-error") == b"called with more than 64 words"


@F
@pytest.mark.parametrize("action", ["add", "remove"])
def test_unknown_script_has_text(runner, guest, image, tmp_path, action):
    """126: our program under the name of a script that it does not stand in for."""
    disk = guest().disk(image())
    script = tmp_path / "myblock"
    script.symlink_to(runner.script("block"))
    result = runner.run(disk, action, script=str(script))
    assert result.status == 1
    assert disk.read("hotplug-status") == b"error"
    text = f"{script}: xen-hotplug stands in for no script of this name"
    assert disk.read("hotplug-error").decode() == text


@K
@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_missing_xenbus_path(runner, guest, image, value, action):
    """4: exit 1, no xenstore write."""
    guest().disk(image())
    before = everything(runner)
    variables = {"XENBUS_PATH": value, "XENBUS_TYPE": "vbd"}
    assert runner.run(None, action, variables=variables).status == 1
    assert everything(runner) == before


@K
def test_relative_xenbus_path_verbatim(runner, guest, block_device):
    """5: keys are written below the relative path as given."""
    disk = guest().disk(block_device())
    before = everything(runner)
    assert runner.run(disk.relative, "add").status == 0
    assert_connected(disk)
    after = everything(runner)
    new = set(after["local"]) - set(before["local"])
    below = disk.path.removeprefix("/local/")
    keys = ("physical-device", "physical-device-path", "hotplug-status")
    assert new == {f"{below}/{key}" for key in keys}


@F
@pytest.mark.parametrize("base", ["/local/domain/9/backend/", "attic/backend/", ""])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_backend_elsewhere_refused(runner, guest, image, base, action):
    """5: a path of another domain has nothing to do with the disk of the same numbers."""
    file = image()
    disk = guest().disk(file)
    assert runner.add(disk).status == 0
    there = f"{base}vbd/{disk.domid}/{disk.devid}"
    store = runner.place.store
    at = there if there.startswith("/") else f"/local/domain/0/{there}"
    keys = {"params": image(), "mode": "w", "state": 2, "frontend-id": disk.domid}
    store.write_many({f"{at}/{key}": value for key, value in keys.items()})
    before = everything(runner)
    result = runner.run(there, action)
    assert result.status == 1
    assert len(result.errors) == 1
    assert there in result.errors[0]
    assert everything(runner) == before
    assert loops.only_one(file).path.encode() == disk.read("node")
    store.remove(at.partition("vbd")[0].rstrip("/") if base else at)


@K
@pytest.mark.parametrize("kind", ["device", "file"])
def test_absolute_xenbus_path_accepted(runner, guest, block_device, image, kind):
    """6: an absolute XENBUS_PATH behaves the same."""
    disk = guest().disk(block_device() if kind == "device" else image())
    assert runner.add(disk, relative=False).status == 0
    assert_connected(disk)
    before = disk.tree()
    assert runner.add(disk).status == 0  # the same backend under its other name
    assert disk.tree() == before
    assert runner.remove(disk, relative=False).status == 0


@K
def test_exit_codes(runner, guest, image, block_device):
    """7: success and NOP exit 0, every ERR and BUSY exits 1."""
    device = block_device()
    disk = guest().disk(device)
    assert runner.add(disk).status == 0
    assert runner.add(disk).status == 0
    assert runner.remove(disk).status == 0
    for failing, status in (
        (guest().disk(image(), state=1), b"error"),
        (guest().disk(image(), None), b"error"),
        (guest().disk(image(mode=0o444)), b"busy"),
        (guest().disk(device, "r"), b"busy"),
    ):
        assert runner.add(failing).status == 1
        assert failing.read("hotplug-status") == status


@K
def test_silent_stdout(runner, guest, image):
    """8: nothing on stdout on success, with stdin on /dev/null."""
    disk = guest().disk(image())
    assert runner.add(disk).stdout == b""
    assert runner.remove(disk).stdout == b""


@K
@pytest.mark.parametrize("kind", ["device", "file"])
def test_cwd_independent(runner, guest, image, block_device, tmp_path, kind):
    """9: absolute params give the same result from any cwd."""
    target = block_device() if kind == "device" else str(image())
    decoy = tmp_path / target.lstrip("/")  # what the path would be if it were relative
    decoy.parent.mkdir(parents=True)
    loops.make_file(decoy)
    for cwd in ("/", tmp_path, "/proc/self"):
        disk = guest().disk(target)
        assert runner.add(disk, cwd=cwd).status == 0
        assert_connected(disk)
        loops.wait_until_none(decoy)
        assert runner.remove(disk, cwd=cwd).status == 0
        disk.delete()


@K
def test_cwd_deleted(runner, guest, image, tmp_path):
    """9: a cwd that no longer exists is a cwd too."""
    disk = guest().disk(image())
    runner.launcher = (*LAUNCH_FROM_DELETED, str(tmp_path / "gone"))
    try:
        assert runner.add(disk).status == 0
        assert_connected(disk)
    finally:
        runner.launcher = ()


@K
def test_stderr_appended_to_log(runner, guest, image):
    """10: diagnostics are appended to the log file."""
    log = runner.place.log_file
    log.write_text("an earlier line\n")
    disk = guest().disk(image())
    disk.drop("params")
    result = runner.add(disk)
    assert result.status == 1
    assert log.read_text().startswith("an earlier line\n")
    assert f"{disk.relative}/params" in result.log


@F
def test_log_unwritable_not_fatal(runner, guest, image):
    """11: missing log directory: the operation still succeeds (D54)."""
    directory = runner.place.log_file.parent
    shutil.rmtree(directory)
    try:
        disk = guest().disk(image())
        assert runner.add(disk).status == 0
        assert_connected(disk)
        failing = guest().disk(image(), state=1)
        result = runner.add(failing)
        assert result.status == 1
        assert failing.read("hotplug-status") == b"error"
        assert len(result.errors) == 1
        assert not directory.exists()
    finally:
        directory.mkdir(exist_ok=True)


@K
@pytest.mark.parametrize("outcome", ["error", "busy"])
def test_syslog_err_on_failure(runner, guest, image, outcome):
    """12: each ERR or BUSY yields one daemon.err line starting with the script path."""
    failing = {"error": {"state": 1}, "busy": {}}
    disk = guest().disk(image(mode=0o444), **failing[outcome])
    result = runner.add(disk)
    assert disk.read("hotplug-status").decode() == outcome
    (line,) = result.errors
    assert line.startswith(f"{result.script}: ")
    first, _, _ = disk.read("hotplug-error").decode().partition("\n")
    assert first in line


@F
def test_syslog_absent_not_fatal(runner, guest, image):
    """12: no syslog daemon is no failure, and a failure stays the one it is."""
    hidden = runner.place.directory / "hidden"
    runner.place.syslog.path.rename(hidden)
    try:
        disk = guest().disk(image(), state=1)
        run = runner.start(disk, "add")
        assert run.process.wait(10) == 1
        assert b"Path closed or removed" in disk.read("hotplug-error")
    finally:
        hidden.rename(runner.place.syslog.path)
    assert run.wait().status == 1


def recorder(runner, path):
    """A foreign helper block-recorder, which notes how it was run."""
    runner.place.helper(
        "block-recorder",
        f"""#!/bin/sh
        printf '%s\\0' "$@" > {path}/arguments
        cat /proc/self/environ > {path}/environment
        [ "$1" = remove ] || xenstore-write "$XENBUS_PATH/physical-device" fe:7c
        """,
    )


@K
def test_child_environment(runner, guest, tmp_path):
    """13: helper tools see LANG=POSIX, no LC_*, PATH with the sbin directories."""
    recorder(runner, tmp_path)
    disk = guest().disk("recorder:thing", keys={"type": "recorder"})
    variables = {
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C.UTF-8",
        "LC_TIME": "C",
        "PATH": "/usr/bin:/bin",
    }
    assert runner.add(disk, variables=variables).status == 0
    assert (tmp_path / "arguments").read_bytes() == b"add\0"
    pairs = (tmp_path / "environment").read_bytes().split(b"\0")[:-1]
    seen = dict(pair.decode().split("=", 1) for pair in pairs)
    assert seen["LANG"] == "POSIX"
    assert [name for name in seen if name.startswith("LC_")] == []
    assert {"/sbin", "/usr/sbin", "/bin", "/usr/bin"} <= set(seen["PATH"].split(":"))
    assert seen["XENBUS_PATH"] == disk.relative
    assert seen["XENBUS_TYPE"] == "vbd"
    assert seen["XENBUS_BASE_PATH"] == "backend"
    assert_connected(disk)


@F
def test_helper_runs_for_remove_too(runner, guest, tmp_path):
    """13, D49: a helper that was run for add is run for remove, in the same environment."""
    recorder(runner, tmp_path)
    disk = guest().disk("recorder:thing", keys={"type": "recorder"})
    assert runner.add(disk).status == 0
    assert runner.remove(disk, variables={"LC_ALL": "C.UTF-8"}).status == 0
    assert (tmp_path / "arguments").read_bytes() == b"remove\0"
    pairs = (tmp_path / "environment").read_bytes().split(b"\0")
    assert b"LANG=POSIX" in pairs
    assert [pair for pair in pairs if pair.startswith(b"LC_")] == []


@F
def test_arguments_never_evaluated(runner, guest, image, tmp_path):
    """18: argument "x=1;touch /f" creates no file (D27)."""
    made = tmp_path / "f"
    disk = guest().disk(image())
    arguments = [f"x=1;touch {made}", f"y=$(touch {made})", f"z=`touch {made}`"]
    assert runner.run(disk, *arguments, "add", f"a=1;touch {made}").status == 0
    assert_connected(disk)
    assert runner.run(disk, "remove", *arguments).status == 0
    assert not made.exists()


@F
def test_udev_call_suppressed_by_key(runner, guest, image):
    """24: UDEV_CALL set and libxl/disable_udev present: NOP.

    K of Xen 4.2 to 4.5; the stock scripts of 4.6 and later, with which these tests run, have
    forgotten the key.
    """
    disk = guest().disk(image())
    before = disk.tree()
    runner.place.store.write("/local/domain/0/libxl/disable_udev", "1")
    try:
        assert runner.add(disk, variables={"UDEV_CALL": "1"}).status == 0
        assert disk.tree() == before
        assert runner.add(disk, variables={"UDEV_CALL": ""}).status == 0
        assert_connected(disk)
        before = disk.tree()
        disk.close()
        runner.run(disk, "remove", variables={"UDEV_CALL": "1"})
        loops.only_one(disk.read("params").decode())
    finally:
        runner.place.store.remove("/local/domain/0/libxl")
    other = guest().disk(image())
    assert runner.add(other, variables={"UDEV_CALL": "1"}).status == 0
    assert_connected(other)
