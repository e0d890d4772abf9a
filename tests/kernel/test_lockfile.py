"""The lock files against the stock scripts' own locking.sh, and among processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes_kernel import FakeDeadline
from harness import locks as oracle
from harness.locks import wait_until

from hotplug.errors import AbandonedError, LockTimeoutError
from hotplug.kernel import lockfile
from hotplug.kernel.lockfile import LockFiles

STOCK = "/etc/xen/scripts/locking.sh"
TREE = Path(__file__).parents[2]

# Claims the lock $2 in the folder $1, says so, and releases it when told.
CLAIMANT = f"""
. {STOCK}
LOCK_BASEDIR=$1
claim_lock $2
echo held
read -r word
release_lock $2
echo released
read -r word
"""

# The same by our own means; "die" leaves the file behind.
OURS = """if True:
    import sys, os
    sys.path[:0] = ["tests"]
    from fakes_kernel import FakeDeadline
    from hotplug.kernel.lockfile import LockFiles
    with LockFiles(sys.argv[1]).hold(sys.argv[2], FakeDeadline()):
        print("held", flush=True)
        if sys.stdin.readline() == "die\\n":
            os._exit(1)
    print("released", flush=True)
"""


class RunningDeadline(FakeDeadline):
    """A clock that moves by itself."""

    def __init__(self, seconds):
        super().__init__()
        self.end = time.monotonic() + seconds

    def remaining(self):
        return max(0.0, self.end - time.monotonic())


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "locks"


@contextlib.contextmanager
def process(command, *arguments):
    with subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TREE,
    ) as running:
        try:
            yield running
        finally:
            running.stdin.close()


def stock(directory, name="block"):
    return process(["bash", "-c", CLAIMANT, "claimant"], directory, name)


def ours(directory, name="block"):
    return process([sys.executable, "-c", OURS], directory, name)


def tell(running, word):
    running.stdin.write(f"{word}\n")
    running.stdin.flush()


def refusal(locks, deadline):
    with pytest.raises(LockTimeoutError) as failure, locks.hold("block", deadline):
        pass
    return str(failure.value)


def test_a_stock_claimant_waits_for_us(directory):
    with contextlib.ExitStack() as held:
        held.enter_context(LockFiles(str(directory)).hold("block", FakeDeadline()))
        with stock(directory) as claimant, ThreadPoolExecutor(1) as pool:
            said = pool.submit(claimant.stdout.readline)
            oracle.wait_for_waiter(directory / "block")
            assert not said.done()
            held.close()
            assert said.result() == "held\n"
            tell(claimant, "release")
            assert claimant.stdout.readline() == "released\n"
    assert not (directory / "block").exists()


def test_we_wait_for_a_stock_holder(directory):
    def get():
        with LockFiles(str(directory)).hold("block", FakeDeadline()):
            return time.monotonic()

    with stock(directory) as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout.readline() == "held\n"
        got = pool.submit(get)
        wait_until(lambda: os.getpid() in users_with_us(directory / "block"), "we wait")
        assert not got.done()
        released = time.monotonic()
        tell(holder, "release")
        assert holder.stdout.readline() == "released\n"
        # The holder's descriptor stays open, as in a script that goes on: the file is gone.
        assert got.result() > released
    assert not (directory / "block").exists()


def users_with_us(path):
    links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    us = [os.getpid() for link in links if os.path.realpath(link) == str(path)]
    return us + oracle.users(path)


def test_the_text_names_a_stock_holder(directory):
    """locking.sh lets flock(1) take the lock, and that process is gone."""
    with stock(directory) as holder:
        assert holder.stdout.readline() == "held\n"
        failure = refusal(LockFiles(str(directory)), RunningDeadline(0.1))
        assert failure == (
            f"the lock {directory}/block was not free within 0 s;"
            f" it is held by bash (pid {holder.pid})"
        )


def test_the_text_names_a_child_that_inherited_the_lock(directory):
    """A daemon started under the lock keeps it when the script dies (D24)."""
    script = f". {STOCK}; LOCK_BASEDIR=$1; claim_lock block; sleep 60 & echo $!; exec sleep 0"
    with process(["bash", "-c", script, "x"], directory) as holder:
        child = int(holder.stdout.readline())
        try:
            holder.wait()
            failure = refusal(LockFiles(str(directory)), FakeDeadline(0.0))
            assert failure.endswith(f"it is held by sleep (pid {child})")
        finally:
            os.kill(child, 9)


def test_who_waits_is_no_holder(directory):
    with ours(directory) as holder:
        assert holder.stdout.readline() == "held\n"
        with stock(directory) as waiter:
            wait_until(lambda: len(oracle.users(directory / "block")) > 1, "the other one waits")
            failure = refusal(LockFiles(str(directory)), FakeDeadline(0.0))
            assert f"(pid {holder.pid})" in failure
            assert failure.count("(pid") == 1
            tell(holder, "release")
            assert waiter.stdout.readline() == "held\n"


def test_a_lock_of_the_dead(directory):
    """Killed while holding it: the file stays, the lock is free."""
    with ours(directory) as holder:
        assert holder.stdout.readline() == "held\n"
        tell(holder, "die")
        holder.wait()
    assert (directory / "block").exists()
    with LockFiles(str(directory)).hold("block", FakeDeadline(0.0)):
        pass
    assert not (directory / "block").exists()


def test_what_the_dead_left_is_swept(directory):
    """But no lock that somebody holds, and what is not there is fine."""
    with ours(directory) as dead:
        assert dead.stdout.readline() == "held\n"
        tell(dead, "die")
        dead.wait()
    (directory / "other").touch()
    LockFiles(str(directory)).sweep(["block", "iptables"])
    assert sorted(os.listdir(directory)) == ["other"]
    with ours(directory) as holder:
        assert holder.stdout.readline() == "held\n"
        LockFiles(str(directory)).sweep(["block"])
        assert (directory / "block").exists()
        tell(holder, "release")
        assert holder.stdout.readline() == "released\n"


def test_a_child_of_ours_does_not_inherit_it(directory):
    with LockFiles(str(directory)).hold("block", FakeDeadline()):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with LockFiles(str(directory)).hold("block", FakeDeadline(0.0)):
            pass
    finally:
        child.kill()
        child.wait()


def test_the_file_is_removed_only_by_its_owner(directory):
    """Somebody removed it under us and made another: that one is not ours to remove."""
    with LockFiles(str(directory)).hold("block", FakeDeadline()):
        (directory / "block").unlink()
        with LockFiles(str(directory)).hold("block", FakeDeadline(0.0)):
            inner = os.stat(directory / "block").st_ino
            (directory / "other").touch()
            os.rename(directory / "other", directory / "block")
            assert os.stat(directory / "block").st_ino != inner
        assert (directory / "block").exists()
    assert (directory / "block").exists()


def test_the_file_was_removed_between_open_and_flock(directory, monkeypatch):
    real, victims = lockfile.try_flock, [directory / "block"]

    def try_flock(fd):
        if victims:
            victims.pop().unlink()
        return real(fd)

    monkeypatch.setattr(lockfile, "try_flock", try_flock)
    with LockFiles(str(directory)).hold("block", FakeDeadline()):
        assert oracle.users(directory / "block") == []
        held = os.stat(directory / "block")
        assert any(
            os.path.samestat(held, os.fstat(int(fd)))
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )


def test_each_of_many_gets_it_alone(directory):
    """Threads and processes, ours and stock: who is inside makes a folder that cannot be twice."""
    locks = LockFiles(str(directory))

    def work(_):
        for _ in range(5):
            with locks.hold("block", FakeDeadline(30.0)):
                (directory / "inside").mkdir()
                (directory / "inside").rmdir()

    script = f"""
        . {STOCK}
        LOCK_BASEDIR=$1
        for round in 1 2 3 4 5; do
            claim_lock block
            mkdir $1/inside
            rmdir $1/inside
            release_lock block
        done
    """
    with (
        process(["bash", "-ec", script, "x"], directory) as one,
        process(["bash", "-ec", script, "x"], directory) as two,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(work, range(4)))
        assert (one.wait(30), two.wait(30)) == (0, 0)
    assert not (directory / "block").exists()


def test_a_wait_ends_when_nobody_waits_for_us(directory):
    deadline = FakeDeadline()

    def abandon():
        deadline.abandoned = AbandonedError("the caller went away")

    with LockFiles(str(directory)).hold("block", FakeDeadline()):
        threading.Timer(0.05, abandon).start()
        with pytest.raises(AbandonedError), LockFiles(str(directory)).hold("block", deadline):
            pass


def test_a_wait_among_threads_is_bounded(directory):
    locks = LockFiles(str(directory))
    with locks.hold("block", FakeDeadline()):
        failure = refusal(locks, RunningDeadline(0.05))
    assert failure.endswith(f"it is held by this process (pid {os.getpid()})")


def test_the_directory_is_made_on_demand(tmp_path):
    directory = tmp_path / "a" / "b"
    with LockFiles(str(directory)).hold("block", FakeDeadline()):
        assert directory.stat().st_mode & 0o777 == 0o755


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    locks = LockFiles(f"{tmp_path}/file/locks")
    with pytest.raises(NotADirectoryError), locks.hold("block", FakeDeadline()):
        pass
