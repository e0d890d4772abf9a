"""Programs of others that attach a kind of disk."""

from __future__ import annotations

import pytest
from fakes_host import DeadlineError, World

from hotplug.config import Config
from hotplug.errors import BackendGoneError, DeviceBusyError, HotplugError
from hotplug.handlers.targets import helper


class Script:
    """block-odd: a program whose add and remove a test may change."""

    def __init__(self, world):
        self.world = world
        self.calls = []
        self.keys = {"physical-device": b"fd:7", "physical-device-path": b"/dev/odd"}
        self.status = {"add": 0, "remove": 0}
        self.also = {"add": lambda: None, "remove": lambda: None}

    def __call__(self, action, variables):
        self.calls.append((action, variables))
        base = variables["XENBUS_PATH"]
        if action == "add":
            for name, value in self.keys.items():
                self.world.store.write(f"{base}/{name}", value)
        self.also[action]()
        return self.status[action]

    @property
    def actions(self):
        return [action for action, _ in self.calls]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def program(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    path = scripts / "block-odd"
    path.touch(0o755)
    return path


@pytest.fixture
def script(world, program):
    script = Script(world)
    world.others[str(program)] = script
    return script


@pytest.fixture
def device(world, script):
    return world.disk(5, "some:thing", type="odd")


CONNECTED = {
    "physical-device": b"fd:7",
    "physical-device-path": b"/dev/odd",
    "hotplug-status": b"connected",
}


@pytest.mark.parametrize("type_", ["", "../odd", "odd/../odd", "..", "x\0", "absent", "plain"])
def test_no_program(tmp_path, program, type_):
    (tmp_path / "scripts" / "block-plain").touch(0o644)
    (tmp_path / "scripts" / "block-folder").mkdir()
    host = World(tmp_path).host()
    assert helper.path(host, type_) is None
    assert helper.path(host, "folder") is None
    assert helper.path(host, "odd") == str(program)


def test_add_and_remove(world, script, device, program):
    world.add(device)
    assert world.keys(device) == CONNECTED
    assert script.calls == [
        (
            "add",
            {
                "XENBUS_PATH": device.path,
                "XENBUS_TYPE": "vbd",
                "XENBUS_BASE_PATH": "backend",
            },
        )
    ]
    assert world.journal(device).facts == {"path": str(program)}
    world.remove(device)
    assert script.actions == ["add", "remove"]
    assert world.journal(device) is None


def test_it_reports_success_itself(world, script, device):
    script.keys["hotplug-status"] = b"connected"
    world.add(device)
    assert world.keys(device) == CONNECTED


def test_blkback_connects_at_once(world, script, device):
    script.also["add"] = lambda: world.set(device, state="4")
    world.add(device)
    assert world.keys(device) == CONNECTED
    world.add(device)
    assert script.actions == ["add"]


def test_the_old_error_goes(world, script, device):
    world.set(device, hotplug_error="of yesterday")
    world.add(device)
    assert world.keys(device) == CONNECTED


def test_remove_although_params_and_type_changed(world, script, device):
    world.add(device)
    world.set(device, params="/srv/a.img", type="file")
    world.remove(device)
    assert script.actions == ["add", "remove"]


def test_its_own_words_are_kept(world, script, device):
    script.keys = {"hotplug-error": b"the disk is on fire", "hotplug-status": b"error"}
    script.status["add"] = 1
    with pytest.raises(HotplugError, match=r"^the disk is on fire$"):
        world.add(device)
    assert script.actions == ["add", "remove"]
    assert world.journal(device) is None


def test_it_may_call_the_disk_busy(world, script, device):
    script.keys = {"hotplug-error": b"in use", "hotplug-status": b"busy"}
    script.status["add"] = 1
    with pytest.raises(DeviceBusyError, match=r"^in use$"):
        world.add(device)


def test_old_words_are_not_its_own(world, script, device, program):
    world.set(device, hotplug_error="of yesterday", hotplug_status="error")
    script.keys = {}
    script.status["add"] = 3
    with pytest.raises(HotplugError) as caught:
        world.add(device)
    assert str(caught.value) == f"{program} add failed: exit status 3"


def test_no_device(world, script, device, program):
    script.keys = {"hotplug-status": b"connected"}
    with pytest.raises(HotplugError) as caught:
        world.add(device)
    where = f"{device.path}/physical-device"
    assert str(caught.value) == f"{program} add succeeded, but did not write {where}"
    assert script.actions == ["add", "remove"]


def test_the_backend_is_closed_meanwhile(world, script, device):
    script.also["add"] = lambda: world.set(device, state="6")
    with pytest.raises(HotplugError, match="Path closed or removed"):
        world.add(device)
    assert script.actions == ["add", "remove"]
    assert world.keys(device) == {}


def test_the_backend_is_deleted_meanwhile(world, script, device):
    """What the program writes for remove does not bring it back."""
    script.also["add"] = lambda: world.store.remove(device.path)
    script.also["remove"] = lambda: world.set(device, hotplug_status="error", hotplug_error="?")
    with pytest.raises((BackendGoneError, HotplugError)):
        world.add(device)
    assert script.actions == ["add", "remove"]
    assert world.store.directory(device.path) is None


def test_remove_of_a_deleted_backend(world, script, device):
    world.add(device)
    world.store.remove(device.path)
    script.also["remove"] = lambda: world.set(device, hotplug_status="error", hotplug_error="?")
    world.reclaim(device)
    assert script.actions == ["add", "remove"]
    assert world.store.directory(device.path) is None


def test_remove_may_fail(world, script, device, program):
    world.add(device)
    script.status["remove"] = 2
    with pytest.raises(HotplugError, match=f"^{program} remove failed: exit status 2$"):
        world.remove(device)
    script.status["remove"] = 0
    world.remove(device)
    assert world.journal(device) is None


def test_it_hangs(world, script, device):
    def hang():
        raise DeadlineError("gave up after 35 s")

    script.also["add"] = hang
    with pytest.raises(DeadlineError):
        world.add(device)
    assert script.actions == ["add", "remove"]


def test_killed_while_it_ran(world, script, device):
    assert world.add_and_die(1, device)
    world.remove(device)
    assert script.actions == ["add", "remove"]
    assert world.journal(device) is None


def test_it_is_uninstalled(world, script, device, program):
    world.add(device)
    del world.others[str(program)]
    with pytest.raises(HotplugError, match=f"^{program} cannot remove the disk: it is gone"):
        world.remove(device)


def test_left_by_the_stock_script(world, script):
    device = world.disk(6, "some:thing", type="odd", **{"physical-device": "fd:7"})
    world.remove(device)
    assert script.actions == ["remove"]


def test_never_attached(world, script, device):
    world.remove(device)
    assert script.actions == []


def test_no_such_kind(world, device):
    world.config = Config(rundir=world.config.rundir, scripts="/nowhere")
    with pytest.raises(HotplugError, match=r"^some:thing does not exist.$"):
        world.add(device)
