"""Stock's rules in FORWARD, in a real iptables of either kind, and what they let pass."""

from __future__ import annotations

import os
import re

import pytest
from fakes_kernel import FakeDeadline, FakeLocks
from harness.frames import UDP, ethernet, ipv4, ipv6, udp
from harness.lan import LINK, MAC, OTHER, OTHER6, OUTSIDE, OUTSIDE6, OWN, OWN6, Lan

from hotplug.kernel import iptables
from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.programs import HostPrograms

TIME = FakeDeadline(30.0)
HELLO = udp(1000, 2000)
KINDS = ("nft", "legacy")


class Programs:
    """iptables of one kind, run on the host of the test."""

    def __init__(self, namespace, kind):
        self.calls = []
        self._namespace = namespace
        self._kind = kind

    def run(self, argv, deadline, variables=None):
        name, action = argv[0].split("-")
        self.calls.append(argv[0])
        program = f"{name}-{self._kind}-{action}"
        command = ["nsenter", f"--net={self._namespace.path}", program, *argv[1:]]
        return HostPrograms().run(command, deadline, variables)


@pytest.fixture(scope="module")
def lan():
    made = Lan()
    made.bridge_netfilter(on=True)
    made.ipv6_is_free = False
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def host(request, lan):
    """The host's iptables, which drops what it need not forward, and a firewall over it."""
    made = Tables(lan, request.param)
    made.policy("DROP")
    yield made
    made.policy("ACCEPT")
    made.run("iptables", "-F", "FORWARD")
    made.run("ip6tables", "-F", "FORWARD")


class Tables:
    def __init__(self, lan, kind):
        self.lan = lan
        self.kind = kind
        self.programs = Programs(lan.host, kind)
        self.locks = FakeLocks()
        self.firewall = KernelFirewall(self.programs, self.locks)

    def run(self, tool, *argv):
        return self.lan.host.run(f"{tool}-{self.kind}", "-w", *argv)

    def policy(self, verdict):
        for tool in ("iptables", "ip6tables"):
            self.run(tool, "-P", "FORWARD", verdict)

    def rules(self, tool="iptables"):
        lines = self.run(tool, "-S", "FORWARD").splitlines()
        return [line for line in lines if line.startswith("-A")]

    def accept(self, *words, link=LINK):
        self.lan.host.call(self.firewall.accept, link, words, TIME)

    def hand_over(self):
        forward = iptables.Forward(self.programs, self.locks)
        for tool in iptables.TOOLS:
            self.lan.host.call(forward.hand_over, tool, TIME)

    def stock_sets(self, *match, link=LINK, tool="iptables"):
        """What frob_iptable does for each word."""
        port = ("-I", "FORWARD", "-m", "physdev", "--physdev-is-bridged")
        self.run(tool, *port, "--physdev-in", link, *match, "-j", "ACCEPT")
        self.run(tool, *port, "--physdev-out", link, "-j", "ACCEPT")

    def stock_deletes(self, *match, link=LINK):
        """What frob_iptable does for each word, which dies where the second rule is missing."""
        port = ("-D", "FORWARD", "-m", "physdev", "--physdev-is-bridged")
        self.run("iptables", *port, "--physdev-in", link, *match, "-j", "ACCEPT")
        self.run("iptables", *port, "--physdev-out", link, "-j", "ACCEPT")

    def unaccept(self, link=LINK):
        self.lan.host.call(self.firewall.unaccept, link, TIME)


def outside_gets(lan, source, payload=HELLO):
    """Whether a packet gets over the bridge, asked without a word that FORWARD could drop."""
    six = ":" in source
    packet = ipv6(source, OUTSIDE6, payload, UDP) if six else ipv4(source, OUTSIDE, payload)
    frame = ethernet(MAC, 0x86DD if six else 0x0800, packet)
    return "outside" in lan.reached_by(frame, packet[-len(payload) :])


def test_without_rules_nothing_passes(lan, host):
    assert not outside_gets(lan, OWN)


def test_without_words_all_ipv4_passes(lan, host):
    host.accept()
    assert outside_gets(lan, OWN)
    assert outside_gets(lan, OTHER)
    assert not outside_gets(lan, OWN6)
    assert len(host.rules()) == 2
    assert host.rules("ip6tables") == []


