"""``agent --driver-domain``, in place of ``xl devd``: a real store as domain 7, and real links."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field

import hangfs
import pytest
from harness import agent as agents
from harness import leaks, loops
from harness.guests import Guest
from harness.locks import wait_until
from harness.loops import make_file
from harness.netns import netns
from harness.place import place_in_domain
from harness.run import scripts_directory

DOMID = 7
DOM0_WAITS = 10.0  # seconds, for a backend to disappear
PATIENCE = 30.0


@dataclass
class Netvm:
    """A driver domain with a bridge, and the agent in it."""

    net: object
    place: object
    agent: object = None
    guests: list = field(default_factory=list)

    def start(self, *launcher):
        self.agent = agents.start(
            self.place,
            launcher=(*self.net.launcher, *launcher),
            arguments=("--driver-domain",),
        )

    def stop(self):
        if self.agent is not None and self.agent.process.poll() is None:
            assert self.agent.stop() == 0

    def guest(self):
        self.guests.append(Guest(self.place.store, DOMID + 1 + len(self.guests)))
        return self.guests[-1]

    def card(self, *, link=True, **options):
        backend = self.guest().card(backend_domid=DOMID, **options)
        if link:
            self.net.add_vif(backend.link)
        return backend

    def is_port(self, backend):
        return self.net.links()[backend.link].get("master") == "xenbr0"

    def said(self):
        return self.agent.log.read_text()

    def hook(self, text):
        """A program that runs for every card, as $command says."""
        folder = self.place.scripts / "vif-post.d"
        folder.mkdir(exist_ok=True)
        path = folder / "test.hook"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


def wait_for(condition, what):
    wait_until(condition, what, PATIENCE)


def wait_for_status(backend, status=b"connected"):
    wait_for(lambda: backend.read("hotplug-status") == status, f"{backend.path} is {status}")


def wait_for_end(backend, seconds=DOM0_WAITS):
    """Close a backend; it is deleted in time."""
    before = time.monotonic()
    backend.close()
    wait_for(lambda: not backend.exists, f"{backend.path} is deleted")
    assert time.monotonic() - before < seconds


@pytest.fixture
def netvm(tmp_path):
    with netns() as net, place_in_domain(DOMID) as place:
        net.add_bridge("xenbr0")
        made = Netvm(net, place)
        yield made
        made.stop()
        leaks.refuse(place, tmp_path, None)


def test_cards_before_and_after_the_agent(netvm):
    before = netvm.card()
    netvm.start()
    after = netvm.card()
    for backend in (before, after):
        wait_for_status(backend)
        assert netvm.is_port(backend)
    for backend in (before, after):
        wait_for_end(backend, seconds=3)
        assert not netvm.is_port(backend)
    kinds = "/local/domain/7/backend"
    wait_for(lambda: netvm.place.store.directory(kinds) == [], "what is empty is deleted")


def test_a_link_that_comes_after_the_event(netvm):
    netvm.start()
    backend = netvm.card(link=False)
    time.sleep(0.3)
    assert backend.read("hotplug-status") == b""
    netvm.net.add_vif(backend.link)
    wait_for_status(backend)
    wait_for_end(backend)


def test_a_failure_is_left_in_the_store(netvm):
    netvm.start()
    backend = netvm.card(keys={"bridge": "nobridge"})
    wait_for_status(backend, b"error")
    assert b"nobridge" in backend.read("hotplug-error")
    wait_for_end(backend, seconds=3)


def test_a_reconnect_is_no_removal(netvm):
    netvm.start()
    backend = netvm.card()
    wait_for_status(backend)
    netvm.net.ip("link", "set", "dev", backend.link, "down")  # to see whether it is touched
    for state in (4, 5, 6, 2, 4):
        backend.write("state", state)
    other = netvm.card()
    wait_for_status(other)
    assert backend.read("hotplug-status") == b"connected"
    assert "UP" not in netvm.net.links()[backend.link]["flags"]
    assert netvm.is_port(backend)
    for card in (backend, other):
        wait_for_end(card)


def test_the_agent_starts_again_while_guests_run(netvm):
    netvm.start()
    waits, runs, forgotten = (netvm.card() for _ in range(3))
    for backend in (waits, runs, forgotten):
        wait_for_status(backend)
    runs.write("state", 4)
    forgotten.write("state", 4)
    forgotten.drop("hotplug-status")  # as kernels from 5.5 to 5.16 do
    netvm.stop()
    for backend in (waits, runs, forgotten):
        netvm.net.ip("link", "set", "dev", backend.link, "down")
    gone = netvm.card()
    gone.close()
    early = netvm.card(state=4)
    early.drop("hotplug-status")  # and its kernel did not wait for us
    netvm.start()
    wait_for(lambda: not gone.exists, "what went meanwhile is deleted")
    wait_for_status(early)
    for backend in (waits, runs, forgotten):
        assert "UP" not in netvm.net.links()[backend.link]["flags"]
    for backend in (waits, runs, forgotten, early):
        wait_for_end(backend)
        assert not netvm.is_port(backend)


def test_the_agent_is_killed_in_the_middle(netvm, tmp_path):
    mark = tmp_path / "began"
    netvm.hook(f"touch {mark}; exec sleep 60")
    netvm.start()
    backend = netvm.card()
    wait_for(mark.exists, "it is in the middle")
    (hook,) = netvm.agent.children()
    netvm.agent.kill()
    os.kill(hook, 9)
    assert backend.read("hotplug-status") == b""
    netvm.hook("true")
    netvm.start()
    wait_for_status(backend)
    assert netvm.is_port(backend)
    wait_for_end(backend)


@pytest.mark.parametrize("hangs", ["online", "offline"])
def test_what_hangs_is_deleted_in_time(netvm, tmp_path, hangs):
    """An arrival at once, as nobody wants it any more. And others are served meanwhile."""
    mark = tmp_path / "hangs"
    netvm.start()
    backend = netvm.card(state=1)
    is_it = f'[ "$dev $command" = "{backend.link} {hangs}" ]'
    netvm.hook(f"! {is_it} || {{ touch {mark}; exec sleep 60; }}")
    backend.write("state", 2)
    if hangs == "online":
        wait_for(mark.exists, "it hangs")
        backend.write("online", 1)  # it still waits, which is looked at again
    else:
        wait_for_status(backend)
    before = time.monotonic()
    backend.close()
    wait_for(mark.exists, "it hangs")
    other = netvm.card()
    wait_for_status(other)
    assert backend.exists or hangs == "online"
    wait_for(lambda: not backend.exists, "the backend is deleted")
    assert time.monotonic() - before < (3 if hangs == "online" else DOM0_WAITS)
    wait_for_end(other, seconds=3)
    wait_for(lambda: not netvm.is_port(backend), "the port is released")
    wait_for(lambda: not netvm.agent.children(), "the hook is ended")


def test_a_disk_that_hangs_in_the_kernel_is_deleted_in_time(netvm, tmp_path):
    with hangfs.mounted(tmp_path / "mount") as mount:
        netvm.start()
        mount.hang("open")
        disk, other = (
            netvm.guest().disk(str(path), backend_domid=DOMID)
            for path in (mount.path, make_file(tmp_path / "other.img"))
        )
        mount.wait_until_hung()
        before = time.monotonic()
        disk.close()
        wait_for_status(other)
        wait_for_end(other, seconds=3)
        wait_for(lambda: not disk.exists, "the backend is deleted")
        assert time.monotonic() - before < DOM0_WAITS
        mount.release()
        wait_for(lambda: not loops.below(tmp_path), "it is taken back")
        assert not disk.exists


def test_a_removal_that_fails(netvm):
    path = netvm.place.helper(
        "vif-mine", "#!/bin/sh\n[ $1 = online ] || { echo no >&2; exit 3; }\n"
    )
    netvm.start()
    backend = netvm.card(script=str(path))
    wait_for(lambda: backend.read("hotplug-error") is None, "nothing is wrong")
    wait_for_end(backend, seconds=3)
    assert f"{path} offline type_if=vif failed: no (exit status 3)" in netvm.said()


SCRIPT = """#!/bin/sh
{ echo "$0 $@"; env | sort; } > FILE.$1
xenstore-write $XENBUS_PATH/hotplug-status connected
"""


def test_scripts_of_others_are_run(netvm, tmp_path):
    """A name of ours in another folder is another program."""
    mine = tmp_path / "vif-bridge"
    mine.write_text(SCRIPT.replace("FILE", str(tmp_path / "said")))
    mine.chmod(0o755)
    keys = {"type": "vif_ioemu", "gatewaydev": "eth1"}
    backend = netvm.card(script=str(mine), keys=keys)
    netvm.start()
    wait_for_status(backend)
    assert not netvm.is_port(backend)
    wait_for_end(backend)
    for action in ("online", "offline"):
        said = (tmp_path / f"said.{action}").read_text().splitlines()
        assert said[0] == f"{mine} {action} type_if=vif"
        assert set(said) >= {
            f"XENBUS_PATH={backend.relative}",
            "XENBUS_TYPE=vif",
            "XENBUS_BASE_PATH=backend",
            f"script={mine}",
            f"vif={backend.link}",
            f"INTERFACE={backend.link}-emu",
            "netdev=eth1",
        }
    assert not (tmp_path / "said.add").exists()


def test_a_script_of_others_that_runs_ours(netvm, tmp_path):
    """For the same card: it must not wait for its own end."""
    mine = tmp_path / "my-vif"
    mine.write_text(f'#!/bin/sh\nexec {scripts_directory()}/vif-bridge "$@"\n')
    mine.chmod(0o755)
    backend = netvm.card(script=str(mine))
    netvm.start()
    wait_until(lambda: netvm.is_port(backend), "it is a port", 10.0)
    wait_for_status(backend)
    wait_for_end(backend, seconds=5)
    assert not netvm.is_port(backend)


def test_a_script_of_others_runs_once(netvm, tmp_path):
    """Also where the kernel takes the status away as soon as it has seen it (5.5 to 5.16)."""
    mine = tmp_path / "my-vif"
    said = tmp_path / "said"
    connected = "xenstore-write $XENBUS_PATH/hotplug-status connected"
    mine.write_text(f"#!/bin/sh\necho $1 >> {said}\n{connected}\n")
    mine.chmod(0o755)
    backend = netvm.card(script=str(mine))
    netvm.start()
    wait_for_status(backend)
    backend.drop("hotplug-status")
    backend.write("state", 4)
    others = [netvm.card()]
    wait_for_status(others[0])  # what was before that was looked at
    netvm.stop()
    netvm.start()
    others.append(netvm.card())
    wait_for_status(others[1])
    assert said.read_text() == "online\n"
    for ended in (*others, backend):
        wait_for_end(ended)
    assert said.read_text() == "online\noffline\n"


STARTED = re.compile(r"\b(execve|execveat|fork|vfork)\(|\bclone3?\((?!.*CLONE_THREAD)")


def test_no_process_is_started(netvm, tmp_path):
    """Where iptables sees what goes over bridges, it would be run for its rules."""
    netvm.net.run("sh", "-c", "for file in /proc/sys/net/bridge/*; do echo 0 >$file; done; :")
    calls = tmp_path / "calls"
    names = "execve,execveat,fork,vfork,clone,clone3"
    netvm.start("strace", "-D", "-f", "-qq", "-o", str(calls), "-e", f"trace={names}")
    began = calls.read_text().count("\n")
    cards = [netvm.card() for _ in range(3)]
    for backend in cards:
        wait_for_status(backend)
    for backend in cards:
        wait_for_end(backend)
    lines = calls.read_text().splitlines()
    assert any(map(STARTED.search, lines[:began]))  # the agent itself: we do see them
    assert [line for line in lines[began:] if STARTED.search(line)] == []


def test_directories_that_dom0_owns_stay(netvm):
    """As dom0's libxl makes them; it removes them itself."""
    netvm.start()
    backend = netvm.card()
    parent = f"/local/domain/7/backend/vif/{backend.domid}"
    netvm.place.store.set_permissions(parent, "n0", "r7")
    wait_for_status(backend)
    wait_for_end(backend, seconds=3)
    assert netvm.place.store.exists(parent)
    assert netvm.place.store.directory(parent) == []
    assert "denied" not in netvm.said()


