"""Disks of others' making, with real processes, lock files, loop devices and a real store.

The tools are the fakes of ``tests/data/bin``, run as programs; the store is Xen's own where a
program writes to it.
"""

from __future__ import annotations

import os
import shutil

import pytest
from fakes_host import BIN, World
from harness import loops

from hotplug import xenstore
from hotplug.agent.deadline import EventDeadline
from hotplug.errors import DeadlineError, DeviceBusyError, HotplugError
from hotplug.handlers.targets import iscsi
from hotplug.kernel.blockdev import LocalPaths
from hotplug.kernel.lockfile import LockFiles
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.programs import HostPrograms

IQN = "iqn.2003-01.org.example:disk"
PORTAL = "192.0.2.1:3260"


class Tools:
    """Programs of this host, but the fake ones by their full path, whatever is installed."""

    def run(self, argv, deadline, variables=None):
        fake = BIN / argv[0]
        first = str(fake) if fake.exists() else argv[0]
        return HostPrograms().run([first, *argv[1:]], deadline, variables)


@pytest.fixture
def world(tmp_path, monkeypatch):
    locks = tmp_path / "locks"
    world = World(
        tmp_path,
        programs=Tools(),
        locks=LockFiles(str(locks)),
        paths=LocalPaths(),
        loops=KernelLoops(watch=False),
    )
    monkeypatch.setenv("FAKE_TOOLS", str(world.folder))
    yield world
    assert not locks.exists() or os.listdir(locks) == []
    assert os.listdir(tmp_path / "journal") == []


@pytest.fixture
def image(tmp_path):
    return loops.make_file(tmp_path / "an image.raw")


@pytest.fixture
def block_device(tmp_path):
    path = loops.attach(loops.make_file(tmp_path / "device"))
    yield path
    loops.detach(path)


def taps(world):
    state = world.state("tap")
    return state["minors"], state["tapdisks"]


def test_tap(world, image):
    device = world.disk(5, f"aio:{image}", kind="vbd3")
    world.add(device, "block-tap")
    assert world.keys(device)["physical-device-path"] == b"/run/blktap-control/nbd5000001.0"
    assert taps(world) == ([0], {"5000001": {"0": f"aio:{image}"}})
    world.set(device, state="6")
    world.remove(device, "block-tap")
    assert taps(world) == ([], {})


def test_tap_ctl_hangs(world, image):
    """It is killed at the deadline, and what it had begun is undone after that."""
    world.tell("faults", {"tap-ctl open": "hang"})
    device = world.disk(5, f"aio:{image}", kind="vbd3")
    with pytest.raises(DeadlineError):
        world.add(device, "block-tap", EventDeadline(1.0))
    assert taps(world) == ([], {})


@pytest.fixture
def by_path(tmp_path, monkeypatch, block_device):
    folder = tmp_path / "by-path"
    folder.mkdir()
    monkeypatch.setattr(iscsi, "BY_PATH", str(folder))
    (folder / f"ip-{PORTAL}-iscsi-{IQN}-lun-0").symlink_to(block_device)
    return folder


@pytest.mark.usefixtures("by_path")
def test_iscsi(world, block_device):
    world.tell("targets", {PORTAL: [IQN]})
    device = world.disk(5, f"iqn={IQN},portal=192.0.2.1")
    world.add(device, "block-iscsi")
    number = os.stat(block_device).st_rdev
    assert world.keys(device) == {
        "physical-device": f"{os.major(number):x}:{os.minor(number):x}".encode(),
        "physical-device-path": block_device.encode(),
        "hotplug-status": b"connected",
    }
    world.remove(device, "block-iscsi")
    assert world.state("sessions") == []


def test_iscsi_without_a_disk(world, by_path):
    shutil.rmtree(by_path)
    world.tell("targets", {PORTAL: [IQN]})
    device = world.disk(5, f"iqn={IQN},portal=192.0.2.1")
    with pytest.raises(DeadlineError, match=r"waiting for .*-lun-0"):
        world.add(device, "block-iscsi", EventDeadline(1.0))
    assert world.state("sessions") == []


@pytest.mark.usefixtures("by_path")
def test_iscsiadm_hangs(world):
    world.tell("targets", {PORTAL: [IQN]})
    world.tell("faults", {"iscsiadm -m node": "hang"})
    device = world.disk(5, f"iqn={IQN},portal=192.0.2.1")
    with pytest.raises(DeadlineError):
        world.add(device, "block-iscsi", EventDeadline(1.0))


def test_dummy(world, image):
    device = world.disk(5, f"dummy:{image}")
    world.add(device, "block-dummy")
    (loop,) = loops.of(image)
    assert world.keys(device) == {
        "node": loop.path.encode(),
        "physical-device": loop.number.encode(),
        "physical-device-path": loop.path.encode(),
        "hotplug-status": b"connected",
    }
    other = world.disk(6, f"dummy:{image}")
    with pytest.raises(DeviceBusyError):
        world.add(other, "block-dummy")
    world.remove(device, "block-dummy")
    assert loops.of(image) == []


