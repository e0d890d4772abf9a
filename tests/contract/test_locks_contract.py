"""What every Locks does: the lock files and the fake."""

from __future__ import annotations

import os

import pytest
from fakes_kernel import FakeDeadline, FakeLocks

from hotplug.errors import AbandonedError, LockTimeoutError
from hotplug.kernel.lockfile import LockFiles

NO_TIME = FakeDeadline(0.0)
TIME = FakeDeadline(10.0)


@pytest.fixture(params=["files", "fake"])
def two(request, tmp_path):
    """The locks of two processes over one directory, and that directory."""
    directory = str(tmp_path / "locks")
    if request.param == "files":
        return LockFiles(directory), LockFiles(directory), directory
    held = {}
    return FakeLocks(directory, held), FakeLocks(directory, held), directory


def test_one_holds_and_the_other_does_not_get(two):
    one, other, directory = two
    refused = pytest.raises(LockTimeoutError)
    with one.hold("block", TIME), refused as failure, other.hold("block", NO_TIME):
        pass
    assert f"{directory}/block" in str(failure.value)
    assert "it is held by this process" in str(failure.value)


def test_after_the_release_the_other_gets_it(two):
    one, other, _ = two
    for _ in range(3):
        with one.hold("block", TIME):
            pass
        with other.hold("block", NO_TIME):
            pass


def test_an_error_releases(two):
    one, other, _ = two
    with pytest.raises(ZeroDivisionError), one.hold("block", TIME):
        _ = 1 / 0
    with other.hold("block", NO_TIME):
        pass


def test_other_names_are_other_locks(two):
    one, other, _ = two
    refused = pytest.raises(LockTimeoutError)
    ours = one.hold("a", TIME), one.hold("b", TIME)
    with ours[0], ours[1], other.hold("c", TIME), refused, other.hold("b", NO_TIME):
        pass


def test_nobody_gets_it_twice(two):
    one, _, _ = two
    with one.hold("block", TIME), pytest.raises(LockTimeoutError), one.hold("block", NO_TIME):
        pass


def test_who_is_not_waited_for_does_not_wait(two):
    one, other, _ = two
    abandoned = FakeDeadline(10.0, AbandonedError("the caller went away"))
    with one.hold("block", TIME):
        for locks in (one, other):
            with pytest.raises(AbandonedError), locks.hold("block", abandoned):
                pass


def test_nothing_is_left(two):
    one, _, directory = two
    with one.hold("block", TIME):
        pass
    assert not os.path.exists(f"{directory}/block")


def test_the_fake_fails_on_demand():
    locks = FakeLocks()
    locks.fail("hold", LockTimeoutError("the lock was not free"))
    with pytest.raises(LockTimeoutError), locks.hold("block", TIME):
        pass
    with locks.hold("block", TIME):
        pass
