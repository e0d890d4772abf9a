"""What others do to our tables is noticed, and what we do ourselves is not."""

from __future__ import annotations

import contextlib

import pytest
from harness.namespace import Namespace

from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.guards import TABLE
from hotplug.kernel.nft_monitor import Monitor
from hotplug.network import Allowance

LINK = "vif1.0"
MAC = "00:16:3e:01:02:03"
BRIDGED = Allowance(MAC, ("10.0.0.2", "2001:db8::2"))
ROUTED = Allowance(MAC, ("10.0.0.2",), routed=True)
CHAIN = f"bridge xen_hotplug link-{LINK}"
DELETIONS = [
    "flush ruleset",
    "delete table bridge xen_hotplug",
    "delete table inet xen_hotplug",
    "flush chain bridge xen_hotplug from_links",
    "flush chain inet xen_hotplug from_links",
    f"flush chain {CHAIN}",
    f"add rule {CHAIN} accept",
    f"insert rule {CHAIN} accept",
    f'delete element inet xen_hotplug links {{ "{LINK}" }}',
    f'delete element bridge xen_hotplug links {{ "{LINK}" }}',
    f'delete element bridge xen_hotplug guarded {{ "{LINK}" }}',
    f'delete element inet xen_hotplug guarded {{ "{LINK}" }}',
]


@pytest.fixture
def host():
    with Namespace() as made:
        yield made


@pytest.fixture
def firewall(host):
    with contextlib.closing(KernelFirewall(None, None)) as made:
        made_there = host.call(made.guarded)
        assert made_there == []
        yield made


@pytest.fixture
def others_came(host, firewall):
    """Whether others were there since the last call."""
    monitor = host.call(Monitor, TABLE)
    with contextlib.closing(monitor):
        yield lambda: monitor.others_came(firewall.port)


def test_what_we_do_is_no_news(host, firewall, others_came):
    for allowance in (BRIDGED, ROUTED, BRIDGED):
        host.call(firewall.guard, LINK, allowance)
        assert not others_came()
    host.call(firewall.unguard, LINK)
    assert not others_came()


def test_nor_is_what_others_do_to_other_tables(host, firewall, others_came):
    host.call(firewall.guard, LINK, BRIDGED)
    host.run("nft", "add table bridge xen_hotplug2; add table inet filter")
    host.run("nft", "add chain inet filter xen_hotplug; add set inet filter s { type mark; }")
    host.run("nft", "delete table inet filter")
    assert not others_came()


@pytest.mark.parametrize("command", DELETIONS)
def test_what_others_do_to_ours_is(host, firewall, others_came, command):
    host.call(firewall.guard, LINK, BRIDGED)
    assert host.call(firewall.keeps, LINK, BRIDGED)
    host.run("nft", command)
    assert others_came()
    assert not others_came()  # told once
    assert not host.call(firewall.keeps, LINK, BRIDGED)
    host.call(firewall.guard, LINK, BRIDGED)
    assert host.call(firewall.keeps, LINK, BRIDGED)
    assert not others_came()


def test_another_process_of_ours_is_another(host, firewall, others_came):
    with contextlib.closing(KernelFirewall(None, None)) as other:
        host.call(other.guard, "vif2.0", BRIDGED)
        assert others_came()


def test_news_that_were_too_many_are_news(host, others_came):
    for _ in range(20):
        text = "".join(f"add chain inet filter c{number}\n" for number in range(300))
        host.run("nft", "-f", "-", text=f"add table inet filter\n{text}")
        host.run("nft", "delete table inet filter")
    assert others_came()
    assert not others_came()


@pytest.mark.parametrize("allowance", [BRIDGED, ROUTED, Allowance(MAC)])
def test_a_guard_is_kept_while_others_come_and_go(host, firewall, allowance):
    assert not host.call(firewall.keeps, LINK, allowance)
    host.call(firewall.guard, LINK, allowance)
    for link in ("vif2.0", "vif3.0"):
        host.call(firewall.guard, link, BRIDGED)
        assert host.call(firewall.keeps, LINK, allowance)
    for link in ("vif2.0", "vif3.0"):
        host.call(firewall.unguard, link)
        assert host.call(firewall.keeps, LINK, allowance)
    host.call(firewall.unguard, LINK)
    assert not host.call(firewall.keeps, LINK, allowance)
