"""The client against a scripted xenstored: what a real one cannot be brought to do.

The other end of a socket pair. Requests are numbered from 1, so answers can be laid out before
they are asked for.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hotplug.xenstore import protocol
from hotplug.xenstore.batch import Batch, Riders
from hotplug.xenstore.client import Client
from hotplug.xenstore.connection import Connection
from hotplug.xenstore.errors import ProtocolError, StoreConnectionError
from hotplug.xenstore.operations import RESTARTS
from hotplug.xenstore.protocol import HEADER, Inbox, messages
from hotplug.xenstore.transaction import Write
from hotplug.xenstore.transport import SocketTransport

TICK = 0.002


class Peer:
    """The daemon's end of the connection."""

    def __init__(self, end):
        self.end = end

    def answer(self, req_id, payload, kind=protocol.READ):
        self.answer_all((req_id, payload, kind))

    def answer_all(self, *answers):
        """In one piece."""
        parts = [HEADER.pack(kind, n, 0, len(payload)) + payload for n, payload, kind in answers]
        self.end.sendall(b"".join(parts))

    def refuse(self, req_id, name):
        self.answer(req_id, name.encode() + b"\0", protocol.ERROR)

    def event(self, path, token):
        self.answer(0, f"{path}\0{token}\0".encode(), protocol.WATCH_EVENT)

    def requests(self):
        """Type, number and payload of everything that was sent so far."""
        got = []
        self.end.setblocking(False)
        Inbox(messages(lambda *message: got.append(message))).feed(self.end.recv(1 << 20))
        return got

    def wait_for(self, count):
        """Until so many requests have come."""
        deadline = time.monotonic() + 10
        while count > 0:
            assert time.monotonic() < deadline
            with contextlib.suppress(BlockingIOError):
                count -= len(self.requests())
            time.sleep(0.001)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def peer(ends):
    return Peer(ends[1])


@pytest.fixture
def client(ends):
    return Client(Connection(SocketTransport(ends[0], TICK), "the test", 30.0))


@pytest.fixture
def impatient(client):
    """The same client, but it does not wait long."""
    client._connection.timeout = 0.02
    return client


def test_a_batch_is_one_piece(client, peer):
    for number in (1, 2, 3):
        peer.answer(number, b"%d" % number)
    assert client.read_many(["a", "b/c", "/d"]) == [b"1", b"2", b"3"]
    assert peer.requests() == [
        (protocol.READ, 1, b"a\0"),
        (protocol.READ, 2, b"b/c\0"),
        (protocol.READ, 3, b"/d\0"),
    ]


def test_answers_may_come_in_any_order(client, peer):
    for number in (3, 1, 2):
        peer.answer(number, b"%d" % number)
    assert client.read_many(["a", "b", "c"]) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("name", ["EACCES", "EPERM"])
def test_forbidden_is_not_absent(client, peer, name):
    peer.refuse(1, name)
    with pytest.raises(PermissionError, match="refused to read") as caught:
        client.read("/vm")
    assert caught.value.errno == getattr(errno, name)
    assert caught.value.filename == "/vm"


def test_forbidden_is_absent_if_wanted(client, peer):
    peer.refuse(1, "EACCES")
    peer.answer(2, b"value")
    peer.refuse(3, "ENOENT")
    assert client.read_many(["a", "b", "c"], forbidden_is_absent=True) == [None, b"value", None]
    peer.refuse(4, "EIO")
    with pytest.raises(OSError, match="refused to read"):
        client.read_many(["a"], forbidden_is_absent=True)


@pytest.mark.parametrize(
    ("call", "verb"),
    [
        (lambda client: client.read("p"), "read"),
        (lambda client: client.read_many(["p"]), "read"),
        (lambda client: client.directory("p"), "list"),
        (lambda client: client.write("p", b""), "write"),
        (lambda client: client.mkdir("p"), "create"),
        (lambda client: client.remove("p"), "remove"),
        (lambda client: client.get_permissions("p"), "read the permissions"),
        (lambda client: client.set_permissions("p", []), "set the permissions"),
        (lambda client: client.watch("p", "t", print), "watch"),
        (lambda client: client.unwatch("p", "t"), "unwatch"),
    ],
)
def test_every_refusal_has_errno_path_and_words(client, peer, call, verb):
    peer.refuse(1, "ENOSPC")
    with pytest.raises(OSError, match=f"xenstore refused to {verb}: No space left") as caught:
        call(client)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "p")


