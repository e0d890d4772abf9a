"""The client in another domain than 0, with that domain's rights: what a driver domain has.

Over the ring of the real xenstored, once through a socket and once through what behaves like the
kernel's device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes_xenbus import FakeDevice
from harness.domain import Domain

from hotplug import xenstore
from hotplug.xenstore import Client, Permission, Write
from hotplug.xenstore.connection import Connection
from hotplug.xenstore.transport import DeviceTransport

DOMID = 5
HOME = f"/local/domain/{DOMID}"


@pytest.fixture(scope="module")
def domain(xenstored):
    made = Domain(xenstored, DOMID)
    with xenstore.connect(xenstored.socket) as client:
        client.set_permissions(f"{HOME}/domid", [Permission(0), Permission(DOMID, read=True)])
    yield made
    made.close()


@pytest.fixture
def dom0(xenstored, domain):
    with xenstore.connect(xenstored.socket) as client:
        yield client
        for name in client.directory(HOME):
            if name != "domid":
                client.remove(f"{HOME}/{name}")
        client.remove("/secret")


@pytest.fixture
def device(domain):
    made = FakeDevice(domain.path)
    yield made
    made.close()
    assert made.faults == []


@pytest.fixture(params=["socket", "device"])
def kind(request):
    return request.param


@pytest.fixture
def store(kind, request, domain, dom0):
    if kind == "socket":
        with xenstore.connect(domain.path) as client:
            yield client
    else:
        end = request.getfixturevalue("device").end
        transport = DeviceTransport(os.dup(end.fileno()), 0.01)
        with Client(Connection(transport, "the device", 30.0)) as client:
            yield client


def test_relative_is_below_the_own_domain(store, dom0):
    store.write("backend/vbd/1/51712/state", b"2")
    assert dom0.read(f"{HOME}/backend/vbd/1/51712/state") == b"2"
    assert store.read(f"{HOME}/backend/vbd/1/51712/state") == b"2"
    assert store.read("domid") == b"5"


def test_absent_empty_and_forbidden_are_three_things(store, dom0):
    dom0.write("/secret/of/dom0", b"hush")
    dom0.write(f"{HOME}/empty", b"")
    dom0.set_permissions(f"{HOME}/empty", [Permission(0), Permission(DOMID, read=True)])
    assert store.read("absent") is None
    assert store.read("empty") == b""
    with pytest.raises(PermissionError, match="refused to read") as caught:
        store.read("/secret/of/dom0")
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, "/secret/of/dom0")
    # It may not even know whether there is something.
    with pytest.raises(PermissionError):
        store.read("/secret/of/nobody")


def test_many_of_which_some_are_forbidden(store, dom0):
    dom0.write("/secret", b"hush")
    store.write("mine", b"1")
    paths = ["mine", "/secret", "absent"]
    assert store.read_many(paths, forbidden_is_absent=True) == [b"1", None, None]
    with pytest.raises(PermissionError) as caught:
        store.read_many(paths)
    assert caught.value.filename == "/secret"


def test_a_survey_of_which_some_is_forbidden(store, dom0):
    dom0.write("/secret", b"hush")
    store.write("mine/own", b"1")
    listings, values = store.survey(["mine", "/secret"], ["/secret", "mine/own", "absent"])
    assert (listings[0], values[1:]) == (["own"], [b"1", None])
    for refused in (listings[1], values[0]):
        assert isinstance(refused, PermissionError)
        assert refused.filename == "/secret"


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.write("/secret", b""),
        lambda store: store.remove("/secret"),
        lambda store: store.mkdir("/secret/new"),
        lambda store: store.directory("/secret"),
        lambda store: store.get_permissions("/secret"),
        lambda store: store.set_permissions("/secret", [Permission(DOMID)]),
        lambda store: store.transaction(lambda s: s.read("/secret")),
        lambda store: store.transaction(lambda s: s.directory("/secret")),
        lambda store: store.transaction(lambda s: s.apply([Write("/secret", b"")])),
        lambda store: store.transaction(lambda s: s.apply([Write("/secret", None)])),
    ],
)
def test_nothing_may_be_done_to_what_is_forbidden(store, dom0, call):
    dom0.write("/secret", b"hush")
    with pytest.raises(PermissionError) as caught:
        call(store)
    assert caught.value.filename.startswith("/secret")
    assert dom0.read("/secret") == b"hush"
    assert store.read("domid") == b"5"


def test_a_transaction_of_which_a_part_is_forbidden_has_no_effect(store, dom0):
    dom0.write("/secret", b"hush")
    with pytest.raises(PermissionError):
        store.transaction(lambda s: s.apply([Write("mine", b"1"), Write("/secret", b"2")]))
    assert store.read("mine") is None


def test_what_it_makes_is_its_own(store, dom0):
    store.mkdir("mine")
    assert dom0.get_permissions(f"{HOME}/mine")[0].domid == DOMID
    store.set_permissions("mine", [Permission(DOMID), Permission(0, read=True)])
    with pytest.raises(PermissionError) as caught:
        store.set_permissions("mine", [Permission(0)])
    assert caught.value.filename == "mine"


def test_an_entry_may_be_too_large_for_a_domain(store):
    with pytest.raises(OSError, match="No space left") as caught:
        store.write("large", b"x" * 3000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "large")


def test_many_requests(store):
    paths = [f"many/{number}" for number in range(100)]
    store.transaction(lambda s: s.apply([Write(path, path.encode()) for path in paths]))
    assert store.read_many(paths) == [path.encode() for path in paths]
    assert sorted(store.directory("many")) == sorted(path[5:] for path in paths)


def test_conflicts(store, dom0):
    store.write("counter", b"0")
    runs = []

    def body(snapshot):
        runs.append(1)
        number = int(snapshot.read("counter"))
        if len(runs) < 3:
            dom0.write(f"{HOME}/counter", b"%d" % (number + 10))
        snapshot.apply([Write("counter", b"%d" % (number + 1))])

    store.transaction(body)
    assert store.read("counter") == b"21"


def test_threads(store):
    def work(worker):
        for number in range(10):
            path = f"t/{worker}/{number}"
            store.write(path, path.encode())
            assert store.read_many([path, "t/absent"]) == [path.encode(), None]

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, range(8)))


def test_an_early_transaction_waits_for_its_use_over_the_device(store, kind):
    """A domain may have ten or so at once, and over the device nothing is gained by more."""
    begun = [store.begin() for _ in range(20)]
    refusal = pytest.raises(OSError, match="start a transaction") if kind == "socket" else None
    with refusal or contextlib.nullcontext(), store.begin() as another:
        another.run(lambda snapshot: snapshot.apply([Write("a", b"1")]))
    for each in begun:
        each.give_up()
    assert store.read("a") == (None if kind == "socket" else b"1")


def test_the_barrier(store, dom0, kind):
    """Over the device an answer proves nothing, so the client has to do more."""
    assert store.reads_are_barriers == (kind == "socket")
    seen = []
    store.watch("backend", "index", lambda path, _: seen.append(path))
    for number in range(20):
        dom0.write(f"{HOME}/backend/vbd/{number}", b"")
        store.barrier()
        assert seen[-1] == f"backend/vbd/{number}"
    assert len(seen) == 21


def test_the_pump_and_the_barrier_together(store, dom0):
    seen = set()
    store.watch("backend", "index", lambda path, _: seen.add(path))
    store.start_pump()

    def work(worker):
        for number in range(10):
            dom0.write(f"{HOME}/backend/{worker}/{number}", b"")
            store.barrier()
            assert f"backend/{worker}/{number}" in seen

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, range(4)))


def test_the_pump_brings_events_unasked(store, dom0):
    arrived = threading.Semaphore(0)
    store.watch("w", "token", lambda *_: arrived.release())
    store.start_pump()
    assert arrived.acquire(timeout=5)
    for number in range(10):
        dom0.write(f"{HOME}/w/{number}", b"")
        assert arrived.acquire(timeout=5)


def test_the_device_takes_less(device, domain):
    transport = DeviceTransport(os.dup(device.end.fileno()), 0.01)
    with Client(Connection(transport, "the device", 30.0)) as client:
        with pytest.raises(OSError, match="the limit is 4080") as caught:
            client.write("v", b"x" * 4079)
        assert caught.value.errno == errno.E2BIG
        assert client.read("domid") == b"5"
