"""The NBD handshake: whole, cut at every byte, and with bytes left over."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import AbandonedError, DeadlineError
from hotplug.kernel import nbd
from hotplug.kernel import nbd_abi as abi
from hotplug.kernel.nbd_handshake import MAX_REPLIES, Agreed, HandshakeError, handshake
from hotplug.nbd import NbdServer

SIZE = 3 << 30
FLAGS = 0x10D
NAME = b"a disk"

FIXED = b"NBDMAGICIHAVEOPT\0\3"
FIXED_WITH_ZEROES = b"NBDMAGICIHAVEOPT\0\1"
PLAIN = b"NBDMAGICIHAVEOPT\0\0"
OLD = b"NBDMAGIC" + abi.NBD_CLISERV_MAGIC


def reply(type_, body=b"", option=abi.NBD_OPT_GO, magic=abi.NBD_REP_MAGIC):
    return struct.pack(">QIII", magic, option, type_, len(body)) + body


def information(kind, layout, *values):
    return reply(abi.NBD_REP_INFO, struct.pack(f">H{layout}", kind, *values))


EXPORT = information(abi.NBD_INFO_EXPORT, "QH", SIZE, FLAGS)
ACK = reply(abi.NBD_REP_ACK)
UNSUPPORTED = reply(abi.NBD_REP_ERR_UNSUP, b"what?")
BY_NAME = struct.pack(">QH", SIZE, FLAGS)


def blocks(minimum):
    return information(abi.NBD_INFO_BLOCK_SIZE, "III", minimum, 4096, 1 << 25)


def talk(incoming, export=NAME):
    """Feed a dialogue; returns its result (None if it wants more), what it said, what is left."""
    dialogue = handshake(export)
    said = b""
    wish = next(dialogue)
    try:
        while True:
            if isinstance(wish, bytes):
                said += wish
                wish = dialogue.send(b"")
            elif wish > len(incoming):
                return None, said, incoming
            else:
                piece, incoming = incoming[:wish], incoming[wish:]
                wish = dialogue.send(piece)
    except StopIteration as end:
        return end.value, said, incoming


GO = (
    b"\0\0\0\3"
    b"IHAVEOPT\0\0\0\7\0\0\0\x0e"
    b"\0\0\0\6a disk"
    b"\0\1\0\3"
)  # fmt: skip
EXPORT_NAME = b"IHAVEOPT\0\0\0\1\0\0\0\6a disk"

CONVERSATIONS = {
    "go": (FIXED + EXPORT + ACK, 512, GO),
    "go with block sizes": (FIXED + blocks(4096) + EXPORT + ACK, 4096, GO),
    "go with small blocks": (FIXED + EXPORT + blocks(1) + ACK, 512, GO),
    "go with other information": (
        FIXED + information(2, "5s", b"hello") + EXPORT + information(77, "") + ACK,
        512,
        GO,
    ),
    "unsupported": (FIXED + UNSUPPORTED + BY_NAME, 512, GO + EXPORT_NAME),
    "unsupported, zeroes": (
        FIXED_WITH_ZEROES + UNSUPPORTED + BY_NAME + bytes(124),
        512,
        b"\0\0\0\1" + GO[4:] + EXPORT_NAME,
    ),
    "plain newstyle": (PLAIN + BY_NAME + bytes(124), 512, b"\0\0\0\0" + EXPORT_NAME),
}


@pytest.fixture(params=CONVERSATIONS)
def conversation(request):
    return CONVERSATIONS[request.param]


def test_whole(conversation):
    incoming, block_size, said = conversation
    assert talk(incoming) == (Agreed(SIZE, FLAGS, block_size), said, b"")


def test_cut_at_every_byte(conversation):
    incoming, _, said = conversation
    for length in range(len(incoming)):
        result, so_far, _ = talk(incoming[:length])
        assert result is None
        assert said.startswith(so_far)


def test_bytes_left_over(conversation):
    """They are the kernel's."""
    incoming, block_size, said = conversation
    assert talk(incoming + b"more") == (Agreed(SIZE, FLAGS, block_size), said, b"more")


def test_the_default_export():
    assert (
        talk(FIXED + EXPORT + ACK, b"")[1] == b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\x08\0\0\0\0\0\1\0\3"
    )


