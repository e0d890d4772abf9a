"""What an uninstall makes of the packet filters of cards, in those of a real kernel."""

from __future__ import annotations

import contextlib
import errno
import json
import socket

import pytest
from fakes_kernel import FakeDeadline, FakeLocks
from harness.namespace import Namespace

from hotplug import cardfilters
from hotplug.errors import HotplugError
from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.programs import SBIN, HostPrograms
from hotplug.network import Allowance

MAC = "00:16:3e:01:02:03"
TIME = FakeDeadline(30.0)
TABLES = (
    "nftables' bridge xen_hotplug and inet xen_hotplug: {} deleted;"
    " the stock scripts hold no card to its addresses"
)
RULES = "iptables' rules of cards: {} the stock scripts'"
OF_OTHERS = """
add table inet xen_hotplug_too
add table ip xen
add chain ip xen from_links
add rule ip xen from_links drop
"""


class Host:
    """A network namespace with a card, and what our firewall has set there."""

    def __init__(self, namespace, rundir):
        self.namespace = namespace
        self.rundir = str(rundir)
        self.firewall = KernelFirewall(HostPrograms(), FakeLocks())
        namespace.ip("link add web type bridge")

    def guard(self, link, allowance):
        self.namespace.call(self.firewall.guard, link, allowance)

    def accept(self, link, *words):
        self.namespace.call(self.firewall.accept, link, words, TIME)

    def undo(self, *, dry_run=False):
        """The lines of an uninstall that are about cards."""
        return self.namespace.call(self._undo, dry_run=dry_run)

    def _undo(self, *, dry_run):
        changes, remarks = cardfilters.leavings(self.rundir, dry_run=dry_run)
        for change in changes if not dry_run else ():
            change.make()
        return [*(change.line(dry_run=dry_run) for change in changes), *remarks]

    def nft(self):
        found = json.loads(self.namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
        return {(i["table"]["family"], i["table"]["name"]) for i in found if "table" in i}

    def rules(self, tool="iptables"):
        lines = self.namespace.run(tool, "-S", "FORWARD").splitlines()
        return [line for line in lines if line.startswith("-A")]


@pytest.fixture
def host(tmp_path):
    with Namespace() as namespace:
        made = Host(namespace, tmp_path / "run")
        with contextlib.closing(made.firewall):
            yield made


def test_where_nothing_is_nothing_is_done(host):
    assert host.undo() == []
    assert host.nft() == set()


def test_our_tables_go_whole_and_those_of_others_stay(host):
    host.namespace.run("nft", "-f", "-", text=OF_OTHERS)
    before = host.nft()
    host.guard("web", Allowance(MAC, ("10.0.0.2", "2001:db8::2")))
    host.guard("vif1.0", Allowance(MAC, ("10.0.0.2",), routed=True))
    assert host.undo(dry_run=True) == [TABLES.format("would be")]
    assert host.namespace.call(host.firewall.guarded) == ["vif1.0", "web"]
    assert host.undo() == [TABLES.format("now")]
    assert host.nft() == before
    assert host.undo() == []


def test_a_table_that_is_half_there(host):
    host.guard("web", Allowance(MAC))
    host.namespace.run("nft", "delete", "table", "bridge", "xen_hotplug")
    assert [line.partition(":")[0] for line in host.undo()] == ["nftables' inet xen_hotplug"]
    assert host.nft() == set()


def test_rules_become_stocks_but_those_of_ipv6(host):
    host.accept("web", "10.0.0.2", "2001:db8::2")
    v4, v6 = host.rules(), host.rules("ip6tables")
    assert len(v6) == 3
    stays = (
        "ip6tables' rules of web stay, as the stock scripts have none of IPv6; uninstall again once"
        " these cards have gone, to delete them"
    )
    assert host.undo(dry_run=True) == [RULES.format("would be"), stays]
    assert host.rules() == v4
    assert host.undo() == [RULES.format("now"), stays]
    assert not [line for line in host.rules() if "comment" in line]
    assert host.rules("ip6tables") == v6
    assert host.undo() == [stays]
    host.namespace.ip("link delete web")
    assert host.undo() == ["ip6tables' rules of cards that have gone: now deleted"]
    assert host.rules("ip6tables") == []
    assert host.undo() == []


def test_while_an_agent_runs_all_stays(host, monkeypatch):
    host.guard("web", Allowance(MAC))
    monkeypatch.setattr(cardfilters.ask, "status", lambda rundir: {"rundir": rundir})
    assert host.undo() == [cardfilters.STILL_SERVED]
    assert host.nft() != set()
    assert host.undo(dry_run=True) == [TABLES.format("would be")]  # it would have ended by then


def test_neither_nf_tables_nor_iptables(host, monkeypatch):
    host.guard("web", Allowance(MAC))
    host.accept("web")

    def refuse(*_):
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr("hotplug.kernel.programs.SBIN", ())
    monkeypatch.setenv("PATH", "/nowhere")
    assert host.undo() == []


def test_iptables_that_refuses(host, monkeypatch, tmp_path):
    host.accept("web")
    before = host.rules()
    program = tmp_path / "iptables-restore"
    program.write_text("#!/bin/sh\necho locked >&2\nexit 4\n")
    program.chmod(0o755)
    monkeypatch.setattr("hotplug.kernel.programs.SBIN", (str(tmp_path), *SBIN))
    with pytest.raises(HotplugError, match="the stock scripts are back, but iptables' rules of"):
        host.undo()
    assert host.rules() == before


def test_only_root_can_see(host, monkeypatch):
    def refuse(_guards):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cardfilters.Guards, "tables", refuse)
    assert host.undo(dry_run=True) == [cardfilters.UNSEEN]
