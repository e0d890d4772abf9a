"""The client against the real xenstored: its limits, its orders, many threads, its end."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import xenstored as xenstored_harness

import hotplug.xenstore
from hotplug import xenstore
from hotplug.xenstore import StoreConnectionError, Write, protocol

TREE = Path(__file__).parents[2]


@pytest.fixture
def connect(xenstored):
    """Make clients; what they leave is removed."""
    clients = []

    def connect(**settings):
        clients.append(xenstore.connect(xenstored.socket, **settings))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
    with xenstore.connect(xenstored.socket) as client:
        for name in client.directory("/"):
            if name != "tool":
                client.remove(f"/{name}")


@pytest.fixture
def store(connect):
    return connect()


@pytest.fixture
def other(connect):
    return connect()


def test_the_example_of_the_documentation(xenstored, store, monkeypatch):
    monkeypatch.setenv("XENSTORED_PATH", xenstored.socket)
    lines = hotplug.xenstore.__doc__.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    assert code.startswith("from hotplug import xenstore")
    exec(compile(code, "the example", "exec"), {})  # noqa: S102 - that is the test
    assert store.directory("/local/domain/0") == []


def test_it_imports_nothing_that_is_slow_or_ours():
    code = (
        "import sys; before = set(sys.modules); import hotplug.xenstore;"
        "print(*sorted(set(sys.modules) - before))"
    )
    environment = {"PYTHONPATH": str(TREE)}
    command = [sys.executable, "-S", "-c", code]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    loaded = set(output.stdout.split())
    ours = {name for name in loaded if name.partition(".")[0] == "hotplug"}
    assert {name for name in ours if not name.startswith("hotplug.xenstore")} == {"hotplug"}
    slow = {"socket", "select", "selectors", "threading", "queue", "typing", "random", "asyncio"}
    assert loaded & slow <= dependencies_of("dataclasses")


def dependencies_of(module):
    code = f"import sys, {module}; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(output.stdout.split())


# Sizes


def test_ten_thousand_children(store):
    names = [f"child-{number}" for number in range(10_000)]
    results = store.batch([protocol.Request(protocol.WRITE, f"/large/{name}") for name in names])
    assert results == [b"OK\0"] * len(names)
    assert store.directory("/large") == names
    store.mkdir("/small/one")
    assert store.directory_many(["/small", "/large", "/none"]) == [["one"], names, None]
    assert store.transaction(lambda snapshot: snapshot.directory("/large")) == names


def test_a_large_directory_that_changes_meanwhile(store, other):
    names = [f"child-{number:05}-{'x' * 100}" for number in range(2000)]
    store.batch([protocol.Request(protocol.WRITE, f"/large/{name}") for name in names])
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            other.write("/large/extra", b"")
            other.remove("/large/extra")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            listing = store.directory("/large")
            assert [name for name in listing if name != "extra"] == names
            assert len(listing) <= len(names) + 1
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("length", [0, 1, 4079, 4080, 4090])
def test_values_up_to_the_limit(store, length):
    store.write("/v", b"x" * length)
    assert store.read("/v") == b"x" * length
    assert store.read_many(["/v"] * 50) == [b"x" * length] * 50


def test_what_the_daemon_would_drop_us_for_is_not_sent(store):
    too_long = [
        lambda: store.write("/v", b"x" * 4094),
        lambda: store.transaction(lambda s: s.apply([Write("/v", b"x" * 4094)])),
        lambda: store.watch("/v", "t" * 4093, print),
        lambda: store.set_permissions("/v", [xenstore.Permission(10000)] * 600),
        lambda: store.batch([protocol.Request(protocol.WRITE, "/v", b"x" * 4094)]),
    ]
    for call in too_long:
        with pytest.raises(OSError, match="the limit is 4096") as caught:
            call()
        assert (caught.value.errno, caught.value.filename) == (errno.E2BIG, "/v")
    store.write("/v", b"x" * 4093)
    assert len(store.read("/v")) == 4093


def test_more_requests_than_any_buffer_holds(store):
    """Two megabytes of requests, and four of replies, all in one call."""
    value = b"x" * 2000
    paths = [f"/many/{number % 10}" for number in range(1000)]
    results = store.batch([protocol.Request(protocol.WRITE, path, value) for path in paths])
    assert results == [b"OK\0"] * 1000
    assert store.read_many(paths * 2) == [value] * 2000


def test_one_write_of_a_batch_may_fail_alone(store):
    requests = [
        protocol.Request(protocol.WRITE, "/a", b"1"),
        protocol.Request(protocol.READ, "/absent"),
        protocol.Request(protocol.RM, "/"),
        protocol.Request(99, "/a"),
        protocol.Request(protocol.READ, "/a"),
    ]
    results = store.batch(requests)
    assert results[0] == b"OK\0"
    assert [error.errno for error in results[1:4]] == [errno.ENOENT, errno.EINVAL, errno.ENOSYS]
    assert results[4] == b"1"


# Order


def test_any_answer_is_a_barrier(store, other):
    """The promise on which an index of the store can be exact."""
    seen = []
    store.watch("backend/vbd", "index", lambda path, _: seen.append(path))
    store.read("anything")
    assert seen == ["backend/vbd"]
    for number in range(300):
        path = f"backend/vbd/{number}/768/physical-device"
        other.write(path, b"7:0")
        store.read("anything")
        assert seen[-1] == path
    other.remove("backend/vbd/7/768")
    store.directory("anything")
    assert seen[-1] == "backend/vbd/7/768"


def test_it_is_one_for_every_thread_and_with_a_pump(store, connect):
    seen = set()
    store.watch("backend/vbd", "index", lambda path, _: seen.add(path))
    store.start_pump()

    def work(worker):
        writer = connect()
        for number in range(100):
            path = f"backend/vbd/{worker}/{number}"
            writer.write(path, b"")
            store.read("anything")
            assert path in seen

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, range(8)))
    assert len(seen) == 801


def test_the_pump_brings_events_unasked(store, other):
    seen = []
    arrived = threading.Semaphore(0)
    store.watch("w", "token", lambda path, _: (seen.append(path), arrived.release()))
    # Having waited for a lot must not make the pump wait for as much.
    store.read_many(["w"] * 32)
    store.start_pump()
    assert arrived.acquire(timeout=5)
    for number in range(100):
        other.write(f"w/{number}", b"")
        assert arrived.acquire(timeout=5)
    assert seen == ["w", *(f"w/{number}" for number in range(100))]


def test_the_pump_as_the_only_thread(store, other):
    """A program that does nothing but wait for events."""
    seen = []

    def note(path, _):
        seen.append(path)
        if path == "w/last":
            raise SystemExit

    store.watch("w", "token", note)
    other.write("w/last", b"")
    with pytest.raises(SystemExit):
        store.pump()
    assert seen == ["w", "w/last"]


def test_special_watches(store):
    seen = []
    store.watch("@introduceDomain", "in", lambda *event: seen.append(event))
    store.watch("@releaseDomain", "out", lambda *event: seen.append(event))
    store.barrier()
    assert seen == [("@introduceDomain", "in"), ("@releaseDomain", "out")]
    store.unwatch("@releaseDomain", "out")
    store.barrier()
    assert len(seen) == 2


# Many


def test_sixteen_threads_on_one_connection(store):
    def work(worker):
        for number in range(60):
            path = f"/t/{worker}/{number}"
            store.write(path, b"%d-%d" % (worker, number))
            values = store.read_many([path, "/t/absent", f"/t/{worker}"])
            assert values == [b"%d-%d" % (worker, number), None, b""]
            assert f"{number}" in store.directory(f"/t/{worker}")
            moved = [Write(f"{path}/moved", b"1"), Write(path, b"")]
            assert store.transaction(
                lambda snapshot, path=path, moved=moved: snapshot.read_and_apply([path], moved)
            ) == [b"%d-%d" % (worker, number)]
            if number % 2:
                store.remove(path)
        return worker

    with ThreadPoolExecutor(16) as workers:
        assert list(workers.map(work, range(16))) == list(range(16))
    listings = store.directory_many([f"/t/{worker}" for worker in range(16)])
    assert [len(listing) for listing in listings] == [30] * 16


@pytest.mark.parametrize("connections", [1, 8])
def test_nobody_loses_a_count(connect, connections):
    """Eight threads, all at the same node: every conflict there can be."""
    clients = [connect() for _ in range(connections)]
    clients[0].write("/counter", b"0")

    def count(worker):
        def body(snapshot):
            number = int(snapshot.read("/counter"))
            snapshot.apply([Write("/counter", b"%d" % (number + 1))])

        for _ in range(25):
            clients[worker % connections].transaction(body, attempts=10_000)

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(count, range(8)))
    assert clients[0].read("/counter") == b"200"


def test_transactions_do_not_stay_open(store):
    """An abandoned one would hold its copies for as long as the connection lives."""

    def fail(snapshot):
        snapshot.read("/a")
        raise KeyError

    for _ in range(100):
        with pytest.raises(KeyError):
            store.transaction(fail)
    # Where the last one was, there is none any more.
    assert_none_is_open(store, 100)


def test_a_transaction_that_was_begun_in_vain_does_not_stay_open(store):
    for _ in range(50):
        with store.begin():
            store.read("/a")
        with pytest.raises(KeyError), store.begin():
            raise KeyError
    assert_none_is_open(store, 100)


def test_a_transaction_that_was_given_up_does_not_stay_open(store):
    begun = [store.begin() for _ in range(100)]
    for each in begun:
        each.give_up()
    assert_none_is_open(store, 100)


def assert_none_is_open(store, count):
    """None of those before the next one."""
    number = xenstore.Transaction(store._connection)._open()
    for earlier in range(number - count, number):
        again = store._connection.exchange((protocol.ABORT,), earlier)
        assert again.refusals == {0: errno.ENOENT}


# Files and processes


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def test_nothing_is_inherited_and_nothing_is_left(xenstored):
    before = descriptors()
    client = xenstore.connect(xenstored.socket)
    client.start_pump()
    client.watch("w", "token", print)
    client.barrier()
    for name in descriptors() - before:
        if os.path.exists(f"/proc/self/fd/{name}"):
            assert not os.get_inheritable(int(name))
    pump = next(thread for thread in threading.enumerate() if thread.name == "xenstore")
    client.close()
    pump.join(5)
    assert not pump.is_alive()
    assert descriptors() == before


@pytest.fixture
def mortal():
    """A daemon of one's own."""
    with (
        tempfile.TemporaryDirectory(prefix="xs-") as directory,
        xenstored_harness.start(directory) as daemon,
    ):
        yield daemon


