"""Disks on an NBD server, with a driver that is a dictionary."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

import pytest
from fakes_host import World

from hotplug.errors import DeadlineError, DeviceBusyError, HotplugError
from hotplug.handlers.targets import nbd
from hotplug.nbd import NbdDevice, NbdExport, NbdServer
from hotplug.ports import Attachment, Number

NBD = "block-nbd"
PARAMS = "nbd:192.0.2.1:10809/disk"


@dataclass
class FakeNbd:
    """The driver and every server. ``old`` is a kernel before 5.14."""

    present: bool = True
    old: bool = False
    devices: dict = field(default_factory=dict)
    exports: list = field(default_factory=list)  # opened and not closed
    read_only: bool = False
    refusal: OSError | None = None
    thieves: set = field(default_factory=set)  # numbers that somebody takes before us
    connected: list = field(default_factory=list)

    def available(self):
        return self.present

    @contextlib.contextmanager
    def open(self, server, _deadline):
        if self.refusal is not None:
            raise self.refusal
        self.exports.append(server)
        try:
            yield NbdExport(None, 1 << 20, 3 if self.read_only else 1, 512, self.read_only)
        finally:
            self.exports.remove(server)

    def free(self):
        return (number for number in range(20) if number not in self.devices)

    def get(self, number):
        return self.devices.get(number)

    def connect(self, number, _export, *, read_only, reference):
        if number in self.thieves:
            self.devices[number] = NbdDevice(1, None if self.old else "")
        if number in self.devices:
            raise OSError(errno.EBUSY, "Device or resource busy", f"/dev/nbd{number}")
        self.connected.append((number, read_only))
        self.devices[number] = NbdDevice(os.getpid(), None if self.old else reference)

    def disconnect(self, number):
        del self.devices[number]


@pytest.fixture
def driver():
    return FakeNbd()


@pytest.fixture
def world(tmp_path, driver):
    world = World(tmp_path, nbd=driver)
    for number in range(20):
        path = f"/dev/nbd{number}"
        world.paths.devices[path] = lambda n=number, path=path: (
            (path, Number(43, 32 * n)) if n in driver.devices else None
        )
    return world


@pytest.mark.parametrize(
    ("params", "server", "text"),
    [
        ("nbd:san:10809", NbdServer("san", 10809, "", ""), "nbd:san:10809"),
        ("san:10809", NbdServer("san", 10809, "", ""), "nbd:san:10809"),
        ("nbd:san:10809/a/b:c", NbdServer("san", 10809, "", "a/b:c"), "nbd:san:10809/a/b:c"),
        ("nbd:san:10809/", NbdServer("san", 10809, "", ""), "nbd:san:10809"),
        ("nbd:[::1]:1/x", NbdServer("::1", 1, "", "x"), "nbd:[::1]:1/x"),
        ("[::1]:1", NbdServer("::1", 1, "", ""), "nbd:[::1]:1"),
        ("nbd:unix:/run/a", NbdServer("", 0, "/run/a", ""), "nbd:unix:/run/a"),
        ("unix:/run/a:b:c", NbdServer("", 0, "/run/a", "b:c"), "nbd:unix:/run/a:b:c"),
    ],
)
def test_params(params, server, text):
    assert nbd.parse(params) == server
    assert str(server) == text
    assert nbd.parse(text) == server


@pytest.mark.parametrize(
    "params",
    [
        *("nbd:", "san", "san:", ":10809", "san:0", "san:65536", "san:x", "san:\u0661"),
        *("::1:10809", "[::1]", "[::1]10809", "unix:", "unix:relative", "/srv/disk.img"),
    ],
)
def test_odd_params(params):
    with pytest.raises(
        HotplugError, match=r"^Cannot parse required parameters: .* is neither nbd:"
    ):
        nbd.parse(params)


def test_add_and_remove(world, driver):
    driver.devices[0] = NbdDevice(1, "somebody else's")
    device = world.disk(5, PARAMS)
    world.add(device, NBD)
    assert world.keys(device) == {
        "physical-device": b"2b:20",
        "physical-device-path": b"/dev/nbd1",
        "hotplug-status": b"connected",
    }
    assert driver.devices[1] == NbdDevice(os.getpid(), "test:vbd.5.51712")
    assert driver.exports == []
    assert world.journal(device).facts["path"] == PARAMS
    world.add(device, NBD)
    assert driver.connected == [(1, False)]
    world.remove(device, NBD)
    assert list(driver.devices) == [0]
    world.remove(device, NBD)


def test_xl_strips_the_prefix(world, driver):
    world.add(world.disk(5, "192.0.2.1:10809"), NBD)
    assert list(driver.devices) == [0]


def test_read_only(world, driver):
    world.add(world.disk(5, PARAMS, mode="r"), NBD)
    assert driver.connected == [(0, True)]


def test_a_read_only_export(world, driver):
    driver.read_only = True
    world.add(world.disk(5, PARAMS, mode="r"), NBD)
    with pytest.raises(DeviceBusyError, match=r"^Export nbd:.* is read-only, and so I will not\n"):
        world.add(world.disk(6, PARAMS), NBD)
    assert driver.exports == []


def test_the_server_refuses(world, driver):
    driver.refusal = OSError(errno.EPROTO, "the server has no such export", PARAMS)
    with pytest.raises(HotplugError, match=f"^{PARAMS} cannot be used: the server has no such exp"):
        world.add(world.disk(5, PARAMS), NBD)


def test_the_server_does_not_answer(world, driver):
    driver.refusal = DeadlineError("gave up after 35 s while asking")
    with pytest.raises(DeadlineError):
        world.add(world.disk(5, PARAMS), NBD)


def test_no_driver(world, driver):
    driver.present = False
    text = r"^the kernel has no nbd support \(modprobe nbd\): modprobe: FATAL: Module nbd not found"
    with pytest.raises(HotplugError, match=text):
        world.add(world.disk(5, PARAMS), NBD)
    world.absent.add("modprobe")
    with pytest.raises(
        HotplugError, match=r"^the kernel has no nbd support \(modprobe nbd\): no mod"
    ):
        world.add(world.disk(5, PARAMS), NBD)


def test_the_driver_is_loaded(world, driver):
    driver.present = False

    def modprobe(argument, variables):
        driver.present = argument == "nbd"
        return 0

    world.others["modprobe"] = modprobe
    world.add(world.disk(5, PARAMS), NBD)
    assert list(driver.devices) == [0]


def test_modprobe_lies(world, driver):
    driver.present = False
    world.tell("modules", ["nbd"])
    with pytest.raises(HotplugError, match=r"^the kernel has no nbd support \(modprobe nbd\)$"):
        world.add(world.disk(5, PARAMS), NBD)


def test_somebody_is_faster(world, driver):
    driver.thieves = {0, 1}
    device = world.disk(5, PARAMS)
    world.add(device, NBD)
    assert world.journal(device).facts["number"] == 2
    world.remove(device, NBD)
    assert list(driver.devices) == [0, 1]


def test_everything_is_taken(world, driver):
    driver.thieves = set(range(20))
    device = world.disk(5, PARAMS)
    with pytest.raises(
        HotplugError, match=r"^nbd:.* connected to a device: Device or resource busy$"
    ):
        world.add(device, NBD)
    assert len(driver.devices) == nbd.ATTEMPTS
    assert world.journal(device) is None


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM])
def test_the_kernel_refuses(world, driver, monkeypatch, number):
    def connect(*_, **__):
        raise OSError(number, os.strerror(number), "/dev/nbd0")

    monkeypatch.setattr(driver, "connect", connect)
    device = world.disk(5, PARAMS)
    with pytest.raises(HotplugError, match=os.strerror(number)):
        world.add(device, NBD)
    assert world.journal(device) is None


def test_the_kernel_does_not_answer(world, driver, monkeypatch):
    """And has connected the device all the same."""
    original = driver.connect

    def connect(*arguments, **options):
        original(*arguments, **options)
        raise TimeoutError("timed out")

    monkeypatch.setattr(driver, "connect", connect)
    device = world.disk(5, PARAMS)
    with pytest.raises(HotplugError, match="timed out"):
        world.add(device, NBD)
    assert driver.devices == {}
    assert world.journal(device) is None


def test_the_device_is_taken_away(world, driver):
    def locate():
        driver.devices.pop(0)
        return ("/dev/nbd0", Number(43, 0))

    world.paths.devices["/dev/nbd0"] = locate
    with pytest.raises(HotplugError, match=r"^/dev/nbd0 was taken away while nbd:"):
        world.add(world.disk(5, PARAMS), NBD)


@pytest.mark.parametrize("old", [True, False])
def test_remove_leaves_what_another_connected_since(world, driver, old):
    driver.old = old
    device = world.disk(5, PARAMS)
    world.add(device, NBD)
    driver.devices[0] = NbdDevice(1, None if old else "somebody else's")
    world.remove(device, NBD)
    assert list(driver.devices) == [0]
    assert world.journal(device) is None


def test_an_old_kernel(world, driver):
    driver.old = True
    device = world.disk(5, PARAMS)
    world.add(device, NBD)
    world.remove(device, NBD)
    assert driver.devices == {}


def test_killed_before_the_connection(world, driver):
    """The journal knows a device that is another's by now."""
    device = world.disk(5, PARAMS)
    facts = {"path": PARAMS, "pid": 1, "number": 0}
    with world.host().journal.claim(device, world.host().deadline) as entry:
        entry.record(Attachment("nbd", facts))
    other = world.disk(6, "nbd:san:1")
    world.add(other, NBD)
    world.remove(device, NBD)
    assert list(driver.devices) == [0]


