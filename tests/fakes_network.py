"""The ports for network cards without a kernel, for unit tests. See fakes_kernel.py.

firewall = FakeFirewall()
firewall.guard("vif1.0", Allowance("00:16:3e:01:02:03"))
assert firewall.guards == {"vif1.0": Allowance("00:16:3e:01:02:03")}
"""

from __future__ import annotations

from fakes_kernel import Failing

from hotplug.kernel.firewall import checked


class FakeFirewall(Failing):
    """``guards``: what each link may send. ``accepted``: its words. ``forgotten``: addresses."""

    def __init__(self):
        super().__init__()
        self.guards = {}
        self.accepted = {}
        self.forgotten = []
        self.filters_bridges = True
        self.port = 0

    def guard(self, link, allowance):
        self._called("guard", link, allowance)
        self.guards[checked(link)] = allowance

    def keeps(self, link, allowance):
        self._called("keeps", link, allowance)
        return self.guards.get(checked(link)) == allowance

    def unguard(self, link, *, unlikely=False):
        del unlikely
        self._called("unguard", link)
        self.guards.pop(checked(link), None)

    def guarded(self):
        self._called("guarded")
        return sorted(self.guards)

    def see_all_bridges(self, *, sees):
        self.filters_bridges = sees

    def forwards(self, bridge):
        self._called("forwards", bridge)
        return self.filters_bridges or bridge.calls_iptables

    def accept(self, link, words, deadline):
        self._called("accept", link, tuple(words))
        deadline.check()
        self.accepted[checked(link)] = tuple(words)

    def unaccept(self, link, deadline):
        self._called("unaccept", link)
        deadline.check()
        self.accepted.pop(checked(link), None)

    def forget_connections(self, addresses):
        self._called("forget_connections", tuple(addresses))
        self.forgotten += addresses
