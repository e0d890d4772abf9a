"""An agent in a place of its own, and a place without one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness import leaks
from harness.guests import Guest
from harness.loops import make_file
from harness.place import place as make_place
from harness.run import Runner


@pytest.fixture
def place(tmp_path):
    """A place without an agent; nothing may be left in it when the test is over."""
    with make_place() as made:
        yield made
        leaks.refuse(made, tmp_path, None)


@pytest.fixture
def runner(place):
    """Drop-ins with an agent that ends well."""
    made = Runner("agent", place)
    made.start_agent()
    yield made
    if made.agent.process.poll() is None:
        assert made.agent.stop() == 0


@pytest.fixture
def oneshot(place):
    """Drop-ins without an agent."""
    return Runner("oneshot", place)


@pytest.fixture
def disk(place, tmp_path):
    """Make a guest with a disk in a file."""

    def make(name="disk.img", mode="w", **options):
        return Guest(place.store).disk(str(make_file(tmp_path / name)), mode, **options)

    return make


@pytest.fixture
def command(place):
    """Run ``xen-hotplug`` as an administrator does: exit status, stdout, stderr."""

    def run(*words, variables=None):
        done = subprocess.run(
            [sys.executable, "-m", "hotplug", *words],
            env={**place.environment(), **(variables or {})},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def status(command):
    """What ``xen-hotplug status`` knows."""

    def ask():
        code, out, err = command("status", "--json")
        assert code == 0, err
        return json.loads(out)

    return ask