def test_dummy_left_by_the_stock_script(world, image):
    path = loops.attach(image)
    world.remove(world.disk(5, f"dummy:{image}", node=path), "block-dummy")
    assert loops.of(image) == []


STOCK_LIKE = """#!/bin/bash
# A block script as others write them, on the stock scripts' runtime.
. "$(dirname "$0")/block-common.sh"
case "$1" in
add) claim_lock block; write_dev {device}; release_lock block ;;
remove) echo "$XENBUS_PATH" >> {removed} ;;
esac
"""
REFUSING = """#!/bin/bash
. "$(dirname "$0")/block-common.sh"
if [ "$1" = add ]; then fatal "no such thing as $(xenstore-read "$XENBUS_PATH/params")"; fi
if [ "$1" = remove ]; then xenstore-write "$XENBUS_PATH/hotplug-error" "not attached"; fi
"""
SILENT = "#!/bin/sh\nexit 0\n"


class TestHelper:
    """With Xen's store, its command line tools and its scripts."""

    @pytest.fixture
    def store(self, xenstored, monkeypatch):
        monkeypatch.setenv("XENSTORED_PATH", xenstored.socket)
        with xenstore.connect(xenstored.socket) as client:
            yield client
            client.remove("backend")
            client.remove("/local/domain/5")

    @pytest.fixture
    def world(self, tmp_path, store):
        return World(
            tmp_path,
            store=store,
            programs=HostPrograms(),
            locks=LockFiles(str(tmp_path / "locks")),
            paths=LocalPaths(),
        )

    @pytest.fixture
    def script(self, tmp_path):
        """Writes block-odd, among copies of the stock scripts that keep to this folder."""
        scripts = tmp_path / "scripts"
        shutil.copytree("/etc/xen/scripts", scripts)
        for name in ("locking.sh", "xen-hotplug-common.sh"):
            path = scripts / name
            text = path.read_text().replace("/var/run/xen-hotplug", f"{tmp_path}/locks")
            path.write_text(text.replace("/var/log/xen", str(tmp_path)))

        def write(text):
            path = scripts / "block-odd"
            path.write_text(text)
            path.chmod(0o755)
            return path

        return write

    def test_on_the_stock_runtime(self, world, script, block_device, tmp_path):
        removed = tmp_path / "removed"
        script(STOCK_LIKE.format(device=block_device, removed=removed))
        device = world.disk(5, "some:thing", type="odd")
        world.add(device)
        number = os.stat(block_device).st_rdev
        assert world.keys(device) == {
            "physical-device": f"{os.major(number):x}:{os.minor(number):x}".encode(),
            "physical-device-path": block_device.encode(),
            "hotplug-status": b"connected",
        }
        world.remove(device)
        assert removed.read_text() == f"{device.path}\n"
        assert world.journal(device) is None

    def test_its_own_words(self, world, script):
        script(REFUSING)
        device = world.disk(5, "some:thing", type="odd")
        with pytest.raises(HotplugError, match=r"^no such thing as some:thing$"):
            world.add(device)

    def test_a_deleted_backend_stays_deleted(self, world, script, store, block_device, tmp_path):
        script(STOCK_LIKE.format(device=block_device, removed=tmp_path / "removed"))
        device = world.disk(5, "some:thing", type="odd")
        world.add(device)
        script(REFUSING)
        store.remove(device.path)
        world.reclaim(device)
        assert store.directory(device.path) is None

    def test_no_device(self, world, script):
        path = script(SILENT)
        device = world.disk(5, "some:thing", type="odd")
        with pytest.raises(HotplugError, match=f"^{path} add succeeded, but did not write"):
            world.add(device)
        assert "hotplug-status" not in world.keys(device)

    def test_no_program_at_all(self, world, script):
        path = script("echo a script without a first line\n")
        device = world.disk(5, "some:thing", type="odd")
        with pytest.raises(HotplugError, match=f"^{path} cannot be run: Exec format error"):
            world.add(device)

    def test_no_interpreter(self, world, script):
        path = script("#!/no/such/interpreter\n")
        device = world.disk(5, "some:thing", type="odd")
        with pytest.raises(HotplugError, match=f"^{path} cannot add the disk: it is gone, or"):
            world.add(device)


def test_a_nul_in_params(world):
    device = world.disk(5, "aio:/a\0b", kind="vbd3")
    with pytest.raises(HotplugError, match=r"^tap-ctl cannot be run: embedded null byte"):
        world.add(device, "block-tap")
    assert taps(world) == ([], {})
