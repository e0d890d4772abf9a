"""Is the store of the tests the real thing? What standalone.c and the harness around it promise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness import xenstored as daemons
from harness.domain import Domain
from harness.locks import wait_until
from harness.proxy import Proxy
from harness.store import SET_PERMS, WRITE, Store

DOMAIN = 9


@pytest.fixture
def store(xenstored):
    with Store(xenstored.socket) as store:
        yield store


@pytest.fixture(scope="module")
def guest_socket(xenstored):
    """The store as domain 9; its quota for one node is 2,048 bytes."""
    domain = Domain(xenstored, DOMAIN)
    yield domain.path
    domain.close()


@pytest.fixture
def as_guest(guest_socket):
    with Store(guest_socket) as store:
        yield store


def test_the_tools_of_xen_agree(xenstored, store):
    store.write("/tools", b"one value")
    command = ["xenstore-read", "/tools"]
    environment = {**os.environ, "XENSTORED_PATH": xenstored.socket}
    said = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    assert said == b"one value\n"


def test_relative_paths_are_those_of_domain_0(store):
    store.write("backend/vbd/1", b"here")
    assert store.read("/local/domain/0/backend/vbd/1") == b"here"


def test_stores_are_separate(store, tmp_path):
    store.write("/only-here", b"1")
    with daemons.start(tmp_path) as other, Store(other.socket) as elsewhere:
        assert elsewhere.read("/only-here") is None
    assert store.read("/only-here") == b"1"


def test_permissions_for_domains_that_never_connected_are_kept(xenstored, store):
    store.write("/theirs", b"1")
    store.call(SET_PERMS, b"/theirs\0", b"n0\0", b"r77\0")
    command = ["xenstore-ls", "-p", "/"]
    environment = {**os.environ, "XENSTORED_PATH": xenstored.socket}
    said = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    assert b'theirs = "1"' in said
    assert b"(n0,r77)" in said


def test_a_guest_has_its_own_home(store, as_guest):
    as_guest.write("data/x", b"mine")
    assert store.read(f"/local/domain/{DOMAIN}/data/x") == b"mine"


def test_a_guest_reads_only_what_it_may(store, as_guest):
    store.write("/secret", b"1")
    store.set_permissions("/secret", "n0")
    with pytest.raises(PermissionError):
        as_guest.read("/secret")
    store.set_permissions("/secret", "n0", f"r{DOMAIN}")
    assert as_guest.read("/secret") == b"1"
    with pytest.raises(PermissionError):
        as_guest.write("/secret", b"2")


def test_a_guest_has_transactions_of_its_own(store, as_guest):
    attempts = []

    def body(transaction):
        attempts.append(as_guest.read("data/count", transaction))
        if len(attempts) == 1:
            store.write(f"/local/domain/{DOMAIN}/data/count", b"5")
        as_guest.call(WRITE, b"data/count\0", b"6", transaction=transaction)

    as_guest.transaction(body)
    assert attempts == [None, b"5"]
    assert store.read(f"/local/domain/{DOMAIN}/data/count") == b"6"


def test_watches_of_a_guests_processes_are_told_apart(store, as_guest, guest_socket):
    store.write(f"/local/domain/{DOMAIN}/a", b"1")
    store.write(f"/local/domain/{DOMAIN}/b", b"1")
    with Store(guest_socket) as second:
        as_guest.watch("a")
        second.watch("b")
        assert as_guest.next_event() == "a"
        assert second.next_event() == "b"
        store.write(f"/local/domain/{DOMAIN}/b/below", b"1")
        assert second.next_event() == "b/below"
        store.write(f"/local/domain/{DOMAIN}/a", b"2")
        assert as_guest.next_event() == "a"
        assert as_guest.events == second.events == []


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 1025, 1900])
def test_a_guests_ring_carries_any_size(as_guest, size):
    value = os.urandom(size)
    as_guest.write("data/large", value)
    assert as_guest.read("data/large") == value


def test_a_proxy_counts_cuts_and_comes_back(xenstored, tmp_path):
    proxy = Proxy(str(tmp_path / "p"), xenstored.socket)
    try:
        with Store(proxy.path) as store:
            store.write("/proxied", b"1")
            assert proxy.accepted == 1
            proxy.down()
            with pytest.raises(ConnectionError):
                store.read("/proxied")
        with pytest.raises(FileNotFoundError):
            Store(proxy.path)
        proxy.up()
        with Store(proxy.path) as store:
            assert store.read("/proxied") == b"1"
        assert proxy.accepted == 2
    finally:
        proxy.close()


def test_stopping_leaves_no_process(tmp_path):
    daemon = daemons.start(tmp_path)
    daemon.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(daemon.pid, 0)


STARTER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from harness import xenstored
print(xenstored.start(sys.argv[2]).pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_daemon_does_not_outlive_whoever_started_it(tmp_path):
    command = [sys.executable, "-c", STARTER, str(daemons.SOURCE.parent.parent), str(tmp_path)]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    pid = int(said)

    def is_gone():
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(is_gone, "the daemon has ended")