def test_the_refused_one_of_many_is_named(client, peer):
    peer.answer(1, b"")
    peer.refuse(2, "ENOENT")
    peer.refuse(3, "EACCES")
    with pytest.raises(PermissionError) as caught:
        client.read_many(["a", "b", "c"])
    assert caught.value.filename == "c"


def test_a_batch_has_refusals_as_values(client, peer):
    peer.answer(1, b"OK\0", protocol.WRITE)
    peer.refuse(2, "EACCES")
    results = client.batch(
        [
            protocol.Request(protocol.WRITE, "a", b"value"),
            protocol.Request(protocol.SET_PERMS, "b", b"n0\0"),
        ]
    )
    assert results[0] == b"OK\0"
    assert isinstance(results[1], PermissionError)
    assert results[1].filename == "b"
    assert peer.requests() == [
        (protocol.WRITE, 1, b"a\0value"),
        (protocol.SET_PERMS, 2, b"b\0n0\0"),
    ]


# The connection breaks


@pytest.mark.parametrize(
    "garbage",
    [
        HEADER.pack(protocol.READ, 1, 0, 5000),
        HEADER.pack(protocol.WATCH_EVENT, 0, 0, 1) + b"x",
    ],
    ids=["oversized", "event without token"],
)
def test_garbage_breaks_it(client, peer, garbage):
    peer.end.sendall(garbage)
    with pytest.raises(StoreConnectionError, match="the connection to xenstore at the test broke"):
        client.read("a")
    with pytest.raises(StoreConnectionError):
        client.read("a")


@pytest.mark.parametrize("sent", [0, 10, 18])
def test_the_end_breaks_it_wherever_it_is(client, peer, sent):
    reply = HEADER.pack(protocol.READ, 1, 0, 5) + b"value"
    peer.end.sendall(reply[:sent])
    peer.end.shutdown(socket.SHUT_WR)
    with pytest.raises(StoreConnectionError, match="xenstored closed it"):
        client.read("a")
    with pytest.raises(StoreConnectionError, match="xenstored closed it"):
        client.transaction(lambda snapshot: snapshot.read("a"))


def test_a_daemon_that_is_gone_when_we_send(client, peer):
    peer.end.close()
    with pytest.raises(StoreConnectionError, match="Broken pipe"):
        client.read("a")


def test_a_closed_client_says_so(client):
    client.close()
    client.close()
    with pytest.raises(StoreConnectionError, match="was closed"):
        client.read("a")
    with pytest.raises(StoreConnectionError, match="was closed"):
        client.watch("a", "t", print)


def test_close_ends_the_calls_of_others(client, peer):
    caught = []

    def ask():
        try:
            client.read("a")
        except StoreConnectionError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    peer.end.recv(16, socket.MSG_WAITALL)  # somebody has asked
    client.close()
    for thread in threads:
        thread.join()
    assert len(caught) == 3


# Time


def test_a_daemon_that_does_not_answer(impatient, peer):
    with pytest.raises(TimeoutError, match=r"within 0\.02 s when asked to read") as caught:
        impatient.read("a/b")
    assert caught.value.filename == "a/b"
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_late_answer_is_not_taken_for_another(impatient, peer):
    with pytest.raises(TimeoutError):
        impatient.read_many(["a", "b"])
    peer.answer(1, b"late")
    peer.answer(2, b"later")
    peer.answer(3, b"right")
    assert impatient.read("c") == b"right"


def test_events_do_not_prolong_the_wait(impatient, peer):
    peer.answer(1, b"OK\0", protocol.WATCH)
    impatient.watch("w", "t", lambda *_: peer.event("w", "t"))  # for ever
    peer.event("w", "t")
    with pytest.raises(TimeoutError):
        impatient.read("a")


