"""Hosts whose events come from the kernel: a test plays xend, and the kernel, against the agent.

xend writes the nodes of a device and waits until ``hotplug-status`` is there: ``error`` and
``busy`` are failures, whatever else is success. It takes a device for gone when that key is.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import agent as agents
from harness import leaks, loops
from harness.guests import Guest
from harness.locks import wait_until
from harness.loops import make_file
from harness.netns import netns
from harness.place import place as make_place
from harness.run import Runner, scripts_directory

TESTS = Path(__file__).parents[1]
RULES = TESTS.parent / "udev-rules" / "xen-hotplug.rules"
PATIENCE = 20.0


@dataclass
class Host:
    """A host with a bridge, whose kernel we play."""

    net: object
    place: object
    agent: object = None

    @property
    def flag(self):
        return self.place.rundir / "udev"

    def start(self, *, fake=True):
        variables = {
            "PYTHONPATH": str(TESTS / "data" / "pyudev"),
            "FAKE_UEVENTS": str(self.place.directory / "uevents"),
        }
        self.agent = agents.start(self.place, variables if fake else None, self.net.launcher)

    def stop(self):
        if self.agent is not None and self.agent.process.poll() is None:
            assert self.agent.stop() == 0

    def uevent(self, action, backend, **more):
        properties = {
            "ACTION": action,
            "SUBSYSTEM": "xen-backend",
            "XENBUS_TYPE": backend.kind,
            "XENBUS_PATH": backend.relative,
            "XENBUS_BASE_PATH": "backend",
            **more,
        }
        self.send(json.dumps(properties).encode())

    def send(self, message):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message, str(self.place.directory / "uevents"))

    def disk(self, file, **options):
        """What xend writes for a disk, which has no script, and what the kernel says to it."""
        keys = {"script": None, "type": "file", **options.pop("keys", {})}
        backend = Guest(self.place.store).disk(str(file), state=1, keys=keys, **options)
        self.uevent("add", backend)
        self.record(backend)
        backend.write("state", 2)
        return backend

    def card(self, *, script="/etc/xen/scripts/vif-bridge", vif="", **keys):
        """The same for a card; its link is there before the kernel says so."""
        keys = {"hotplug-status": None, **keys}
        backend = Guest(self.place.store).card(script=script, keys=keys)
        self.record(backend)
        self.net.add_vif(backend.link)
        self.uevent("online", backend, script=script, vif=vif or backend.link)
        return backend

    def record(self, backend):
        """xend's own list of devices."""
        store = self.place.store
        vm = store.read(f"/local/domain/{backend.domid}/vm").decode()
        store.write(f"{vm}/device/{backend.kind}/{backend.devid}/backend", backend.path)

    def detach(self, backend):
        """xend wants a device to go; the backend driver lets it, and the kernel says so."""
        backend.write("online", 0)
        backend.write("state", 5)
        backend.write("state", 6)
        if backend.kind == "vif":
            script = backend.read("script").decode()
            backend.drop("hotplug-status")  # netback_remove
            self.uevent("offline", backend, script=script, vif=backend.link)
        self.uevent("remove", backend)

    def is_gone(self, backend):
        store = self.place.store
        vm = (store.read(f"/local/domain/{backend.domid}/vm") or b"").decode()
        paths = [backend.path, backend.frontend, f"{vm}/device/{backend.kind}"]
        return not any(map(store.exists, paths))


def is_port(host, name):
    return host.net.links()[name].get("master") == "xenbr0"


@pytest.fixture
def host(tmp_path):
    with netns() as net, make_place() as place:
        net.add_bridge("xenbr0")
        place.configure(udev=True)
        made = Host(net, place)
        yield made
        made.stop()
        leaks.refuse(place, tmp_path, None)


def wait_for(condition, what):
    wait_until(condition, what, PATIENCE)


def wait_for_status(backend, status=b"connected"):
    wait_for(lambda: backend.read("hotplug-status") == status, f"{backend.path} is {status}")


def wait_for_end(host, *backends):
    for backend in backends:
        wait_for(lambda b=backend: host.is_gone(b), f"{backend.path} is gone, and its traces")


def test_a_disk_of_xend(host, tmp_path):
    host.start()
    backend = host.disk(make_file(tmp_path / "a.img"))
    wait_for_status(backend)
    assert len(loops.below(tmp_path)) == 1
    host.detach(backend)
    wait_for_end(host, backend)
    assert loops.below(tmp_path) == []