def test_devices_that_need_a_qemu_are_named_once(netvm):
    def add():
        netvm.guest().disk("/srv/a.qcow2", kind="qdisk", backend_domid=DOMID)

    add()
    netvm.start()
    add()
    backend = netvm.card()
    wait_for_status(backend)
    assert netvm.said().count("need a QEMU") == 1
    wait_for_end(backend)


BESIDE_DEVD = """
cd "$0"
bash -c 'exec -a xl bash devd' &
until [ -e started ]; do sleep 0.05; done
exec "$@"
"""


def test_it_refuses_to_run_beside_devd(netvm, tmp_path):
    """In a process namespace of its own: nobody else's agent shall see our ``xl``."""
    (tmp_path / "devd").write_text("touch started\nsleep 60\n")
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    agent = (sys.executable, "-m", "hotplug", "agent", "--driver-domain")
    done = subprocess.run(
        [*unshare, "bash", "-c", BESIDE_DEVD, str(tmp_path), *agent],
        env=netvm.place.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"xen-hotplug: `xl devd` \(pid \d+\) already .*; stop it .*\n", done.stderr)


def test_driver_domain_mode(tmp_path):
    """The disks of a driver domain: before the agent starts, after, reconnected, removed."""
    with place_in_domain(7) as place:
        serve_a_driver_domain(place, tmp_path)
        leaks.refuse(place, tmp_path, None)