def test_a_daemon_that_does_not_read(impatient, ends):
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
    with pytest.raises(StoreConnectionError, match="took only a part of a request"):
        impatient.batch([protocol.Request(protocol.WRITE, "a", b"x" * 4000)] * 32)
    with pytest.raises(StoreConnectionError):
        impatient.read("a")


def fill(end):
    """Send until nothing more fits; answers how many bytes that was."""
    filled = 0
    while True:
        try:
            filled += end.send(b"\0")
        except BlockingIOError:
            return filled


def test_a_request_that_was_never_sent_is_no_loss(impatient, ends, peer):
    ours, theirs = ends
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    ours.setblocking(False)
    filled = fill(ours)
    ours.setblocking(True)
    with pytest.raises(TimeoutError):
        impatient.read("a")
    theirs.recv(filled)
    peer.answer(2, b"value")
    assert impatient.read("b") == b"value"
    assert peer.requests() == [(protocol.READ, 2, b"b\0")]


# Events


def test_what_rides_with_a_request_that_was_never_sent_rides_on(impatient, ends, peer):
    with impatient.begin(with_next=True) as begun:
        junk = fill(ends[0])
        with pytest.raises(TimeoutError):
            impatient.read("a")
        ends[1].recv(junk, socket.MSG_WAITALL)
        peer.answer(3, b"7\0", protocol.TRANSACTION_START)  # two numbers were given in vain
        peer.answer(4, b"value")
        impatient._connection.timeout = 5.0
        assert impatient.read("a") == b"value"
        peer.answer(5, b"OK\0", protocol.TRANSACTION_END)
        begun.run(lambda _: None)
    assert [kind for kind, _, _ in peer.requests()] == [
        protocol.TRANSACTION_START,
        protocol.READ,
        protocol.TRANSACTION_END,
    ]


def test_an_event_comes_before_the_answers_behind_it(client, peer):
    order = []
    peer.answer(1, b"OK\0", protocol.WATCH)
    client.watch("w", "t", lambda path, token: order.append((path, token)))
    peer.event("w", "t")
    peer.event("w/a", "somebody else's")
    peer.event("w/b", "t")
    peer.answer(2, b"value")
    peer.event("w/c", "t")
    assert client.read("a") == b"value"
    assert order[:2] == [("w", "t"), ("w/b", "t")]


def test_a_callback_that_raises_breaks_the_connection(client, peer):
    peer.answer(1, b"OK\0", protocol.WATCH)
    client.watch("w", "t", lambda *_: 1 / 0)
    peer.event("w", "t")
    peer.answer(2, b"value")
    with pytest.raises(StoreConnectionError, match="ZeroDivisionError") as caught:
        client.read("a")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_callback_that_calls_the_client_is_told_at_once(client, peer):
    peer.answer(1, b"OK\0", protocol.WATCH)
    client.watch("w", "t", lambda *_: client.read("a"))
    peer.event("w", "t")
    with pytest.raises(StoreConnectionError, match="a watch callback may not call"):
        client.read("a")


def test_a_watch_that_is_refused_leaves_nothing(client, peer):
    peer.refuse(1, "EACCES")
    with pytest.raises(PermissionError):
        client.watch("@releaseDomain", "t", print)
    peer.answer(2, b"OK\0", protocol.WATCH)
    client.watch("w", "t", print)


def test_the_pump_tells_when_the_connection_breaks(client, peer):
    broken = threading.Event()
    reasons = []

    def on_broken(error):
        reasons.append(error)
        broken.set()

    client.start_pump(on_broken)
    peer.end.shutdown(socket.SHUT_RDWR)
    assert broken.wait(5)
    assert isinstance(reasons[0], StoreConnectionError)
    with pytest.raises(StoreConnectionError, match="xenstored closed it"):
        client.read("a")
    with pytest.raises(StoreConnectionError, match="xenstored closed it"):
        client.pump()


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_a_pump_that_pauses_takes_a_burst_at_once(client, peer, monkeypatch, pause):
    count, reads, seen = 20, [], threading.Semaphore(0)
    receive = SocketTransport.receive

    def counted(self, at_least):
        data = receive(self, at_least)
        reads.append(data)
        return data

    peer.answer(1, b"OK\0", protocol.WATCH)
    client.watch("w", "token", lambda *_: seen.release())
    monkeypatch.setattr(SocketTransport, "receive", counted)
    client.start_pump(pause=pause)
    for number in range(count):
        peer.event(f"w/{number}", "token")
        time.sleep(0.002)
    for _ in range(count):
        assert seen.acquire(timeout=5)
    client.close()
    assert (len(reads) < 5) == bool(pause)