def test_a_daemon_that_is_killed_while_many_ask(mortal):
    client = xenstore.connect(mortal.socket)
    broken = []
    client.start_pump(on_broken=broken.append)
    errors = []
    started = threading.Barrier(9)

    def work(_):
        client.read("/tool")
        started.wait()
        try:
            while True:
                client.read_many(["/tool"] * 100)
        except StoreConnectionError as error:
            errors.append(error)

    with ThreadPoolExecutor(8) as workers:
        done = workers.map(work, range(8))
        started.wait()
        mortal.stop()
        list(done)
    assert len(errors) == 8
    began = time.monotonic()
    for call in (
        lambda: client.read("/tool"),
        lambda: client.transaction(lambda s: s.read("/tool")),
        lambda: client.watch("/tool", "t", print),
        client.barrier,
        client.pump,
    ):
        with pytest.raises(StoreConnectionError, match=re.escape(mortal.socket)):
            call()
    assert time.monotonic() - began < 1
    for _ in range(500):
        if broken:
            break
        time.sleep(0.01)
    assert len(broken) == 1
    client.close()
    with pytest.raises(StoreConnectionError, match="cannot connect"):
        xenstore.connect(mortal.socket)


def test_a_daemon_that_is_stopped_and_goes_on(mortal):
    client = xenstore.connect(mortal.socket, timeout=0.2)
    patience = client._connection
    patience.timeout = 30.0
    client.write("/a", b"1")
    patience.timeout = 0.2
    os.kill(mortal.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError) as caught:
        client.write("/a", b"2")
    assert caught.value.filename == "/a"
    with pytest.raises(TimeoutError):
        client.read("/a")
    os.kill(mortal.pid, signal.SIGCONT)
    patience.timeout = 30.0
    assert client.read("/a") == b"2"  # what was asked was done in the end
    client.close()