def test_with_words_these_pass_and_dhcp(lan, host):
    host.accept(OWN, "10.2.0.0/16")
    assert outside_gets(lan, OWN)
    assert outside_gets(lan, "10.2.3.4")
    assert not outside_gets(lan, OTHER)
    assert outside_gets(lan, "10.9.9.9", udp(68, 67))
    assert not outside_gets(lan, OWN6)


def test_ipv6_words(lan, host):
    host.accept(OWN, OWN6)
    assert outside_gets(lan, OWN)
    assert outside_gets(lan, OWN6)
    assert not outside_gets(lan, OTHER6)
    assert not outside_gets(lan, OTHER)


def test_the_rules_are_stocks(host):
    host.accept(OWN)
    text = "\n".join(host.rules())
    tag = f'-m comment --comment "xen-hotplug {LINK}" -j ACCEPT'
    port = f"-m physdev --physdev-in {LINK} --physdev-is-bridged"
    assert text.count(f"{port} {tag}") == 1
    assert re.search(f"-s {OWN}/32 .*{re.escape(port)} {re.escape(tag)}", text)
    assert re.search(f"-p udp {re.escape(port)} -m udp --sport 68 --dport 67", text)
    assert f"-A FORWARD -m physdev --physdev-out {LINK} --physdev-is-bridged {tag}" in text


def test_repeated_and_changed_words_leave_one_set_of_rules(host):
    host.accept(OWN, OTHER)
    first = host.rules()
    host.accept(OWN, OTHER)
    assert sorted(host.rules()) == sorted(first)
    host.accept(OWN)
    assert sorted(host.rules()) == sorted(line for line in first if OTHER not in line)


def test_all_go_and_those_of_others_stay(host):
    host.run("iptables", "-A", "FORWARD", "-s", OWN, "-j", "ACCEPT")
    host.run("iptables", "-A", "FORWARD", "-m", "comment", "--comment", f"like {LINK}")
    before = host.rules()
    host.accept(OWN, OWN6)
    host.accept(OWN, OWN, link="vif1.00")
    others = [line for line in host.rules() if "xen-hotplug vif1.00" in line] + before
    # As a run that did not look could have left it.
    for line in [line for line in host.rules() if f'"xen-hotplug {LINK}"' in line] * 2:
        host.lan.host.run(
            f"iptables-{host.kind}-restore", "--noflush", text=f"*filter\n{line}\nCOMMIT\n"
        )
    host.unaccept()
    assert sorted(host.rules()) == sorted(others)
    assert host.rules("ip6tables") == []
    host.unaccept("vif1.00")
    assert host.rules() == before


def test_handed_over_guests_are_heard_on_and_stock_deletes_all(lan, host):
    host.run("iptables", "-A", "FORWARD", "-s", OTHER, "-j", "DROP")
    before = host.rules()
    host.accept(OWN, OTHER)
    host.accept(link="vif2.0")
    host.run("iptables", "-I", "FORWARD", "3", "-d", "10.7.7.7", "-j", "DROP")
    order = [port(line) for line in host.rules()]
    host.hand_over()
    assert not [line for line in host.rules() if "comment" in line]
    after = [port(line) for line in host.rules()]
    assert list(dict.fromkeys(after)) == list(dict.fromkeys(order))
    assert after.count(f"--physdev-out {LINK}") == 3
    assert outside_gets(lan, OWN)
    assert outside_gets(lan, OTHER)
    assert not outside_gets(lan, "10.9.9.9")
    host.hand_over()
    assert [port(line) for line in host.rules()] == after
    host.stock_deletes(link="vif2.0")
    for word in (OWN, OTHER):
        host.stock_deletes("-s", word)
    host.stock_deletes("-p", "udp", "--sport", "68", "--dport", "67")
    host.run("iptables", "-D", "FORWARD", "-d", "10.7.7.7", "-j", "DROP")
    assert host.rules() == before


def port(line):
    """What of a rule tells whose it is."""
    found = re.search(r"--physdev-(in|out) \S+|-[sd] \S+ -j", line)
    return found[0] if found else line