def test_the_pump_tells_when_somebody_else_finds_it_broken(client, peer):
    broken = threading.Event()
    client.start_pump(lambda _: broken.set())
    peer.end.sendall(HEADER.pack(protocol.READ, 1, 0, 5000))
    with pytest.raises(StoreConnectionError):
        client.read("a")
    assert broken.wait(5)


def test_the_pump_ends_with_the_client(client):
    thread = threading.Thread(target=client.pump)
    thread.start()
    client.close()
    thread.join(5)
    assert not thread.is_alive()


def test_one_pump_is_enough(client):
    started = threading.Event()
    connection = client._connection
    hand_over = connection._hand_over
    connection._hand_over = lambda: (started.set(), hand_over())
    thread = threading.Thread(target=client.pump)
    thread.start()
    assert started.wait(5)
    with pytest.raises(RuntimeError, match="has a pump already"):
        client.pump()
    client.close()
    thread.join(5)


# Conversations: several round trips, so somebody must answer when it is their turn


class Script:
    """A daemon that gives the planned answers, one after the other."""

    def __init__(self, end):
        self.end = end
        self.plan = []
        self.requests = []  # type and payload of each
        self.thread = threading.Thread(target=self.run)

    def run(self):
        inbox = Inbox(messages(self.respond))
        while data := self.end.recv(1 << 16):
            inbox.feed(data)

    def respond(self, kind, req_id, payload):
        self.requests.append((kind, payload))
        if self.plan:
            answer, text = self.plan.pop(0)
            self.send(answer, req_id, text)

    def event(self, path, token):
        self.send(protocol.WATCH_EVENT, 0, f"{path}\0{token}\0".encode())

    def send(self, kind, req_id, payload):
        self.end.sendall(HEADER.pack(kind, req_id, 0, len(payload)) + payload)


@pytest.fixture
def script(ends, client):
    script = Script(ends[1])
    script.thread.start()
    yield script
    client.close()
    script.thread.join()


OK = (protocol.WRITE, b"OK\0")
STARTED = (protocol.TRANSACTION_START, b"17\0")


def no(name):
    return (protocol.ERROR, name.encode() + b"\0")


def part(generation, names):
    return (protocol.DIRECTORY_PART, b"%d\0" % generation + names)


def test_a_list_that_does_not_fit_comes_in_parts(client, script):
    script.plan = [
        no("E2BIG"),
        (protocol.DIRECTORY, b"x\0"),
        part(7, b"a\0bc\0"),
        part(7, b"d\0\0"),
    ]
    assert client.directory_many(["large", "small"]) == [["a", "bc", "d"], ["x"]]
    assert script.requests[2:] == [
        (protocol.DIRECTORY_PART, b"large\x000\0"),
        (protocol.DIRECTORY_PART, b"large\x005\0"),
    ]


def test_a_survey_with_a_list_that_does_not_fit(client, script):
    script.plan = [no("E2BIG"), no("EACCES"), (protocol.READ, b"value"), no("ENOENT")]
    script.plan += [part(7, b"a\0\0")]
    listings, values = client.survey(["large", "secret"], ["full", "absent"])
    assert listings[0] == ["a"]
    assert isinstance(listings[1], PermissionError)
    assert values == [b"value", None]


def test_a_survey_that_fails_otherwise(client, script):
    script.plan = [(protocol.DIRECTORY, b""), no("EIO")]
    with pytest.raises(OSError, match="refused to read") as caught:
        client.survey(["a"], ["b"])
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "b")


