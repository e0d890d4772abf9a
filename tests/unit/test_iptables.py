"""The stock scripts' rules as text, and where they have an effect."""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest
from fakes_kernel import FakeDeadline, FakeLocks

from hotplug.kernel import iptables
from hotplug.kernel.iptables import TOOLS, Forward, handed_over, is_on, is_ours, rules
from hotplug.network import Link
from hotplug.ports import Finished

V4, V6 = TOOLS
TAG = '-m comment --comment "xen-hotplug vif1.0" -j ACCEPT'
PORT = "-I FORWARD -m physdev --physdev-is-bridged"


def test_rules_without_words():
    assert list(rules(V4, "vif1.0", [], limited=False)) == [
        f"{PORT} --physdev-in vif1.0  {TAG}",
        f"{PORT} --physdev-out vif1.0 {TAG}",
    ]


def test_rules_with_words():
    assert list(rules(V4, "vif1.0", ["10.0.0.2", "10.0.0.2"], limited=True)) == [
        f"{PORT} --physdev-in vif1.0 -s 10.0.0.2 {TAG}",
        f"{PORT} --physdev-in vif1.0 -p udp -m udp --sport 68 --dport 67 {TAG}",
        f"{PORT} --physdev-out vif1.0 {TAG}",
    ]


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        (f"-A FORWARD -m physdev --physdev-in vif1.0 --physdev-is-bridged {TAG}", True),
        ('-A FORWARD -j ACCEPT -m comment --comment "xen-hotplug vif1.0"', True),
        ('-A FORWARD -m comment --comment "xen-hotplug vif1.00" -j ACCEPT', False),
        ('-A FORWARD -m comment --comment "a --comment \\"xen-hotplug vif1.0\\"" -j DROP', False),
        ("-A FORWARD -m comment --comment vif1.0 -j DROP", False),
        (f"-A INPUT -m physdev --physdev-in vif1.0 {TAG}", False),
        (":FORWARD ACCEPT [0:0]", False),
        ("", False),
    ],
)
def test_whose_a_rule_is(line, ours):
    assert is_ours(line, "vif1.0") == ours


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Sets the files that say whether bridge netfilter is on."""
    monkeypatch.setattr(iptables, "BRIDGE_NETFILTER", str(tmp_path / "bridge"))
    monkeypatch.setattr(iptables, "BRIDGE_OF", f"{tmp_path}/{{}}")

    def put(path, value):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n")

    return put


def test_without_the_module_it_is_off(kernel):
    assert not is_on(V4, "vif1.0")
    kernel("vif1.0/nf_call_iptables", 1)  # of a bridge; without the module nobody reads it
    assert not is_on(V4, "vif1.0")


def test_it_is_on_for_all_bridges_or_for_one(kernel):
    kernel("bridge/bridge-nf-call-iptables", 0)
    kernel("bridge/bridge-nf-call-ip6tables", 1)
    assert not is_on(V4, "vif1.0")
    assert is_on(V6, "vif1.0")
    kernel("vif1.0/nf_call_iptables", 0)
    assert not is_on(V4, "vif1.0")
    kernel("vif1.0/nf_call_iptables", 1)
    assert is_on(V4, "vif1.0")
    assert not is_on(V4, "vif2.0")


def test_a_card_asks_once_for_both_families(kernel):
    """Of its bridge's own settings, the kernel told with the bridge."""
    forward = Forward(None, None)
    quiet = Link(3, "xenbr0", "bridge", "02:00:00:00:00:01", 1500, True, 0)
    calling = dataclasses.replace(quiet, calls_iptables=True)
    assert not forward.sees(calling)  # there is no bridge netfilter that would heed them
    kernel("bridge/bridge-nf-call-iptables", 0)
    kernel("bridge/bridge-nf-call-ip6tables", 0)
    assert not forward.sees(quiet)
    assert forward.sees(calling)
    kernel("bridge/bridge-nf-call-ip6tables", 1)
    assert forward.sees(quiet)


def test_a_setting_that_goes_while_it_is_read(kernel, monkeypatch):
    """With its bridge, or with the module."""

    def gone(*_):
        raise OSError(errno.ENODEV, "No such device")

    kernel("bridge/bridge-nf-call-iptables", 1)
    assert is_on(V4, "vif1.0")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "read", gone)
        assert not is_on(V4, "vif1.0")
    assert len(os.listdir("/proc/self/fd")) == before


