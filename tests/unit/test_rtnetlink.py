"""What is said to the requests of a datagram, in all the orders in which the kernel may say it."""

from __future__ import annotations

import errno
import struct

import pytest

from hotplug.kernel import rtnetlink
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.rtnetlink_request import Request

GET = Request(rt.RTM_GETLINK, b"1234")
DUMP = Request(rt.RTM_GETADDR, b"12345", rt.NLM_F_DUMP)
CHANGE = Request(rt.RTM_NEWLINK, b"12")
PUT = Request(rt.RTM_NEWADDR, b"", rt.NLM_F_CREATE | rt.NLM_F_REPLACE)


class Kernel:
    """A socket; the datagrams that answer are those that a test has told it."""

    def __init__(self, monkeypatch):
        self.sent = []
        self.ready = []
        self.is_full = False  # of sockets
        monkeypatch.setattr(rtnetlink, "connect", self.connect)
        self.channel = rtnetlink.Rtnetlink()

    def connect(self):
        if self.is_full:
            raise OSError(errno.EMFILE, "Too many open files")
        return self

    def close(self):
        self.ready.clear()

    def setsockopt(self, *_):
        pass

    def send(self, data):
        self.sent.append([(kind, flags, seq) for kind, flags, seq, _ in rtnetlink.split(data)])

    def recv(self, _size):
        if not self.ready:
            raise BlockingIOError
        return self.ready.pop(0)

    def says(self, *datagrams):
        self.ready += [b"".join(messages) for messages in datagrams]
        return self.channel


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def told(sequence, text=b"told", flags=0):
    return rt.HEADER.pack(16 + len(text), 16, flags, sequence, 0) + text


def ended(sequence, number=0, kind=rt.NLMSG_ERROR, flags=0):
    return rt.HEADER.pack(20, kind, flags, sequence, 0) + struct.pack("=i", -number)


def done(sequence, number=0, flags=0):
    return ended(sequence, number, rt.NLMSG_DONE, flags)


def texts(answer):
    return [message[16:] for message in answer.messages]


def outcome(answer):
    return answer.error.errno if answer.error is not None else texts(answer)


def test_nothing_is_sent_for_nothing(kernel):
    assert kernel.channel.exchange_all([]) == []
    assert kernel.sent == []


def test_only_the_last_is_acknowledged(kernel):
    answers = kernel.says([ended(4)]).exchange_all([CHANGE, PUT, PUT, CHANGE])
    assert [outcome(answer) for answer in answers] == [[], [], [], []]
    (sent,) = kernel.sent
    put = rt.NLM_F_REQUEST | rt.NLM_F_CREATE | rt.NLM_F_REPLACE
    assert [flags for _, flags, _ in sent] == [1, put, put, rt.NLM_F_REQUEST | rt.NLM_F_ACK]
    assert [sequence for _, _, sequence in sent] == [1, 2, 3, 4]


def test_what_asks_is_answered_without_that(kernel):
    answers = kernel.says([told(1, b"one.")], [ended(2, errno.ENODEV)], [told(3)])
    answers = answers.exchange_all([GET, GET, GET])
    assert [outcome(answer) for answer in answers] == [[b"one."], errno.ENODEV, [b"told"]]
    assert [flags for _, flags, _ in kernel.sent[0]] == [rt.NLM_F_REQUEST] * 3


def test_several_messages_in_a_datagram(kernel):
    answers = kernel.says([told(1), told(2), ended(3)]).exchange_all([GET, GET, CHANGE])
    assert [outcome(answer) for answer in answers] == [[b"told"], [b"told"], []]


@pytest.mark.parametrize("last", [0, errno.EPERM])
def test_refused_in_the_middle(kernel, last):
    answers = kernel.says([ended(2, errno.EBUSY)], [ended(4, last)])
    answers = answers.exchange_all([PUT, CHANGE, PUT, CHANGE])
    assert [outcome(answer) for answer in answers] == [[], errno.EBUSY, [], last or []]


@pytest.mark.parametrize(
    "datagrams",
    [
        ([told(1, b"a---"), told(1, b"b---")], [done(1)], [ended(3)]),
        ([told(1, b"a---"), told(1, b"b---"), done(1)], [ended(3)]),
        ([told(1, b"a---"), told(1, b"b---")], [ended(3)], [done(1)]),
    ],
    ids=["done", "done at once", "done after a later acknowledgement"],
)
def test_a_dump_before_a_change(kernel, datagrams):
    found, *changed = kernel.says(*datagrams).exchange_all([DUMP, PUT, CHANGE])
    assert texts(found) == [b"a---", b"b---"]
    assert (found.prompt, found.whole) == (2, True)
    assert [outcome(answer) for answer in changed] == [[], []]
    assert kernel.ready == []


