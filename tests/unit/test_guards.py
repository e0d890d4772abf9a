"""What nf_tables is told and asked, by a kernel that refuses in ways that none of ours does."""

from __future__ import annotations

import errno

import pytest

from hotplug.kernel import antispoof, nfnetlink, nft
from hotplug.kernel import nft_abi as abi
from hotplug.kernel.genetlink import attribute
from hotplug.kernel.guards import ATTEMPTS, Guards
from hotplug.kernel.nfnetlink import Answer, Message, batch
from hotplug.network import Allowance

MAC = "00:16:3e:01:02:03"
LIMITED = Allowance(MAC, ("10.0.0.2",))
ROUTED = Allowance(MAC, ("10.0.0.2",), routed=True)


class Kernel:
    """Has nothing, of some families not even the means; ``refusals`` are of the next commits."""

    def __init__(self, lacking=(), refusals=()):
        self.lacking = lacking
        self.refusals = list(refusals)
        self.commits = []
        self.questions = []

    def look(self, messages):
        self.questions.append(messages)
        return [None] * len(messages)

    def dump(self, _message):
        raise OSError(errno.ENOENT, "No such file or directory")

    def commit(self, messages):
        self.commits.append(messages)
        lacking = {i: errno.EOPNOTSUPP for i, m in enumerate(messages) if m.family in self.lacking}
        if self.refusals and not lacking:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, OSError):
                raise refusal
            return refusal
        return lacking

    @property
    def families(self):
        return [sorted({message.family for message in messages}) for messages in self.commits]


def test_a_kernel_without_ipv6_has_ip():
    for allowance, families in ((LIMITED, [[1, 7], [2, 7]]), (ROUTED, [[1], [2]])):
        kernel = Kernel(lacking=[abi.NFPROTO_INET])
        Guards(kernel).guard("vif1.0", allowance)
        assert kernel.families == families


@pytest.mark.parametrize(
    ("lacking", "allowance", "words"),
    [
        ([abi.NFPROTO_BRIDGE], LIMITED, "nf_tables with its family bridge"),
        ([abi.NFPROTO_INET, abi.NFPROTO_IPV4], LIMITED, "nf_tables"),
        ([abi.NFPROTO_INET, abi.NFPROTO_IPV4], ROUTED, "nf_tables"),
    ],
)
def test_a_kernel_without_the_means_guards_nothing(lacking, allowance, words):
    with pytest.raises(OSError) as failure:
        Guards(Kernel(lacking)).guard("vif1.0", allowance)
    assert failure.value.errno == errno.EOPNOTSUPP
    assert failure.value.filename == "vif1.0"
    assert f"the kernel has no packet filter ({words})" in failure.value.strerror
    assert "antispoof" in failure.value.strerror


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPROTONOSUPPORT])
def test_a_kernel_without_nf_tables(code):
    for allowance in (LIMITED, ROUTED):
        kernel = Kernel(refusals=[OSError(code, "not supported")] * 2)
        with pytest.raises(OSError, match="the kernel has no packet filter"):
            Guards(kernel).guard("vif1.0", allowance)


class Nothing:
    """A kernel that has not even the socket, or forbids to use it."""

    def __init__(self, code):
        self.code = code

    def refuse(self, _messages):
        raise OSError(self.code, "refused")

    look = commit = dump = refuse


def test_a_kernel_without_netfilter():
    guards = Guards(Nothing(errno.EPROTONOSUPPORT))
    with pytest.raises(OSError, match="the kernel has no packet filter"):
        guards.guard("vif1.0", LIMITED)
    guards.unguard("vif1.0")
    assert guards.guarded() == []
    assert guards.tables() == []
    guards.clear()


def test_who_may_not_ask_is_told():
    guards = Guards(Nothing(errno.EPERM))
    for call in (lambda: guards.guard("vif1.0", LIMITED), lambda: guards.unguard("vif1.0")):
        with pytest.raises(PermissionError) as failure:
            call()
        assert failure.value.filename == "vif1.0"
    with pytest.raises(PermissionError):
        guards.guarded()


def test_a_routed_vif_needs_no_bridge():
    kernel = Kernel(lacking=[abi.NFPROTO_BRIDGE])
    Guards(kernel).guard("vif1.0", ROUTED)
    assert kernel.families == [[abi.NFPROTO_INET]]


@pytest.mark.parametrize(
    "refusal",
    [
        {3: errno.EEXIST},
        {0: errno.EBUSY, 7: errno.ENOENT},
        OSError(errno.EAGAIN, "Try again"),
        OSError(errno.ERESTART, "Restart"),
    ],
)
def test_when_others_are_faster_we_look_again(refusal):
    kernel = Kernel(refusals=[refusal, refusal])
    Guards(kernel).guard("vif1.0", LIMITED)
    assert len(kernel.commits) == 3
    assert [len(questions) for questions in kernel.questions] == [2 * 4] * 3