def test_handed_over_rules_of_cards_that_have_gone_go(host):
    host.accept(OWN, OWN6)
    kept = host.rules("ip6tables")
    host.accept(OWN, OWN6, link="vif9.0")
    host.hand_over()
    assert {port(line) for line in host.rules()} == {
        *(f"--physdev-in {LINK}", f"--physdev-out {LINK}")
    }
    assert host.rules("ip6tables") == kept


FORMS = [(), ("-s", OWN), ("-s", "10.2.0.0/16"), ("-p", "udp", "--sport", "68", "--dport", "67")]


def test_rules_that_stock_set_go_and_those_like_them_stay(host):
    host.stock_sets(link="vif1.00")
    host.stock_sets(tool="ip6tables")  # which stock never does
    port = ("-A", "FORWARD", "-m", "physdev", "--physdev-is-bridged")
    for more in (
        ("--physdev-in", LINK, "-s", OWN, "-d", OUTSIDE, "-j", "ACCEPT"),
        ("--physdev-in", LINK, "-j", "DROP"),
        ("--physdev-in", LINK, "--physdev-out", "eth0", "-j", "ACCEPT"),
        ("--physdev-in", LINK, "-p", "udp", "--dport", "67", "-j", "ACCEPT"),
        ("--physdev-in", LINK, "!", "-s", OWN, "-j", "ACCEPT"),
        ("--physdev-in", LINK, "-m", "comment", "--comment", "mine", "-j", "ACCEPT"),
        ("--physdev-in", "vif1+", "-j", "ACCEPT"),
        ("--physdev-in", "vif110", "-j", "ACCEPT"),  # a dot is no pattern
    ):
        host.run("iptables", *port, *more)
    before, before6 = host.rules(), host.rules("ip6tables")
    for form in FORMS:
        host.stock_sets(*form)
    host.unaccept()
    assert host.rules() == before
    assert host.rules("ip6tables") == before6


def test_where_there_are_ours_those_like_stocks_are_the_administrators(host):
    host.stock_sets()
    before = host.rules()
    host.accept(OWN)
    host.unaccept()
    assert host.rules() == before


def test_handed_over_rules_go_if_ours_takes_over_again(host):
    host.accept(OWN)
    host.hand_over()
    assert host.rules() != []
    host.unaccept()
    assert host.rules() == []


def test_two_processes_for_a_family(host):
    host.accept(OWN)
    assert host.programs.calls == ["iptables-save", "iptables-restore", "ip6tables-save"]


def test_nothing_is_run_where_bridge_netfilter_is_off(lan, host):
    lan.bridge_netfilter(on=False)
    try:
        host.accept(OWN, OWN6)
    finally:
        lan.bridge_netfilter(on=True)
    assert host.programs.calls == []
    assert host.locks.calls == []


def test_rules_go_where_bridge_netfilter_was_switched_off_meanwhile(lan, host):
    host.accept(OWN)
    lan.bridge_netfilter(on=False)
    try:
        host.unaccept()
    finally:
        lan.bridge_netfilter(on=True)
    assert host.rules() == []


def test_refused_rules_say_why(host):
    with pytest.raises(OSError, match="iptables refuses the rules of its bridge port: ") as failure:
        host.accept("300.0.0.1")
    assert failure.value.filename == LINK
    assert host.rules() == []


def test_the_lock_is_stocks(host):
    host.accept(OWN)
    assert {call[:2] for call in host.locks.calls} == {("hold", "iptables")}


def test_nothing_is_left_open(host):
    before = os.listdir("/proc/self/fd")
    host.accept(OWN)
    assert os.listdir("/proc/self/fd") == before


class Instead:
    """Whatever is to be run, this is."""

    def __init__(self, program):
        self._program = program

    def run(self, _argv, deadline, variables=None):
        return HostPrograms().run([self._program], deadline, variables)


@pytest.mark.parametrize("program", ["false", "/nowhere/iptables-save"])
def test_iptables_that_does_not_work(lan, program):
    forward = iptables.Forward(Instead(program), FakeLocks())
    lan.host.call(forward.accept, LINK, [OWN], TIME)
    lan.host.call(forward.unaccept, LINK, TIME)