def test_a_disk_that_is_in_use(host, tmp_path):
    host.start()
    file = make_file(tmp_path / "a.img")
    first = host.disk(file)
    wait_for_status(first)
    second = host.disk(file)
    wait_for_status(second, b"busy")
    assert b"which is mounted in a guest domain" in second.read("hotplug-error")
    missing = host.disk(tmp_path / "none.img")
    wait_for_status(missing, b"error")
    assert b"none.img" in missing.read("hotplug-error")
    for backend in (first, second, missing):
        host.detach(backend)
    wait_for_end(host, first, second, missing)


def test_a_card_of_xend(host):
    host.start()
    backend = host.card()
    wait_for_status(backend)
    assert host.net.links()[backend.link]["master"] == "xenbr0"
    host.detach(backend)
    wait_for_end(host, backend)
    assert "master" not in host.net.links()[backend.link]


def test_a_script_with_arguments(host, tmp_path):
    """One of ours takes those that it knows; another program is run with all of them."""
    program = host.place.helper(
        "vif-mine",
        f'#!/bin/sh\necho "$@" >>{tmp_path}/said\n'
        "xenstore-write $XENBUS_PATH/hotplug-status connected\n",
    )
    host.net.add_bridge("other")
    host.start()
    theirs = host.card(script=f"{program} netdev=eth1 size=3")
    ours = host.card(script="/etc/xen/scripts/vif-bridge bridge=other", bridge=None)
    wait_for_status(theirs)
    wait_for_status(ours)
    assert host.net.links()[ours.link]["master"] == "other"
    for backend in (theirs, ours):
        host.detach(backend)
    wait_for_end(host, theirs, ours)
    assert (tmp_path / "said").read_text() == (
        "netdev=eth1 size=3 online type_if=vif\nnetdev=eth1 size=3 offline type_if=vif\n"
    )


def test_a_script_that_runs_ours(host, tmp_path):
    """For the same card: it must not wait for its own end. Its nodes stay until it has ended."""
    mine = tmp_path / "my-vif"
    ours = scripts_directory() / "vif-bridge"
    mine.write_text(f'#!/bin/sh\nsleep 0.3\n{ours} "$@"\necho $? $1 >> {tmp_path}/said\n')
    mine.chmod(0o755)
    host.start()
    backend = host.card(script=str(mine))
    wait_for_status(backend)
    host.detach(backend)
    wait_for_end(host, backend)
    assert (tmp_path / "said").read_text() == "0 online\n0 offline\n"


def test_what_happened_while_nobody_listened(host, tmp_path):
    host.start()
    gone_disk, gone_card = host.disk(make_file(tmp_path / "a.img")), host.card()
    for backend in (gone_disk, gone_card):
        wait_for_status(backend)
    host.agent.kill()
    guest = Guest(host.place.store)
    disk, card = guest.disk(str(make_file(tmp_path / "b.img"))), guest.card()
    host.net.add_vif(card.link)
    for backend in (gone_disk, gone_card):
        backend.write("online", 0)
        backend.write("state", 6)
    gone_card.drop("hotplug-status")
    host.start()
    wait_for_status(disk)
    wait_for_status(card)
    wait_for_end(host, gone_disk, gone_card)
    for backend in (disk, card):
        host.detach(backend)
    wait_for_end(host, disk, card)


def test_events_that_were_lost(host, tmp_path):
    host.start()
    lost = Guest(host.place.store).disk(str(make_file(tmp_path / "a.img")))
    host.send(b"")
    wait_for_status(lost)
    backend = host.disk(make_file(tmp_path / "b.img"))
    wait_for_status(backend)
    for disk in (lost, backend):
        host.detach(disk)
    wait_for_end(host, lost, backend)


def test_a_tap_that_came_while_nobody_listened(host):
    host.start()
    backend = host.card()
    wait_for_status(backend)
    host.agent.kill()
    tap = f"{backend.link}-emu"
    host.net.add_tap(tap)
    host.start()
    wait_for(lambda: is_port(host, tap), "the tap is a port")
    host.net.ip("link", "del", "dev", tap)
    host.detach(backend)
    wait_for_end(host, backend)