def serve_a_driver_domain(place, tmp_path):
    numbers = itertools.count(1)

    def disk(params):
        guest = Guest(place.store, DOMID + next(numbers))
        return guest.disk(params, backend_domid=7, script="/etc/xen/scripts/block")

    before = disk(str(make_file(tmp_path / "before.img")))
    agent = agents.start(place, arguments=("--driver-domain",))
    try:
        wait_until(lambda: before.read("hotplug-status") == b"connected", "the first is served")
        after = disk(str(make_file(tmp_path / "after.img")))
        wait_until(lambda: after.read("hotplug-status") == b"connected", "the second is served")
        missing = disk(str(tmp_path / "none.img"))
        wait_until(lambda: missing.read("hotplug-status") == b"error", "the failure is told")
        assert missing.read("hotplug-error") == f"{tmp_path}/none.img does not exist.".encode()

        after.write("state", 6)  # and online is 1: it will reconnect
        time.sleep(0.2)
        assert after.exists
        assert len(loops.below(tmp_path)) == 2
        for backend in (before, after, missing):
            backend.close()
        wait_until(lambda: not loops.below(tmp_path), "both are taken back")
        for backend in (before, after, missing):
            wait_until(lambda b=backend: not b.exists, "the backend is deleted")
    finally:
        assert agent.stop() == 0