def test_but_not_for_ever():
    kernel = Kernel(refusals=[{0: errno.EBUSY}] * (ATTEMPTS + 1))
    with pytest.raises(OSError, match="others were faster") as failure:
        Guards(kernel).guard("vif1.0", LIMITED)
    assert (failure.value.errno, failure.value.filename) == (errno.EBUSY, "vif1.0")
    assert len(kernel.commits) == ATTEMPTS


@pytest.mark.parametrize(
    "refusal", [{2: errno.EPERM}, OSError(errno.EPERM, "Operation not permitted")]
)
def test_other_refusals_are_told(refusal):
    with pytest.raises(OSError, match="refuses to filter it otherwise") as failure:
        Guards(Kernel(refusals=[refusal])).guard("vif1.0", LIMITED)
    assert (failure.value.errno, failure.value.filename) == (errno.EPERM, "vif1.0")


def test_what_is_not_there_is_not_removed():
    kernel = Kernel()
    Guards(kernel).unguard("vif1.0")
    assert kernel.commits == []
    assert Guards(kernel).guarded() == []


class Tables(Kernel):
    """Has our tables of some families, until it is told otherwise."""

    def __init__(self, families, **options):
        super().__init__(**options)
        self.there = set(families)

    def look(self, messages):
        return [b"" if message.family in self.there else None for message in messages]

    def commit(self, messages):
        refused = super().commit(messages)
        if not refused:
            self.there -= {message.family for message in messages}
        return refused


def test_all_tables_go_at_once():
    kernel = Tables([abi.NFPROTO_BRIDGE, abi.NFPROTO_INET], refusals=[{0: errno.EAGAIN}])
    guards = Guards(kernel)
    assert guards.tables() == ["bridge", "inet"]
    guards.clear()
    assert kernel.families == [[abi.NFPROTO_INET, abi.NFPROTO_BRIDGE]] * 2
    assert {message.kind for message in kernel.commits[-1]} == {abi.NFT_MSG_DELTABLE}
    assert guards.tables() == []
    guards.clear()
    assert len(kernel.commits) == 2


def test_tables_that_stay_are_told():
    with pytest.raises(OSError, match="others were faster"):
        Guards(Tables([abi.NFPROTO_IPV4], refusals=[{0: errno.EBUSY}] * ATTEMPTS)).clear()
    with pytest.raises(PermissionError):
        Guards(Tables([abi.NFPROTO_IPV4], refusals=[{0: errno.EPERM}])).clear()


def test_a_batch():
    message = Message(abi.NFNL_SUBSYS_NFTABLES, abi.NFT_MSG_DELTABLE, abi.NFPROTO_BRIDGE, b"")
    assert batch([message, message], 5) == bytes.fromhex(
        "14000000 1000 0100 05000000 00000000  00 00 000a"  # BATCH_BEGIN, REQUEST, nf_tables
        "14000000 020a 0100 06000000 00000000  07 00 0000"
        "14000000 020a 0500 07000000 00000000  07 00 0000"  # with ACK
        "14000000 1100 0100 08000000 00000000  00 00 000a"  # BATCH_END
    )


def test_an_expression():
    assert nft.meta(abi.NFT_META_IIFNAME) == bytes.fromhex(
        "24000180"  # NFTA_LIST_ELEM, nested
        "09000100 6d657461 00 000000"  # NFTA_EXPR_NAME: meta
        "14000280 08000200 00000006 08000100 00000001"  # NFTA_EXPR_DATA: key, register
    )


def test_a_range_says_where_it_ends_unless_nothing_follows():
    assert len(nft.bounds(b"\x0a\0\0\0", b"\x0a\0\0\xff")) == 2
    assert b"\x0a\0\1\0" in nft.bounds(b"\x0a\0\0\0", b"\x0a\0\0\xff")[1]
    assert len(nft.bounds(b"\xff\xff\xff\0", b"\xff\xff\xff\xff")) == 1
    assert len(nft.bounds(bytes(16), b"\xff" * 16)) == 1


def test_ranges_neither_touch_nor_overlap():
    words = ["10.0.0.3", "10.0.0.0/31", "10.0.0.2", "10.0.0.0/30", "10.0.0.5", "2001:db8::/64"]
    v4, v6 = antispoof.ranges_of(words, bytes.fromhex("00163e010203"))
    assert v4 == [(b"\x0a\0\0\0", b"\x0a\0\0\3"), (b"\x0a\0\0\5", b"\x0a\0\0\5")]
    assert [first.hex() for first, _ in v6] == [
        "20010db8000000000000000000000000",
        "fe8000000000000002163efffe010203",
    ]


def test_answers_are_taken_apart():
    first, second = attribute(1, b"abc"), attribute(1, b"de")
    assert list(nfnetlink.each(first + second)) == [b"abc", b"de"]
    assert list(nfnetlink.each(first + b"\x02\0\1\0")) == [b"abc"]
    message = nfnetlink.packed(Message(10, 1, 7, first), 9)
    answer = Answer(0x0A01, 1, 9, message[16:])
    assert list(nfnetlink.answers_in(message * 2 + b"\x04")) == [answer] * 2