def test_who_asks_for_a_transaction_early_does_not_wait(client, peer):
    def body(snapshot):
        peer.answer(3, b"inside")
        value = snapshot.read("b")
        peer.answer(4, b"OK\0", protocol.TRANSACTION_END)
        return value

    with client.begin() as begun:
        assert [kind for kind, _, _ in peer.requests()] == [protocol.TRANSACTION_START]
        peer.answer(1, b"7\0", protocol.TRANSACTION_START)
        peer.answer(2, b"value")
        assert client.read("a") == b"value"
        assert begun.run(body) == b"inside"
    assert [kind for kind, _, _ in peer.requests()] == [
        protocol.READ,
        protocol.READ,
        protocol.TRANSACTION_END,
    ]


def test_a_transaction_is_asked_for_with_the_next_request(client, peer):
    with client.begin(with_next=True) as begun:
        peer.answer(1, b"7\0", protocol.TRANSACTION_START)
        peer.answer(2, b"value")
        assert client.read("a") == b"value"
        peer.answer(3, b"inside")
        assert begun.stage(lambda snapshot: snapshot.read("b")) == b"inside"
        peer.answer(4, b"OK\0", protocol.TRANSACTION_END)
    assert [kind for kind, _, _ in peer.requests()] == [
        protocol.TRANSACTION_START,
        protocol.READ,
        protocol.READ,
        protocol.TRANSACTION_END,
    ]


def test_a_transaction_that_is_needed_before_the_next_request(client, script):
    script.plan = [(protocol.TRANSACTION_START, b"7\0"), (protocol.READ, b"inside")]
    script.plan += [(protocol.TRANSACTION_END, b"OK\0")]
    with client.begin(with_next=True) as begun:
        assert begun.run(lambda snapshot: snapshot.read("b")) == b"inside"
    assert len(script.requests) == 3


def test_a_transaction_for_which_there_was_no_next_request(client, peer):
    with client.begin(with_next=True):
        pass
    client.begin(with_next=True).give_up()
    peer.answer(1, b"value")
    assert client.read("a") == b"value"
    assert [kind for kind, _, _ in peer.requests()] == [protocol.READ]


def test_a_transaction_that_is_given_up_before_it_was_asked_for(client, peer):
    with client.begin(with_next=True) as begun:
        begun.give_up()
    peer.answer(1, b"value")
    assert client.read("a") == b"value"
    assert [kind for kind, _, _ in peer.requests()] == [protocol.READ]


def test_a_transaction_over_a_connection_that_breaks(client, ends):
    ends[1].close()
    with pytest.raises(StoreConnectionError):
        client.read("a")
    with pytest.raises(StoreConnectionError), client.begin(with_next=True):
        client.read("b")


def test_a_leader_does_not_wait_for_what_another_has_read(ends, peer):
    """Of what was sent with its requests, some replies may have come by the time that it leads."""
    client = Client(Connection(SocketTransport(ends[0], 5.0), "the test", 30.0))  # seconds
    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(client.read, "x")
        peer.wait_for(1)
        begun = client.begin(with_next=True)
        second = workers.submit(client.read_many, [*"abcdefgh"])
        peer.wait_for(9)
        answers = [(1, b"x", protocol.READ), (2, b"7\0", protocol.TRANSACTION_START)]
        peer.answer_all(*answers, (3, b"a", protocol.READ))  # of which the first one reads all
        assert first.result(5) == b"x"
        time.sleep(0.05)  # for the other to lead
        start = time.monotonic()
        peer.answer_all(*((number, b"", protocol.READ) for number in range(4, 11)))
        assert second.result(10) == [b"a"] + 7 * [b""]
        assert time.monotonic() - start < 2.5
        peer.answer(11, b"OK\0", protocol.TRANSACTION_END)
        begun.give_up()


def test_a_transaction_that_was_given_up_is_never_asked_for(impatient, peer):
    """Another thread had it with its own request, and could not send that."""
    batch, connection = Batch(1), impatient._connection
    start = ((protocol.TRANSACTION_START, b"\0"),)
    connection.riders.add(batch, start, protocol.NO_TRANSACTION)
    (rider,) = connection.riders.take()
    connection.riders.drop(batch)
    connection.riders.add(*rider)
    peer.answer(1, b"value")
    connection.timeout = 5.0
    assert impatient.read("a") == b"value"
    assert [kind for kind, _, _ in peer.requests()] == [protocol.READ]