@pytest.mark.parametrize("hidden", ["state", "", ".."])
def test_a_driver_domain_with_a_backend_that_it_may_not_read(tmp_path, hidden):
    """That backend is not served, and named in the log; all others are, whenever they come."""
    with place_in_domain(7) as place:
        backends = []
        for number, name in enumerate(("hidden", "before", "after"), DOMID + 1):
            guest, file = Guest(place.store, number), make_file(tmp_path / f"{name}.img")
            state = 1 if name == "after" else 2
            backends.append(guest.disk(str(file), backend_domid=7, state=state))
        path = os.path.normpath(f"{backends[0].path}/{hidden}")
        place.store.set_permissions(path, "n0")
        agent = agents.start(place, arguments=("--driver-domain",))
        try:
            wait_until(lambda: backends[1].read("hotplug-status") == b"connected", "one is served")
            backends[2].write("state", 2)
            wait_until(lambda: backends[2].read("hotplug-status") == b"connected", "as is the next")
            place.store.set_permissions(path, "n7")
            backends[0].write("state", 2)
            wait_until(lambda: backends[0].read("hotplug-status") == b"connected", "all are")
            for backend in backends:
                backend.close()
            wait_until(lambda: not loops.below(tmp_path), "all are taken back")
        finally:
            assert agent.stop() == 0
        said = hidden == ".." or backends[0].relative in agent.log.read_text()
        assert said, agent.log.read_text()
