"""Fixtures of the conformance tests: ways to run a script, guests, disks, and the invariants.

Lines 126 and 127 of the checklist, and that nothing leaks, are checked after every test.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess

import pytest
from harness import leaks, loops
from harness.guests import Guest
from harness.place import place
from harness.run import Runner

_names = itertools.count(1)


@contextlib.contextmanager
def running(kind):
    """A runner in a place of its own."""
    with place() as made:
        runner = Runner(kind, made)
        if kind == "agent":
            runner.start_agent()
        yield runner
        if runner.agent is not None:
            assert runner.agent.stop() == 0


@pytest.fixture(scope="module")
def runner(request):
    with running(request.param) as made:
        yield made


@pytest.fixture
def fresh_runner(request):
    with running(request.param) as made:
        yield made


@pytest.fixture
def at(request):
    """The runner of this test, whichever of the two fixtures it is."""
    name = "fresh_runner" if "fresh_runner" in request.fixturenames else "runner"
    return request.getfixturevalue(name)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request, tmp_path):
    """Runs around every test; tests without a runner have nothing to leave."""
    if not {"runner", "fresh_runner"} & set(request.fixturenames):
        yield
        return
    runner = request.getfixturevalue("at")
    yield
    runner.place.syslog.take()
    for loop in loops.below(tmp_path) if runner.is_stock else ():
        loops.detach(loop.path)  # stock leaks; the next test shall not suffer
    if runner.is_stock:
        runner.place.block_lock.unlink(missing_ok=True)
    faults, runner.faults = runner.faults, []
    assert faults == []
    leaks.refuse(runner.place, tmp_path, runner.agent)


@pytest.fixture
def guest(at):
    """Make guests; each is destroyed after the test, its disks first, as libxl does."""
    made = []

    def make(**options):
        made.append(Guest(at.place.store, **options))
        return made[-1]

    yield make
    for guest in made:
        for backend in guest.backends:
            if backend.exists:
                result = at.remove(backend)
                assert at.is_stock or result.status == 0, result
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
def mounted(tmp_path, block_device, image):
    """Make block devices with a file system that is mounted on this host."""
    points = []

    def make(option, file=None):
        file = file or image(size=4 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(file)], check=True)
        device = block_device(file)
        point = tmp_path / f"mount{next(_names)}"
        point.mkdir()
        subprocess.run(["mount", "-o", option, device, str(point)], check=True)
        points.append(point)
        return device

    yield make
    for point in points:
        subprocess.run(["umount", str(point)], check=True)
