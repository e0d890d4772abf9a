"""What every Firewall does: the kernel's and the fake."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools

import pytest
from fakes_kernel import FakeDeadline, FakeLocks
from fakes_network import FakeFirewall
from harness.namespace import Namespace

from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.programs import HostPrograms
from hotplug.network import Allowance, Link

TIME = FakeDeadline(30.0)
MAC = "00:16:3e:01:02:03"
ALLOWANCE = Allowance(MAC, ("10.0.0.2", "10.1.0.0/16", "2001:db8::2"))
BRIDGE = Link(3, "xenbr0", "bridge", "02:00:00:00:00:01", 1500, True, 0)
METHODS = (
    *("guard", "keeps", "unguard", "guarded", "forwards", "accept", "unaccept"),
    "forget_connections",
)


class Inside:
    """A firewall, called in a network namespace."""

    def __init__(self, namespace, firewall):
        self._namespace = namespace
        self._firewall = firewall

    def see_all_bridges(self, *, sees):
        for switch in ("iptables", "ip6tables"):
            self._namespace.set(f"bridge/bridge-nf-call-{switch}", "1" if sees else "0")

    def __getattr__(self, name):
        assert name in METHODS
        return functools.partial(self._namespace.call, getattr(self._firewall, name))


@pytest.fixture(params=["kernel", "fake"])
def firewall(request):
    if request.param == "fake":
        yield FakeFirewall()
        return
    made = KernelFirewall(HostPrograms(), FakeLocks())
    with Namespace() as namespace, contextlib.closing(made):
        yield Inside(namespace, made)


def test_nothing_is_guarded_at_first(firewall):
    assert firewall.guarded() == []


@pytest.mark.parametrize(
    "allowance",
    [
        ALLOWANCE,
        Allowance(MAC),
        Allowance(MAC, ("10.0.0.2",)),
        Allowance(MAC, ("2001:db8::/64",)),
        Allowance(MAC, ("0.0.0.0/0", "::/0")),
        Allowance(MAC, ("10.0.0.2", "2001:db8::2"), routed=True),
        Allowance(MAC, routed=True),
    ],
)
def test_guard_and_unguard(firewall, allowance):
    assert not firewall.keeps("vif1.0", allowance)
    firewall.guard("vif1.0", allowance)
    assert firewall.guarded() == ["vif1.0"]
    assert firewall.keeps("vif1.0", allowance)
    assert not firewall.keeps("vif2.0", allowance)
    firewall.unguard("vif1.0")
    assert firewall.guarded() == []
    assert not firewall.keeps("vif1.0", allowance)


def test_several_and_again(firewall):
    for name in ("vif2.0", "vif1.0", "vif10.0", "vif1.0"):
        firewall.guard(name, ALLOWANCE)
    assert firewall.guarded() == ["vif1.0", "vif10.0", "vif2.0"]
    firewall.unguard("vif1.0")
    assert firewall.guarded() == ["vif10.0", "vif2.0"]


def test_a_link_that_changes_its_kind(firewall):
    for routed in (False, True, False):
        firewall.guard("vif1.0", Allowance(MAC, ("10.0.0.2",), routed=routed))
        assert firewall.guarded() == ["vif1.0"]
    firewall.unguard("vif1.0")
    assert firewall.guarded() == []


def test_to_forget_what_is_not_there_is_fine(firewall):
    firewall.unguard("vif1.0")
    firewall.unaccept("vif1.0", TIME)
    firewall.forget_connections([])
    firewall.forget_connections(["10.0.0.2", "10.1.0.0/16", "2001:db8::2", "2001:db8::/64"])


def test_rules_of_iptables_may_be_there_already(firewall):
    for words in ((), ("10.0.0.2",), ("10.0.0.2", "2001:db8::2")):
        firewall.accept("vif1.0", words, TIME)
    firewall.unaccept("vif1.0", TIME)
    firewall.unaccept("vif1.0", TIME)


def test_bridges_that_iptables_sees(firewall):
    """By their own settings, in a namespace where all bridges' are off; it begins with them on."""
    firewall.see_all_bridges(sees=False)
    assert not firewall.forwards(BRIDGE)
    assert firewall.forwards(dataclasses.replace(BRIDGE, calls_iptables=True))
    firewall.see_all_bridges(sees=True)
    assert firewall.forwards(BRIDGE)


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a b", "a/b", "a\nb", "a\0b"])
def test_names_that_no_link_can_have(firewall, name):
    calls = (
        ("guard", name, ALLOWANCE),
        ("keeps", name, ALLOWANCE),
        ("unguard", name),
        ("accept", name, (), TIME),
        ("unaccept", name, TIME),
    )
    for method, *arguments in calls:
        with pytest.raises(OSError) as failure:
            getattr(firewall, method)(*arguments)
        assert failure.value.errno == errno.EINVAL
        assert failure.value.filename == name
    assert firewall.guarded() == []


def test_the_fake_fails_on_demand():
    firewall = FakeFirewall()
    firewall.fail("guard", OSError(errno.EOPNOTSUPP, "no packet filter", "vif1.0"))
    with pytest.raises(OSError, match="no packet filter"):
        firewall.guard("vif1.0", ALLOWANCE)
    assert firewall.guarded() == []