class Programs:
    def __init__(self, status):
        self.status = status
        self.calls = []

    def run(self, argv, _deadline):
        self.calls.append(argv[0])
        return Finished(self.status, b"", b"it is said why")


def test_ip6tables_that_does_not_work_breaks_no_ipv4(kernel):
    kernel("bridge/bridge-nf-call-iptables", 1)
    kernel("bridge/bridge-nf-call-ip6tables", 1)

    class OnlyV4(Programs):
        def run(self, argv, deadline):
            finished = super().run(argv, deadline)
            return Finished(3, b"", b"") if argv[0].startswith("ip6") else finished

    programs = OnlyV4(0)
    words = ["10.0.0.2", "2001:db8::2"]
    iptables.Forward(programs, FakeLocks()).accept("vif1.0", words, FakeDeadline())
    assert programs.calls == ["iptables-save", "iptables-restore", "ip6tables-save"]


@pytest.mark.parametrize("name", ["vif+", "-j", "!vif", 'a"b', "a\\", "é"])
def test_names_that_iptables_would_take_for_more(kernel, name):
    kernel("bridge/bridge-nf-call-iptables", 1)
    programs = Programs(0)
    forward = iptables.Forward(programs, FakeLocks())
    with pytest.raises(OSError, match="iptables cannot be told a link of this name"):
        forward.accept(name, [], FakeDeadline())
    assert programs.calls == []


IN, OUT = (
    f"-A FORWARD -m physdev --physdev-{way} {{}} --physdev-is-bridged" for way in ("in", "out")
)
COMMENT = '-m comment --comment "xen-hotplug {}" -j ACCEPT'


def saved(link):
    """Rules of two words, as iptables-save writes them."""
    tag, port = COMMENT.format(link), IN.format(link)
    return [
        f"{OUT.format(link)} {tag}",
        f"{port} -m udp --sport 68 --dport 67 {tag}".replace("FORWARD", "FORWARD -p udp"),
        f"{port} {tag}".replace("FORWARD", "FORWARD -s 10.0.0.2/32"),
    ]


OTHERS = [
    "-A FORWARD -i eth0 -j DROP",
    '-A FORWARD -m comment --comment "a -m comment --comment \\"xen-hotplug web\\"" -j DROP',
]


def test_rules_become_stocks_where_they_stand():
    lines = [":FORWARD DROP [0:0]", OTHERS[0], *saved("web"), "-A INPUT -j DROP", OTHERS[1]]
    handover = handed_over(V4, lines, lambda _: True)
    out, dhcp, word = saved("web")
    tag = f" {COMMENT.format('web')}"
    bare = [
        line.replace(tag, " -j ACCEPT").removeprefix("-A FORWARD ") for line in (out, dhcp, word)
    ]
    assert list(handover.changes) == [
        out.replace("-A", "-D", 1),
        f"-I FORWARD 2 {bare[0]}",
        f"-I FORWARD 2 {bare[0]}",  # one for each of the two that let in
        dhcp.replace("-A", "-D", 1),
        f"-I FORWARD 4 {bare[1]}",
        word.replace("-A", "-D", 1),
        f"-I FORWARD 5 {bare[2]}",
    ]
    assert handover.kept == ()


def test_rules_of_cards_that_have_gone_go():
    lines = [*saved("gone"), OTHERS[0], *saved("web")[:1]]
    handover = handed_over(V4, lines, {"web"}.__contains__)
    assert [line.replace("-D", "-A", 1) for line in handover.changes[:3]] == saved("gone")
    rule = f"{OUT.format('web')} -j ACCEPT".removeprefix("-A FORWARD ")
    assert handover.changes[4] == f"-I FORWARD 2 {rule}"


def test_stock_has_no_rules_of_ipv6():
    handover = handed_over(V6, [*saved("gone"), *saved("web")], {"web"}.__contains__)
    assert [line.replace("-D", "-A", 1) for line in handover.changes] == saved("gone")
    assert handover.kept == ("web",)


def test_rules_of_others_are_no_handover():
    handover = handed_over(V4, OTHERS, lambda _: True)
    assert (handover.changes, handover.kept) == ((), ())
