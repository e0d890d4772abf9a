"""Fixtures of the conformance tests: ways to run a script, guests, disks, and the invariants.

Lines 126 and 127 of the checklist, and that nothing leaks, are checked after every test.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess

import pytest
from harness import leaks, loops
from harness.cards import bridge_netfilter
from harness.guests import Guest
from harness.netns import netns
from harness.outcomes import assert_ok
from harness.place import place, place_behind_proxy, place_in_domain
from harness.run import Runner

DRIVER_DOMAIN = 30007  # no guest's number: those count from 1
RUNNERS = {"runner", "fresh_runner", "driver_runner", "card_runner", "driver_card_runner"}
_names = itertools.count(1)


@contextlib.contextmanager
def running(kind, made):
    """A runner in a place."""
    runner = Runner(kind, made)
    if kind == "agent":
        runner.start_agent()
    yield runner
    if runner.agent is not None:
        assert runner.agent.stop() == 0


@pytest.fixture(scope="module")
def runner(request):
    with place() as made, running(request.param, made) as runner:
        yield runner


@pytest.fixture
def fresh_runner(request):
    """A runner for one test, which reaches the store through ``proxy``."""
    with place_behind_proxy() as (made, proxy), running(request.param, made) as runner:
        runner.proxy = proxy
        yield runner


@pytest.fixture
def driver_runner(request):
    """A runner in a driver domain, for one test."""
    with place_in_domain(DRIVER_DOMAIN) as made, running(request.param, made) as runner:
        runner.domid = DRIVER_DOMAIN
        yield runner


@pytest.fixture(scope="module")
def net():
    """The network namespace of ``card_runner``, with a bridge xenbr0 in it."""
    with netns() as made:
        made.add_bridge("xenbr0")
        bridge_netfilter(made, on=False)  # which is how most hosts have it
        yield made


@pytest.fixture(scope="module")
def card_runner(request, net):
    """A runner whose runs, and whose agent, are in the network namespace ``net``."""
    with place() as made:
        runner = Runner(request.param, made, launcher=net.launcher)
        if request.param == "agent":
            runner.start_agent()
        yield runner
        if runner.agent is not None:
            assert runner.agent.stop() == 0


@pytest.fixture
def driver_card_runner(request, net):
    """A runner in a driver domain that has the network namespace ``net``, for one test."""
    with place_in_domain(DRIVER_DOMAIN) as made:
        runner = Runner(request.param, made, domid=DRIVER_DOMAIN, launcher=net.launcher)
        if request.param == "agent":
            runner.start_agent()
        yield runner
        if runner.agent is not None:
            assert runner.agent.stop() == 0


@pytest.fixture
def card(net, guest):
    """Make network cards, each with the link that the backend driver would have made."""
    made = []

    def make(*, tap=False, link=True, **keys):
        backend = guest().card(keys=keys)
        if link:
            net.add_vif(backend.link)
        if tap:
            net.add_tap(f"{backend.link}-emu")
        made.append(backend)
        return backend

    yield make
    names = set(net.links())
    for backend in made:
        vifname = os.fsdecode(backend.read("vifname") or b"")
        for name in (backend.link, f"{backend.link}-emu", vifname, f"{vifname}-emu"):
            if name in names:
                net.delete(name)


@pytest.fixture
def hook(card_runner):
    """Make hooks; the function that is returned reads the lines that one has written so far.

    Each notes its name in the file ``hooks`` of the place as well.
    """
    place = card_runner.place
    folder = place.scripts / "vif-post.d"
    folder.mkdir(exist_ok=True)

    def make(name, text, *, mode=0o755, suffix=".hook", first=""):
        output = place.directory / f"{name}.out"
        file = folder / f"{name}{suffix}"
        prologue = f"exec >>{output}\necho {name} >>{place.directory}/hooks\n"
        file.write_text(f"{first}\n{text}\n" if first else f"{prologue}{text}\n")
        file.chmod(mode)

        def lines():
            return output.read_text().splitlines() if output.exists() else []

        return lines

    yield make
    for file in [*folder.iterdir(), *place.directory.glob("*.out"), place.directory / "hooks"]:
        file.unlink(missing_ok=True)


@pytest.fixture
def at(request):
    """The runner of this test, whichever fixture it is."""
    (name,) = RUNNERS & set(request.fixturenames)
    return request.getfixturevalue(name)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request, tmp_path):
    """Runs around every test; tests without a runner have nothing to leave."""
    if not RUNNERS & set(request.fixturenames):
        yield
        return
    runner = request.getfixturevalue("at")
    yield
    assert runner.end_all() == 0
    runner.place.syslog.take()
    if runner.is_stock:  # it leaks; the next test shall not suffer
        loops.detach_below(tmp_path)
        runner.place.block_lock.unlink(missing_ok=True)
    faults, runner.faults = runner.faults, []
    assert faults == []
    leaks.refuse(runner.place, tmp_path, runner.agent)


@pytest.fixture
def guest(at):
    """Make guests; each is destroyed after the test, its disks first, as libxl does.

    Not by stock: its second ``remove`` of a disk detaches whoever has the loop device by then
    (D09), and that may be anybody on this machine.
    """
    made = []

    def make(**options):
        made.append(Guest(at.place.store, **options))
        return made[-1]

    yield make
    for guest in made:
        for backend in guest.backends:
            if backend.exists and not at.is_stock:
                remove = at.offline if backend.kind == "vif" else at.remove
                assert remove(backend).status == 0
        guest.destroy()


@pytest.fixture
def image(tmp_path):
    """Make files that can serve as disks."""

    def make(name="", **options):
        return loops.make_file(tmp_path / (name or f"disk{next(_names)}"), **options)

    return make


@pytest.fixture
def block_device(image):
    """Make block devices: loop devices that the test itself attaches."""
    made = []

    def make(file=None, *options):
        made.append(loops.attach(file or image(), *options))
        return made[-1]

    yield make
    for path in made:
        loops.detach(path)


@pytest.fixture
def formatted(image):
    """Make files that hold an empty file system."""

    def make():
        file = image(size=4 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(file)], check=True)
        return file

    return make


@pytest.fixture
def mount(tmp_path, block_device):  # block_device: unmount before it detaches
    """Mount block devices on this host, where the agent sees it too."""
    points = []

    def make(device, option):
        point = tmp_path / f"mount{next(_names)}"
        point.mkdir()
        subprocess.run(["mount", "-o", option, device, str(point)], check=True)
        points.append(point)

    yield make
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def mounted(block_device, formatted, mount):
    """Make block devices that are mounted on this host."""

    def make(option):
        device = block_device(formatted())
        mount(device, option)
        return device

    return make


@pytest.fixture
def hold(at, guest, block_device):
    """Make a block device that a guest has: (device, guest)."""

    def make(mode, holder=None):
        device = block_device()
        holder = holder or guest()
        assert_ok(at, holder.disk(device, mode))
        return device, holder

    return make
