"""sources/control.py on real sockets: how a client's connection ends, and in which thread."""

from __future__ import annotations

import os
import queue
import random
import select
import socket
import threading

import pytest

from hotplug.client import wire
from hotplug.sources.control import ControlSource

REQUEST = wire.pack_request(wire.Request(b"run", b"/", (b"block", b"add"), {}))
CLIENTS = 400
WORKERS = 4


class Server:
    """A ControlSource, and a loop for it like the agent's."""

    def __init__(self, path):
        self.path = path
        self.served = []
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(CLIENTS)
        self.poll = select.epoll()
        self.source = ControlSource(listener, self.poll, self.serve)

    def serve(self, connection, _request):
        self.served.append(connection)

    def turn(self, seconds=5.0):
        """One turn of the loop: what it was woken for."""
        events = self.poll.poll(seconds)
        for descriptor, flags in events:
            if descriptor == self.source.fileno():
                self.source.accept()
            else:
                self.source.ready(descriptor, flags)
        return [descriptor for descriptor, _ in events]

    def client(self, packet=REQUEST):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(5)
        client.connect(self.path)
        if packet:
            client.send(packet)
        return client

    def close(self):
        self.source.stop()
        self.source.close()
        self.poll.close()


@pytest.fixture
def server(tmp_path):
    made = Server(str(tmp_path / "control"))
    yield made
    made.close()


def in_a_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_a_connection_ends_with_its_answer(server):
    """In the thread that answers: the loop is not woken for it."""
    before = descriptors()
    with server.client() as client:
        server.turn()
        (connection,) = server.served
        in_a_thread(connection.answer, 3, b"text")
        assert wire.unpack_reply(client.recv(100)) == (3, b"text")
        assert client.recv(100) == b""
    assert server.turn(0) == []
    assert descriptors() == before


def test_one_that_speaks_late(server):
    with server.client(packet=b"") as client:
        server.turn()
        assert server.served == []
        client.send(REQUEST)
        server.turn()
        (connection,) = server.served
        assert server.turn(0) == []
        in_a_thread(connection.answer, 0, b"")
        assert wire.unpack_reply(client.recv(100)) == (0, b"")


def test_one_that_goes_away_before_its_answer(server):
    gone = []
    before = descriptors()
    with server.client():
        server.turn()
        (connection,) = server.served
        connection.abandon = lambda: gone.append(1)
    server.turn()
    assert gone == [1]
    connection.answer(0, b"too late")
    assert server.turn(0) == []
    assert descriptors() == before


def test_what_is_heard_of_a_former_client_is_not_of_the_next_one(server):
    """Both had the same descriptor's number."""
    lost = []
    with server.client() as first:
        server.turn()
        (connection,) = server.served
        number = connection._socket.fileno()
        in_a_thread(connection.answer, 0, b"")
        assert wire.unpack_reply(first.recv(100)) == (0, b"")
    with server.client() as second:
        held = []  # so that the second client gets the number of the first
        while (taken := os.dup(0)) < number:
            held.append(taken)
        os.close(taken)
        server.turn()
        for taken in held:
            os.close(taken)
        connection = server.served[1]
        assert connection._socket.fileno() == number
        connection.abandon = lambda: lost.append(1)
        server.source.ready(number, select.EPOLLHUP | select.EPOLLRDHUP)
        assert lost == []
        in_a_thread(connection.answer, 7, b"")
        assert wire.unpack_reply(second.recv(100)) == (7, b"")


@pytest.mark.parametrize("packet", [b"nonsense", b"\0", REQUEST.replace(b" 1", b" 9")])
def test_what_no_client_of_ours_sends(server, packet):
    with server.client(packet) as client:
        server.turn()
        status, text = wire.unpack_reply(client.recv(1000))
        assert status == 1
        assert text.startswith(b"xen-hotplug: ")
        assert client.recv(100) == b""
    assert server.served == []


def test_one_that_speaks_late_and_goes_away_at_once(server):
    before = descriptors()
    with server.client(packet=b"") as client:
        server.turn()
        client.send(REQUEST)
    while server.source._connections:
        server.turn()
    assert descriptors() == before


class Crowd:
    """Clients of which some do not wait for their answer."""

    def __init__(self, server):
        chance = random.Random(1)
        self.leaving = [chance.random() < 0.4 for _ in range(CLIENTS)]
        self.jobs = queue.SimpleQueue()
        self.abandoned, self.wrong, self.answered = [], [], []
        self.server = server
        server.source._serve = self.serve

    def serve(self, connection, request):
        number = int(request.argv[1])
        connection.abandon = lambda: self.abandoned.append(number)
        self.jobs.put((connection, number))

    def work(self):
        while (job := self.jobs.get()) is not None:
            connection, number = job
            connection.answer(number % 256, b"%d" % number)

    def ask(self, numbers):
        for number in numbers:
            packet = wire.pack_request(wire.Request(b"run", b"/", (b"block", b"%d" % number), {}))
            with self.server.client(packet) as client:
                if not self.leaving[number]:
                    right = wire.unpack_reply(client.recv(100)) == (number % 256, b"%d" % number)
                    (self.answered if right else self.wrong).append(number)

    def run(self):
        workers = [threading.Thread(target=self.work) for _ in range(WORKERS)]
        numbers = [range(first, CLIENTS, WORKERS) for first in range(WORKERS)]
        asking = [threading.Thread(target=self.ask, args=(some,)) for some in numbers]
        for thread in workers + asking:
            thread.start()
        while any(thread.is_alive() for thread in asking) or self.server.source._connections:
            self.server.turn(0.1)
        for _ in workers:
            self.jobs.put(None)
        for thread in workers + asking:
            thread.join()


def test_many_that_are_answered_while_others_go_away(server):
    """Nobody is forgotten, and nobody gets the answer to another one."""
    before = descriptors()
    crowd = Crowd(server)
    crowd.run()
    assert crowd.wrong == []
    assert sorted(crowd.answered) == [n for n in range(CLIENTS) if not crowd.leaving[n]]
    assert [n for n in crowd.abandoned if not crowd.leaving[n]] == []
    assert server.turn(0) == []
    assert descriptors() == before