def test_left_from_a_run_that_died(world, driver):
    device = world.disk(5, PARAMS)
    driver.devices[0] = NbdDevice(1, "test:vbd.5.51712")
    with world.host().journal.claim(device, world.host().deadline) as entry:
        entry.record(Attachment("nbd", {"path": PARAMS, "pid": 1, "number": 0}))
    world.add(device, NBD)
    assert driver.devices == {0: NbdDevice(os.getpid(), "test:vbd.5.51712")}


class TestSharing:
    @pytest.mark.parametrize("params", [PARAMS, PARAMS.removeprefix("nbd:")])
    def test_two_guests(self, world, driver, params):
        world.add(world.disk(5, PARAMS), NBD)
        with pytest.raises(DeviceBusyError, match=f"^Device {PARAMS} is mounted in a guest domain"):
            world.add(world.disk(6, params), NBD)
        assert list(driver.devices) == [0]

    def test_another_export(self, world, driver):
        world.add(world.disk(5, PARAMS), NBD)
        world.disk(7, "/srv/a.img", **{"hotplug-status": "connected"})
        world.add(world.disk(6, f"{PARAMS}2"), NBD)
        assert list(driver.devices) == [0, 1]

    def test_two_readers(self, world, driver):
        world.add(world.disk(5, PARAMS, mode="r"), NBD)
        world.add(world.disk(6, PARAMS, mode="r"), NBD)
        assert list(driver.devices) == [0, 1]


def test_enbd(world):
    with pytest.raises(HotplugError, match="no kernel has an ENBD driver any more"):
        world.add(world.disk(5, "san:10809"), "block-enbd")
    world.remove(world.disk(5, "san:10809"), "block-enbd")


def test_nothing_was_recorded(world, driver):
    driver.devices[0] = NbdDevice(1, "")
    world.remove(world.disk(5, PARAMS, **{"physical-device": "2b:0"}), NBD)
    assert list(driver.devices) == [0]