def test_a_toolstack_that_runs_the_scripts_itself(host, tmp_path):
    """``libxl/disable_udev``: nothing is done for any event."""
    host.place.store.write("/local/domain/0/libxl/disable_udev", "1")
    host.start()
    backend, card = host.disk(make_file(tmp_path / "a.img")), host.card()
    host.uevent("remove", backend)
    time.sleep(0.5)
    assert backend.read("hotplug-status") is None
    assert card.read("hotplug-status") is None
    assert "master" not in host.net.links()[card.link]


def test_the_tap_of_an_emulated_card(host):
    """With the kernel's real event."""
    host.start(fake=False)
    backend = Guest(host.place.store).card(keys={"type": "vif_ioemu"})
    host.net.add_tap(f"{backend.link}-emu")
    host.net.add_tap("tap5.0")
    wait_for(lambda: is_port(host, f"{backend.link}-emu"), "the tap is a port")
    assert not is_port(host, "tap5.0")
    assert backend.read("hotplug-status") == b""
    runner = Runner("agent", host.place, agent=host.agent, launcher=host.net.launcher)
    assert runner.tap(backend, "remove").status == 0


def test_the_flag_is_there_while_we_listen(host):
    host.start()
    assert host.flag.exists()
    host.place.configure()
    host.agent.process.send_signal(signal.SIGHUP)
    wait_for(lambda: not host.flag.exists(), "we do not listen any more")
    host.place.configure(udev=True)
    host.agent.process.send_signal(signal.SIGHUP)
    wait_for(host.flag.exists, "we listen again")
    host.stop()
    assert not host.flag.exists()


@pytest.mark.parametrize("kind", ["agent", "oneshot"])
def test_without_a_listener_the_rules_run_the_drop_ins(host, tmp_path, kind):
    runner = Runner(kind, host.place, launcher=host.net.launcher)
    host.place.configure()
    if kind == "agent":  # one that serves clients only
        runner.start_agent()
    udev = {"UDEV_CALL": "1"}
    disk = Guest(host.place.store).disk(str(make_file(tmp_path / "a.img")))
    card = Guest(host.place.store).card(keys={"bridge": None})
    host.net.add_vif(card.link)
    for backend in (disk, card):
        host.record(backend)
    assert runner.run(disk, "add", variables={"ACTION": "add", **udev}).status == 0
    script = f"{runner.script('vif-bridge')} bridge=xenbr0"
    variables = {"ACTION": "online", "vif": card.link, "script": script, **udev}
    words = ("online", "type_if=vif")
    assert runner.run(card, *words, script="vif-setup", variables=variables).status == 0
    assert host.net.links()[card.link]["master"] == "xenbr0"
    assert runner.run(disk, "remove", variables={"ACTION": "remove", **udev}).status == 0
    words = ("offline", "type_if=vif")
    assert runner.run(card, *words, script="vif-setup", variables=variables).status == 0
    for backend in (disk, card):
        backend.close()
        variables = {"ACTION": "remove", **udev}
        host.place.store.write("/local/domain/0/libxl/disable_udev", "1")
        assert runner.run(backend, script="xen-hotplug-cleanup", variables=variables).status == 0
        assert backend.exists
        host.place.store.remove("/local/domain/0/libxl/disable_udev")
        assert runner.run(backend, script="xen-hotplug-cleanup", variables=variables).status == 0
        assert host.is_gone(backend)
    if kind == "agent":
        assert runner.agent.stop() == 0


UDEVADM = """
mount -t tmpfs tmpfs /etc/udev
mount -t tmpfs tmpfs /usr/lib/udev
mkdir /etc/udev/rules.d
cp "$1" /etc/udev/rules.d/90-xen-hotplug.rules
mkdir -p /run
mount -t tmpfs tmpfs /run
mkdir /run/xen-hotplug
[ -z "$3" ] || touch "/run/xen-hotplug/$3"
udevadm test --action=add "/sys/class/net/$2" 2>&1
"""


@pytest.mark.parametrize("flag", ["", "udev"])
def test_udev_understands_the_rules(host, flag):
    """And does what they say for a tap, unless the agent listens."""
    host.net.add_tap("vif5.0-emu")
    words = ["sh", "-ec", UDEVADM, "sh", str(RULES), "vif5.0-emu", flag]
    said = host.net.run("unshare", "--mount", *words, check=False).stdout
    assert "90-xen-hotplug.rules" in said
    assert "nvalid" not in said
    assert ("vif-setup add type_if=tap" in said) == (flag == "")
