"""Fixtures for every kind of test.

Importing this may not need root, a store or a kernel: the unit tests import it too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("harness")  # so that what it asserts fails with the values

from harness import xenstored as xenstored_harness  # noqa: E402 - after it was registered


@pytest.fixture(scope="module")
def xenstored():
    """A fresh, empty store for a test module: the real daemon, at ``xenstored.socket``."""
    # Not below pytest's own folder, whose name may be too long for a socket.
    with (
        tempfile.TemporaryDirectory(prefix="xs-") as directory,
        xenstored_harness.start(Path(directory)) as daemon,
    ):
        yield daemon