@pytest.mark.parametrize(
    ("incoming", "text"),
    [
        (b"HTTP/1.1 400 Bad", "this is no NBD server"),
        (b"NBDMAGIC" + bytes(8), "an unknown kind of NBD"),
        (OLD, "only the oldstyle handshake"),
        (FIXED + ACK, "did not say how large"),
        (FIXED + EXPORT * MAX_REPLIES, "64 replies to one question"),
        (FIXED + reply(3, b"\0\0", option=6), "does not belong to option 7"),
        (FIXED + reply(3, b"\0\0", magic=1), "does not belong to option 7"),
        (FIXED + struct.pack(">QIII", abi.NBD_REP_MAGIC, 7, 3, 65537), "is 65537 bytes, the limit"),
        (FIXED + information(0, "Q", 5), "has 10 bytes, not 12"),
        (FIXED + information(3, "I", 5), "has 6 bytes, not 14"),
        (
            FIXED + reply(abi.NBD_REP_ERR_UNKNOWN, b"no 'a disk' here"),
            r"no such export \(no 'a disk'",
        ),
        (FIXED + reply(abi.NBD_REP_ERR_UNKNOWN), "the server has no such export$"),
        (FIXED + reply(abi.NBD_REP_ERR_TLS_REQD), "insists on TLS"),
        (FIXED + reply(abi.NBD_REP_ERR_POLICY, b"\xff"), "policy forbids it"),
        (FIXED + reply(1 << 31 | 99), "refused with error 99"),
        (
            FIXED + information(0, "QH", 1 << 63, 1) + ACK,
            "is said to have 9223372036854775808 bytes",
        ),
        (FIXED + EXPORT + blocks(8192) + ACK, "wants blocks of 8192 bytes"),
        (FIXED + EXPORT + blocks(1000) + ACK, "wants blocks of 1000 bytes"),
    ],
)
def test_refusals(incoming, text):
    with pytest.raises(HandshakeError, match=text):
        talk(incoming)


class Dribble:
    """A connection that gives one byte at a time."""

    def __init__(self, connection):
        self.connection = connection
        self.fileno = connection.fileno
        self.sendall = connection.sendall

    def recv(self, size):
        return self.connection.recv(min(size, 1))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("wrap", [Dribble, lambda connection: connection])
def test_over_a_connection(pair, conversation, wrap):
    ours, theirs = pair
    incoming, block_size, said = conversation
    theirs.sendall(incoming + b"more")
    agreed = nbd.converse(wrap(ours), handshake(NAME), EventDeadline(5.0))
    assert agreed == Agreed(SIZE, FLAGS, block_size)
    assert ours.recv(100) == b"more"
    assert theirs.recv(1000) == said


def test_the_server_hangs_up(pair):
    ours, theirs = pair
    theirs.sendall(FIXED)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match="the server hung up") as caught:
        nbd.converse(ours, handshake(NAME), EventDeadline(5.0))
    assert caught.value.errno == errno.ECONNRESET


def test_the_server_is_silent(pair):
    deadline = EventDeadline(0.01)
    deadline.stage("asking")
    with pytest.raises(DeadlineError, match="while asking"):
        nbd.converse(pair[0], handshake(NAME), deadline)


def test_nobody_waits(pair):
    deadline = EventDeadline(35.0)
    deadline.abandon()
    with pytest.raises(AbandonedError):
        nbd.converse(pair[0], handshake(NAME), deadline)


class TestOpen:
    @pytest.fixture
    def _server(self, tmp_path, monkeypatch):
        """A socket that nobody accepts from."""
        monkeypatch.chdir(tmp_path)  # a short path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("nbd")
            listener.listen(1)
            yield listener

    def test_no_server(self, tmp_path):
        with pytest.raises(OSError, match="No such file or directory") as caught:
            self.open(NbdServer("", 0, str(tmp_path / "absent"), ""))
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == f"nbd:unix:{tmp_path}/absent"

    def test_nobody_listens(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                self.open(NbdServer("127.0.0.1", port, "", ""))

    def test_no_such_name(self):
        with pytest.raises(OSError, match="nbd:") as caught:
            self.open(NbdServer("no such name.invalid", 1, "", ""))
        assert caught.value.errno == errno.EHOSTUNREACH

    @pytest.mark.usefixtures("_server")
    def test_a_full_queue(self):
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.connect("nbd")
            two.connect("nbd")
            with pytest.raises(DeadlineError):
                self.open(NbdServer("", 0, "nbd", ""), EventDeadline(0.01))

    @pytest.mark.usefixtures("_server")
    def test_a_silent_server(self):
        with pytest.raises(DeadlineError):
            self.open(NbdServer("", 0, "nbd", ""), EventDeadline(0.01))

    @staticmethod
    def open(server, deadline=None):
        with nbd.KernelNbd().open(server, deadline or EventDeadline(5.0)):
            pass
