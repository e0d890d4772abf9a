"""From a card's keys to the packet filter."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from fakes_kernel import FakeDeadline
from fakes_network import FakeFirewall

from hotplug.errors import HotplugError
from hotplug.handlers import filters
from hotplug.network import Allowance

CARD = SimpleNamespace(name="vif1.0", original="vif1.0")
MAC = "00:16:3e:01:02:03"


@pytest.fixture
def host():
    return SimpleNamespace(deadline=FakeDeadline(30.0), firewall=FakeFirewall())


@pytest.mark.parametrize("allowed", [None, Allowance(MAC, ("10.0.0.2", "10.0.0.0/8"))])
def test_what_a_guest_has_alone_is_forgotten(host, allowed):
    """Whether it is held to that or not."""
    filters.guard(host, CARD, allowed, ["10.0.0.2", "2001:db8::2"])
    assert host.firewall.forgotten == ["10.0.0.2", "2001:db8::2"]
    assert host.firewall.guards == ({"vif1.0": allowed} if allowed else {})


@pytest.mark.parametrize(
    "allowed",
    [
        None,
        Allowance(MAC),
        Allowance(MAC, ("10.0.0.2", "10.1.0.0/16", "2001:db8::2")),
        Allowance(MAC, ("10.0.0.2",), routed=True),
        Allowance(MAC, routed=True),
    ],
)
def test_what_the_journal_has_of_it(allowed):
    assert filters.held_to(filters.facts(allowed)[filters.HELD_TO]) == allowed


def test_no_guard_is_a_failure_that_names_the_link(host):
    host.firewall.fail("guard", OSError(errno.EOPNOTSUPP, "the kernel has no packet filter"))
    with pytest.raises(HotplugError, match=r"vif1\.0: the kernel has no packet filter"):
        filters.guard(host, CARD, Allowance(MAC), [])