ABORTED = (protocol.TRANSACTION_END, b"F\0")


def test_a_transaction_whose_number_comes_too_late_is_ended(impatient, peer):
    with pytest.raises(TimeoutError), impatient.begin(with_next=True):
        impatient.read("a")
    impatient._connection.timeout = 5.0
    peer.answer(1, b"7\0", protocol.TRANSACTION_START)
    peer.answer(2, b"late")
    peer.answer(3, b"value")
    assert impatient.read("b") == b"value"
    peer.answer(4, b"OK\0", protocol.TRANSACTION_END)
    peer.answer(5, b"value")
    assert impatient.read("c") == b"value"
    assert [(kind, payload) for kind, _, payload in peer.requests()] == [
        (protocol.TRANSACTION_START, b"\0"),
        (protocol.READ, b"a\0"),
        (protocol.READ, b"b\0"),
        ABORTED,
        (protocol.READ, b"c\0"),
    ]


def test_a_transaction_whose_number_comes_when_the_wait_is_over_is_ended(
    impatient, peer, monkeypatch
):
    """Another thread reads it before this one can say that it does not wait any more."""
    drop = Riders.drop

    def late(riders, batch):
        impatient._connection._deliver(protocol.TRANSACTION_START, 1, b"7\0")
        drop(riders, batch)

    monkeypatch.setattr(Riders, "drop", late)
    with pytest.raises(TimeoutError), impatient.begin(with_next=True):
        impatient.read("a")
    impatient._connection.timeout = 5.0
    peer.answer(2, b"late")
    peer.answer(3, b"OK\0", protocol.TRANSACTION_END)
    peer.answer(4, b"value")
    assert impatient.read("b") == b"value"
    assert ABORTED in [(kind, payload) for kind, _, payload in peer.requests()]


def test_an_early_transaction_that_is_refused(client, script):
    script.plan = [no("ENOSPC")]
    with client.begin() as begun, pytest.raises(OSError, match="start a transaction") as caught:
        begun.run(lambda snapshot: snapshot.read("a"))
    assert caught.value.errno == errno.ENOSPC
    assert len(script.requests) == 1


def test_an_early_transaction_that_is_not_answered(impatient, peer):
    with impatient.begin() as begun, pytest.raises(TimeoutError, match="start a transaction"):
        begun.run(lambda snapshot: snapshot.read("a"))


def test_a_silent_daemon_is_waited_for_once(impatient, peer):
    """Who gave up on an answer does not wait as long again to end the transaction."""
    impatient._connection.timeout = 0.2
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="asked to read"), impatient.begin():
        impatient.read("a")
    assert time.monotonic() - began < 0.35


def test_a_list_that_changes_is_read_again(client, script):
    script.plan = [no("E2BIG"), part(7, b"a\0b\0"), part(8, b"c\0")]
    script.plan += [part(8, b"b\0c\0"), part(8, b"\0")]
    assert client.directory("large") == ["b", "c"]


def test_a_list_that_shrinks_to_nothing(client, script):
    script.plan = [no("E2BIG"), part(7, b"\0")]
    assert client.directory("large") == []


def test_a_list_whose_node_goes_away(client, script):
    script.plan = [no("E2BIG"), part(7, b"a\0"), no("ENOENT")]
    assert client.directory("large") is None


def test_a_list_that_never_rests_is_read_in_a_transaction(client, script):
    restless = [part(number, b"a\0") for number in range(2 * RESTARTS)]
    script.plan = [no("E2BIG"), *restless, STARTED, part(7, b"a\0"), part(7, b"b\0\0"), OK]
    assert client.directory("large") == ["a", "b"]
    assert script.requests[-1] == (protocol.TRANSACTION_END, b"F\0")


