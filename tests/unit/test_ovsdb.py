"""What the database's server may send, and how: the other end of the socket is the test."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading

import pytest

from hotplug.agent.deadline import EventDeadline
from hotplug.kernel import ovsdb
from hotplug.kernel.ovsdb import Patience, Session, StaleError

ANSWER = {"id": 1, "result": [{"rows": [{"name": 'дом "}{" \\'}]}], "error": None}
ECHO = {"id": "echo", "method": "echo", "params": ["hello"]}


@contextlib.contextmanager
def session(*pieces, seconds=1.0, hang_up=True):
    """A session whose server says this, whatever it is asked; and the server's end."""
    ours, theirs = socket.socketpair()

    def speak():
        with contextlib.suppress(OSError):  # nobody reads to the end
            for piece in pieces:
                theirs.sendall(piece)
            if hang_up:
                theirs.shutdown(socket.SHUT_WR)

    speaker = threading.Thread(target=speak)
    with ours, theirs:
        ours.settimeout(5)
        speaker.start()
        yield Session(ours, Patience(EventDeadline(10), seconds)), theirs
        ours.shutdown(socket.SHUT_RDWR)
        speaker.join()


def encoded(*messages):
    return b"".join(json.dumps(message, ensure_ascii=False).encode() for message in messages)


def test_an_answer_cut_at_every_byte():
    text = encoded(ANSWER)
    for cut in range(len(text)):
        with session(text[:cut], text[cut:]) as (asked, _):
            assert asked.transact() == ANSWER["result"]


def test_an_answer_byte_by_byte():
    with session(*(bytes([byte]) for byte in encoded(ANSWER))) as (asked, _):
        assert asked.transact() == ANSWER["result"]


def test_answers_in_one_piece_and_blanks_between():
    second = {**ANSWER, "id": 2, "result": []}
    with session(b"\n " + encoded(ANSWER) + b"\r\n\t" + encoded(second)) as (asked, _):
        assert asked.transact() == ANSWER["result"]
        assert asked.transact() == []


def test_a_question_of_the_server_is_answered():
    with session(encoded(ECHO, ANSWER)) as (asked, server):
        assert asked.transact({"op": "comment"}) == ANSWER["result"]
        request, reply = server.recv(4096).split(b"}{")
        assert json.loads(request + b"}")["params"] == ["Open_vSwitch", {"op": "comment"}]
        assert json.loads(b"{" + reply) == {"id": "echo", "result": ["hello"], "error": None}


def test_news_before_the_answer_are_no_answer():
    news = {"id": None, "method": "update", "params": [None, {}]}
    others = {"id": 99, "result": ["of somebody else"], "error": None}
    with session(encoded(news, others, ANSWER)) as (asked, _):
        assert asked.transact() == ANSWER["result"]


def test_a_column_is_followed():
    first = {"id": 1, "result": {"T": {"row": {"new": {"c": 1}}}}, "error": None}
    news = [
        {"id": None, "method": "update", "params": [None, {"T": {"row": {"new": {"c": number}}}}]}
        for number in (2, 3)
    ]
    with session(encoded(first, news[0], ECHO, news[1])) as (asked, _):
        values = asked.follow("T", "c")
        assert [next(values) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"id": 1, "result": None, "error": "unknown database"}, "refused: unknown database$"),
        (
            {"id": 1, "result": None, "error": {"error": "syntax error", "details": "no table"}},
            "refused: syntax error: no table$",
        ),
        (
            {"id": 1, "result": [{}, None, {"error": "I/O error"}], "error": None},
            "refused: I/O error$",
        ),
    ],
)
def test_a_refusal_is_told(answer, problem):
    with session(encoded(answer)) as (asked, _), pytest.raises(OSError, match=problem) as caught:
        asked.transact()
    assert caught.value.errno == errno.EPROTO


def test_a_wait_that_failed_is_stale():
    answer = {"id": 1, "result": [{"error": "timed out"}, None], "error": None}
    with session(encoded(answer)) as (asked, _), pytest.raises(StaleError):
        asked.transact()


@pytest.mark.parametrize("text", [b"SSH-2.0-OpenSSH\r\n", b"[1]", b'"{', b'{"a":' * (1 << 18)])
def test_what_is_no_database_is_told(text):
    with (
        session(text) as (asked, _),
        pytest.raises(OSError, match="what answers there is no ovsdb-server"),
    ):
        asked.transact()


def test_half_an_answer_and_the_end():
    with (
        session(encoded(ANSWER)[:-1]) as (asked, _),
        pytest.raises(ConnectionResetError, match="ovsdb-server closed the connection"),
    ):
        asked.transact()


def test_half_an_answer_and_silence():
    with (
        session(encoded(ANSWER)[:-1], seconds=0.1, hang_up=False) as (asked, _),
        pytest.raises(TimeoutError),
    ):
        asked.transact()


def test_no_time_is_left():
    with (
        session(seconds=0, hang_up=False) as (asked, _),
        pytest.raises(TimeoutError, match="no answer for 0 s"),
    ):
        asked.transact()


def test_who_gave_a_name_keeps_it(tmp_path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    with (
        server,
        pytest.raises(OSError, match="broken") as caught,
        ovsdb.connected(str(tmp_path / "s"), None, 1),
    ):
        raise OSError(errno.EIO, "broken", "v0")
    assert caught.value.filename == "v0"


def test_a_full_queue_is_waited_for(tmp_path):
    path = str(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        stack.enter_context(pytest.raises(TimeoutError, match="is Open vSwitch running"))
        stack.enter_context(ovsdb.connected(path, None, 0.1))


def test_the_socket_is_where_all_programs_look(monkeypatch):
    monkeypatch.delenv("OVS_RUNDIR", raising=False)
    assert ovsdb.default_path() == "/var/run/openvswitch/db.sock"
    monkeypatch.setenv("OVS_RUNDIR", "/srv/ovs")
    assert ovsdb.default_path() == "/srv/ovs/db.sock"


@pytest.mark.parametrize(
    ("column", "expected"),
    [(7, [7]), (["set", []], []), (["set", [1, 2]], [1, 2]), ("set", ["set"])],
)
def test_a_column_has_values(column, expected):
    assert ovsdb.values(column) == expected
