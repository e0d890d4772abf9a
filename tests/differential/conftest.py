"""Fixtures of the differential test: a side for stock's scripts, and one for ours."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from differential import noise
from differential.lockstep import pair
from differential.world import World
from harness.place import place
from harness.run import Runner


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """An empty file system, to be copied into files that are to be mounted."""
    file = tmp_path_factory.mktemp("template") / "ext4"
    command = ["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", str(file), "256k"]
    subprocess.run(command, check=True)
    return file.read_bytes()


@pytest.fixture(scope="module")
def sides(request, template):
    """Make the two sides of a scenario; ours is an agent or the one-shot path."""
    with (
        tempfile.TemporaryDirectory(prefix="xd-") as name,
        place() as theirs,
        place() as ours,
    ):
        folder = Path(name)
        stock = Runner("stock", theirs, launcher=noise.guarded(theirs, folder / "stock"))
        runner = Runner(request.param, ours)
        if request.param == "agent":
            runner.start_agent()

        def make(scenario):
            return pair(
                World(stock, folder / "stock", template, scenario),
                World(runner, folder / "ours", template, scenario),
            )

        yield make
        if runner.agent is not None:
            assert runner.agent.stop() == 0