def test_a_list_that_does_not_even_rest_there_is_given_up(client, script):
    restless = [part(number, b"a\0") for number in range(2 * RESTARTS)]
    script.plan = [no("E2BIG"), *restless, STARTED, *restless, OK]
    with pytest.raises(OSError, match="changed 8 times") as caught:
        client.directory("large")
    assert (caught.value.errno, caught.value.filename) == (errno.EAGAIN, "large")
    assert script.requests[-1] == (protocol.TRANSACTION_END, b"F\0")


def test_a_list_that_never_ends_is_a_fault(client, script):
    script.plan = [no("E2BIG"), part(7, b"")]
    with pytest.raises(ProtocolError, match="does not end"):
        client.directory("large")


@pytest.mark.parametrize(("name", "number"), [("ENOSYS", errno.E2BIG), ("EACCES", errno.EACCES)])
def test_a_list_that_cannot_be_had_in_parts(client, script, name, number):
    script.plan = [no("E2BIG"), no(name)]
    with pytest.raises(OSError, match="refused to list") as caught:
        client.directory("large")
    assert caught.value.errno == number


def test_a_transaction_is_three_round_trips(client, script):
    script.plan = [STARTED, (protocol.READ, b"4"), OK, no("ENOENT"), OK]
    changes = [Write("b", b"1"), Write("c", None)]
    assert client.transaction(lambda s: s.read_and_apply(["a"], changes)) == [b"4"]
    assert script.requests == [
        (protocol.TRANSACTION_START, b"\0"),
        (protocol.READ, b"a\0"),
        (protocol.WRITE, b"b\x001"),
        (protocol.RM, b"c\0"),
        (protocol.TRANSACTION_END, b"T\0"),
    ]


def test_a_refused_change_aborts(client, script):
    script.plan = [STARTED, OK, no("ENOSPC"), OK]
    with pytest.raises(OSError, match="refused to write") as caught:
        client.transaction(lambda s: s.apply([Write("a", b""), Write("b", b"")]))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "b")
    assert script.requests[-1] == (protocol.TRANSACTION_END, b"F\0")


def test_to_write_what_the_daemon_calls_absent_is_an_error(client, script):
    script.plan = [STARTED, no("ENOENT"), OK]  # it does not know the transaction
    with pytest.raises(FileNotFoundError):
        client.transaction(lambda s: s.apply([Write("a", b"")]))


def test_a_commit_that_fails_otherwise_is_not_repeated(client, script):
    script.plan = [STARTED, no("ENOSPC")]
    with pytest.raises(OSError, match="refused to end the transaction") as caught:
        client.transaction(lambda _: None)
    assert caught.value.errno == errno.ENOSPC


def test_an_abort_that_fails_does_not_hide_the_reason(client, script):
    script.plan = [STARTED, no("EIO")]
    with pytest.raises(ZeroDivisionError):
        client.transaction(lambda _: 1 / 0)
    assert script.requests[-1] == (protocol.TRANSACTION_END, b"F\0")


def test_the_pump_reads_while_nobody_asks(client, script):
    called = threading.Event()
    script.plan = [OK, (protocol.READ, b"value")]
    client.watch("w", "t", lambda *_: called.set())
    client.start_pump()
    script.event("w", "t")
    assert called.wait(5)
    assert client.read("a") == b"value"
    called.clear()
    script.event("w", "t")
    assert called.wait(5)


def test_large_batches_go_in_windows(client, script):
    script.plan = [(protocol.READ, b"%d" % number) for number in range(1000)]
    paths = [f"p{number}" for number in range(1000)]
    assert client.read_many(paths) == [b"%d" % number for number in range(1000)]
    assert [payload for _, payload in script.requests] == [b"%s\0" % p.encode() for p in paths]


def test_numbers_do_not_wrap_within_a_batch(client, script):
    client._connection._next_id = protocol.REQUEST_IDS - 2
    script.plan = [(protocol.READ, b"%d" % number) for number in range(5)]
    assert client.read_many(["a", "b"]) == [b"0", b"1"]
    assert client.read_many(["a", "b", "c"]) == [b"2", b"3", b"4"]
    assert client._connection._next_id == 4