def test_a_dump_that_goes_on_after_the_change(kernel):
    """Who is told then may have come with the change."""
    said = ([told(1, b"a---")], [ended(2)], [told(1, b"b---"), told(1, b"c---")], [done(1)])
    found, _ = kernel.says(*said).exchange_all([DUMP, CHANGE])
    assert texts(found) == [b"a---", b"b---", b"c---"]
    assert found.prompt == 1


def test_a_dump_that_is_refused(kernel):
    said = ([ended(1, errno.EBUSY)], [ended(2)])
    found, changed = kernel.says(*said).exchange_all([DUMP, CHANGE])
    assert (outcome(found), outcome(changed)) == (errno.EBUSY, [])


def test_a_dump_that_fails_in_the_end(kernel):
    with pytest.raises(OSError, match="No such device") as failure:
        kernel.says([told(1)], [done(1, errno.ENODEV)]).exchange(DUMP)
    assert failure.value.errno == errno.ENODEV


@pytest.mark.parametrize("where", [0, 1])
def test_an_interrupted_dump(kernel, where):
    flags = [0, 0]
    flags[where] = rt.NLM_F_DUMP_INTR
    said = ([told(1, flags=flags[0])], [ended(2)], [done(1, flags=flags[1])])
    found, changed = kernel.says(*said).exchange_all([DUMP, CHANGE])
    assert (found.whole, changed.whole) == (False, True)


def test_a_dump_alone_is_repeated(kernel):
    """All of it: what was told of an interrupted one counts for nothing."""
    interrupted = [told(1), done(1, flags=rt.NLM_F_DUMP_INTR)]
    channel = kernel.says(interrupted, [told(2, b"new-")], [done(2)])
    assert [message[16:] for message in channel.dump_raw(DUMP.kind, DUMP.body)] == [b"new-"]
    assert [sequence for ((_, _, sequence),) in kernel.sent] == [1, 2]


def test_a_dump_that_never_is_whole(kernel):
    kernel.says(*([done(n + 1, flags=rt.NLM_F_DUMP_INTR)] for n in range(rtnetlink.DUMPS)))
    with pytest.raises(OSError, match="does not rest"):
        kernel.channel.dump_raw(DUMP.kind, DUMP.body)


def test_requests_that_were_given_up_leave_nothing_behind(kernel):
    """Whatever put an end to it."""
    kernel.recv = interrupted
    with pytest.raises(KeyboardInterrupt):
        kernel.says([told(1)], [done(1)]).exchange(DUMP)
    assert kernel.ready == []


def interrupted(_):
    raise KeyboardInterrupt


def test_answers_to_requests_that_were_given_up(kernel):
    """They come later, in whatever order, and are nobody's, if there is no other socket."""
    kernel.is_full = True
    with pytest.raises(TimeoutError, match="has not answered"):
        kernel.says([told(1, b"old-")]).exchange_all([DUMP, GET, CHANGE])
    late = ([told(2, b"old-")], [ended(3, errno.EPERM)], [told(1, b"old-")])
    new = ([told(4, b"new-")], [done(1)], [ended(6)], [told(1, b"old-"), done(4)])
    answers = kernel.says(*late, *new).exchange_all([DUMP, PUT, CHANGE])
    assert [outcome(answer) for answer in answers] == [[b"new-"], [], []]
    assert kernel.ready == []


def test_many_requests_are_several_datagrams(kernel):
    count = rtnetlink.BATCH + 1
    answers = kernel.says([ended(rtnetlink.BATCH)], [ended(count, errno.EPERM)])
    answers = answers.exchange_all([PUT] * count)
    assert [len(sent) for sent in kernel.sent] == [rtnetlink.BATCH, 1]
    assert [outcome(answer) for answer in answers] == [[]] * (count - 1) + [errno.EPERM]


def test_messages_are_padded(kernel):
    kernel.says([told(1)], [done(1)], [ended(2)]).exchange_all([DUMP, CHANGE])
    assert [(kind, sequence) for kind, _, sequence in kernel.sent[0]] == [
        (rt.RTM_GETADDR, 1),
        (rt.RTM_NEWLINK, 2),
    ]
