"""What is found to be attached for nobody, also where the store does not say all."""

import pytest
from fakes_host import World
from fakes_kernel import FakeLoops

from hotplug.agent import reconcile
from hotplug.handlers.sharing import reference
from hotplug.ports import Attachment, FileId

HIDDEN = ("physical-device", "")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, loops=FakeLoops())


def found(world, look):
    """The devices of the leaks, and of those about which nothing can be known."""
    refused = []
    leaks = look(world.host(), lambda device, error: refused.append((device, error.filename)))
    return [leak.device for leak in leaks], refused


@pytest.mark.parametrize("key", HIDDEN)
def test_a_loop_device_that_may_be_wanted_hides_no_other(world, key):
    host = world.host()
    devices = [world.device(domid) for domid in (3, 4, 5)]
    for inode, device in enumerate(devices):
        host.loops.bind(FileId(1, inode), reference=reference(host, device))
    path = f"{devices[1].path}/physical-device"
    world.store.write(path, b"7:1")
    world.store.forbid(f"{devices[1].path}/{key}".rstrip("/"))
    assert found(world, reconcile.unknown_loops) == (
        [devices[0], devices[2]],
        [(devices[1], path)],
    )


@pytest.mark.parametrize("key", HIDDEN)
def test_an_entry_that_may_be_wanted_hides_no_other(world, key):
    host = world.host()
    devices = [world.device(domid) for domid in (3, 4, 5)]
    for device in devices:
        with host.journal.claim(device, host.deadline) as entry:
            entry.record(Attachment("file", {"path": "/srv/a"}))
    path = f"{devices[1].path}/physical-device"
    world.store.write(path, b"7:1")
    world.store.forbid(f"{devices[1].path}/{key}".rstrip("/"))
    assert found(world, reconcile.unwanted_entries) == (
        [devices[0], devices[2]],
        [(devices[1], path)],
    )


def test_a_backend_that_may_not_be_read_hides_none_that_waits(world):
    hidden, waiting = world.disk(3, "/srv/a"), world.disk(4, "/srv/b")
    world.store.forbid(f"{hidden.path}/state")
    assert reconcile.waiting(world.host()) == [waiting]
