"""What a guest on a bridge can send: every frame is sent, and somebody listens.

Each frame that must not arrive is sent first by the same guest without a guard; then it arrives.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import socket
import threading

import pytest
from harness.frames import UDP, ethernet, ipv4, udp
from harness.lan import HOST, HOST6, LINK, MAC, OTHER, OTHER6, OTHER_MAC, OWN, OWN6, Lan
from harness.traffic import (
    DHCP,
    FORGED_ARP,
    FORGERIES,
    HELLO,
    HONEST_ARP,
    HONEST_IPV4,
    HONEST_IPV6,
    LINK_LOCAL_IPV6,
    NEVER,
    OF_THE_NETWORK,
    inner4,
    inner6,
    inner_arp,
    sent,
)

from hotplug.handlers import spoofing
from hotplug.kernel.firewall import KernelFirewall
from hotplug.kernel.guards import Guards
from hotplug.kernel.nfnetlink import Channel
from hotplug.network import Allowance

EVERYBODY = {"host", "guest", "outside"}
LIMITED = Allowance(MAC, (OWN, "10.2.0.0/16", OWN6))
ONLY_V4 = Allowance(MAC, (OWN,))
ONLY_V6 = Allowance(MAC, (OWN6,))
ONLY_MAC = Allowance(MAC)


def sort(*kinds):
    return [pytest.param(how, id=name) for kind in kinds for name, how in kind.items()]


@pytest.fixture(scope="module")
def lan():
    made = Lan()
    yield made
    made.close()


@pytest.fixture
def firewall(lan):
    """Its calls are made on the host, and it starts and ends without guards."""
    made = KernelFirewall(None, None)
    with contextlib.closing(made):
        assert lan.host.call(made.guarded) == []
        yield made
        lan.host.call(made.unguard, LINK)
        assert "xen_hotplug" not in lan.host.run("nft", "list", "tables")


def reached(lan, how):
    return lan.reached_by(ethernet(**how), how["payload"])


def expected(how):
    return {"guest"} if how.get("to") == OTHER_MAC else EVERYBODY


@pytest.mark.parametrize(
    "how", sort(NEVER, FORGERIES, HONEST_ARP, DHCP, LINK_LOCAL_IPV6, HONEST_IPV4, HONEST_IPV6)
)
def test_without_a_guard_it_arrives(lan, firewall, how):
    assert reached(lan, how) >= expected(how)


@pytest.mark.parametrize("allowance", [LIMITED, ONLY_MAC, ONLY_V4, ONLY_V6])
def test_never(lan, firewall, allowance):
    lan.host.call(firewall.guard, LINK, allowance)
    assert [name for name, how in NEVER.items() if reached(lan, how)] == []


@pytest.mark.parametrize("how", sort(FORGERIES))
def test_forged(lan, firewall, how):
    lan.host.call(firewall.guard, LINK, LIMITED)
    assert reached(lan, how) == set()


@pytest.mark.parametrize(
    "how", sort(HONEST_ARP, DHCP, LINK_LOCAL_IPV6, HONEST_IPV4, HONEST_IPV6, OF_THE_NETWORK)
)
def test_honest(lan, firewall, how):
    lan.host.call(firewall.guard, LINK, LIMITED)
    assert reached(lan, how) >= expected(how)


def check(lan, frames_, *, arrive):
    got = {name: reached(lan, how) >= expected(how) for name, how in frames_.items()}
    assert got == dict.fromkeys(frames_, arrive)


def test_only_a_mac(lan, firewall):
    """Any address is fine."""
    lan.host.call(firewall.guard, LINK, ONLY_MAC)
    silent = {
        "ARP cut off in the address",
        "neighbour advertisement, its target in another fragment",
    }
    free = {name: how for name, how in FORGERIES.items() if name not in silent}
    check(lan, free, arrive=True)
    for honest in (HONEST_ARP, DHCP, LINK_LOCAL_IPV6, HONEST_IPV4, HONEST_IPV6):
        check(lan, honest, arrive=True)


def test_only_ipv4_addresses(lan, firewall):
    """Of IPv6 the guest keeps what is link-local."""
    lan.host.call(firewall.guard, LINK, ONLY_V4)
    check(lan, {**HONEST_ARP, **DHCP, **HONEST_IPV4, **LINK_LOCAL_IPV6}, arrive=True)
    check(lan, {**FORGERIES, **HONEST_IPV6, **OF_THE_NETWORK}, arrive=False)


def test_only_ipv6_addresses(lan, firewall):
    """Of IPv4 the guest keeps DHCP."""
    lan.host.call(firewall.guard, LINK, ONLY_V6)
    check(lan, {**DHCP, **LINK_LOCAL_IPV6, **HONEST_IPV6}, arrive=True)
    check(lan, {**FORGERIES, **HONEST_ARP, **HONEST_IPV4, **OF_THE_NETWORK}, arrive=False)


def test_another_link_local_address_may_be_given(lan, firewall):
    lan.host.call(firewall.guard, LINK, Allowance(MAC, (OWN, "fe80::1")))
    check(lan, {**LINK_LOCAL_IPV6, "given": FORGERIES["IPv6 link-local"]}, arrive=True)


@pytest.mark.parametrize(
    "addresses",
    [
        ("0.0.0.0/0", "::/0"),
        ("10.0.0.0/31", "10.0.0.2", "10.0.0.3", "10.0.0.2/32", "2001:db8::/127", "2001:db8::2/127"),
        ("255.255.255.255", "10.0.0.0/30", "ffff::/16", "2001:db8::/126"),
    ],
)
def test_networks_that_touch_or_overlap_or_end_the_world(lan, firewall, addresses):
    lan.host.call(firewall.guard, LINK, Allowance(MAC, addresses))
    wanted = ("ARP of another", "IPv4", "IPv6", "neighbour advertisement")
    check(lan, {name: FORGERIES[name] for name in wanted}, arrive=True)
    check(lan, {**HONEST_ARP, **HONEST_IPV4, **HONEST_IPV6}, arrive=True)
    if "::/0" not in addresses:
        farther = sent(inner4(HELLO, "10.0.0.4")), sent(inner6(HELLO, "2001:db8::4", UDP))
        check(lan, dict(enumerate(farther)), arrive=False)


@pytest.mark.parametrize("kind", ["10.{}.0.0/17", "2001:db8:{}::/64"])
def test_as_many_addresses_as_a_vif_may_have(lan, firewall, kind):
    many = [kind.format(n) for n in range(spoofing.MAX_ADDRESSES)]
    lan.host.call(firewall.guard, LINK, Allowance(MAC, tuple(many)))
    source = (ipaddress.ip_network(many[-1])[1], ipaddress.ip_network(many[-1])[-1] + 1)
    inner = [inner4(HELLO, s) if s.version == 4 else inner6(HELLO, s, UDP) for s in source]
    check(lan, {"last": sent(inner[0])}, arrive=True)
    check(lan, {"beyond": sent(inner[1])}, arrive=False)


def test_a_new_guard_takes_the_place_of_the_old_one(lan, firewall):
    arp_of_both = {"own": sent(inner_arp(MAC, OWN, OTHER)), "other": sent(FORGED_ARP)}
    lan.host.call(firewall.guard, LINK, LIMITED)
    for addresses, arriving in (((OTHER,), "other"), ((OWN,), "own"), ((), "own"), ((OWN,), "own")):
        lan.host.call(firewall.guard, LINK, Allowance(MAC, addresses))
        check(lan, {arriving: arp_of_both[arriving]}, arrive=True)
        if addresses:
            (not_arriving,) = arp_of_both.keys() - {arriving}
            check(lan, {not_arriving: arp_of_both[not_arriving]}, arrive=False)
    assert lan.host.call(firewall.guarded) == [LINK]


def test_with_bridge_netfilter(lan, firewall):
    """Where bridged packets pass by iptables and inet too."""
    lan.bridge_netfilter(on=True)
    try:
        lan.host.call(firewall.guard, LINK, LIMITED)
        check(lan, {**HONEST_ARP, **LINK_LOCAL_IPV6, **HONEST_IPV6, **HONEST_IPV4}, arrive=True)
        check(lan, FORGERIES, arrive=False)
    finally:
        lan.bridge_netfilter(on=False)


def test_what_the_bridge_hands_to_the_host_past_its_hook(lan, firewall):
    """Frames to a group of the bridge's own come in as the port's (here LLDP's)."""
    lan.host.set(f"ipv4/conf/{LINK}/rp_filter", 0)
    listener = lan.host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with listener:
        listener.bind((HOST, 0))
        listener.settimeout(5)
        port = listener.getsockname()[1]

        def send(source, data, to):
            payload = ipv4(source, HOST, udp(1000, port, data))
            lan.send(ethernet(MAC, 0x0800, payload, to=to))

        send(OTHER, b"forged", "01:80:c2:00:00:0e")
        assert listener.recv(100) == b"forged"
        lan.host.call(firewall.guard, LINK, LIMITED)
        send(OTHER, b"forged", "01:80:c2:00:00:0e")
        send(OWN, b"honest", "00:16:3e:00:00:ff")
        assert listener.recv(100) == b"honest"


def stream(sender, receiver, size=1 << 20):
    """Much at a time, which the kernel hands on in packets that are longer than the MTU."""
    thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
    thread.start()
    receiver.settimeout(10)
    while size:
        got = receiver.recv(1 << 16)
        assert got
        size -= len(got)
    thread.join()


def test_real_connections(lan, firewall):
    """TCP, and UDP in fragments, over both families, with what they need to find each other."""
    lan.host.call(firewall.guard, LINK, LIMITED)
    for family, peer, own, place in (
        (socket.AF_INET, OTHER, OWN, lan.other),
        (socket.AF_INET6, OTHER6, OWN6, lan.other),
        (socket.AF_INET, HOST, OWN, lan.host),
        (socket.AF_INET6, HOST6, OWN6, lan.host),
    ):
        for namespace in (lan.guest, place):
            namespace.ip("neighbour flush all")
        with place.call(socket.create_server, (peer, 0), family=family) as server:
            address = server.getsockname()[:2]
            with lan.guest.call(socket.create_connection, address, 10) as client:
                accepted, source = server.accept()
                assert source[0] == client.getsockname()[0] == own
                with accepted:
                    stream(client, accepted)
        with place.call(socket.socket, family, socket.SOCK_DGRAM) as receiver:
            receiver.bind((peer, 0))
            receiver.settimeout(10)
            with lan.guest.call(socket.socket, family, socket.SOCK_DGRAM) as sender:
                sender.sendto(bytes(4000), receiver.getsockname()[:2])
            assert len(receiver.recv(5000)) == 4000


def test_where_ipv6_is_off():
    """On the host; what the guests do with it is theirs."""
    firewall = KernelFirewall(None, None)
    with contextlib.closing(Lan()) as lan, contextlib.closing(firewall):
        lan.host.set("ipv6/conf/all/disable_ipv6", 1)
        lan.host.call(firewall.guard, LINK, ONLY_V4)
        check(lan, {**HONEST_ARP, **DHCP, **HONEST_IPV4}, arrive=True)
        check(lan, FORGERIES, arrive=False)


def test_it_is_there_before_the_link_and_stays_after_it(lan, firewall):
    lan.host.call(firewall.guard, "vif9.0", LIMITED)
    assert lan.host.call(firewall.guarded) == ["vif9.0"]
    lan.host.ip("link add vif9.0 type veth peer name x", "link delete vif9.0")
    assert lan.host.call(firewall.guarded) == ["vif9.0"]
    lan.host.call(firewall.unguard, "vif9.0")
    assert lan.host.call(firewall.guarded) == []


def test_tables_of_others_stay_as_they_are(lan, firewall):
    theirs = """
        add table bridge theirs
        add chain bridge theirs c { type filter hook prerouting priority 0; }
        add rule bridge theirs c accept
        add table inet xen_other
        add map inet xen_other links { type ifname : verdict; }
        add table ip xen_hotplug_x
        add chain ip xen_hotplug_x from_links
        add rule ip xen_hotplug_x from_links drop
    """
    lan.host.run("nft", "-f", "-", text=theirs)
    before = lan.host.run("nft", "list", "ruleset")
    lan.host.call(firewall.guard, LINK, LIMITED)
    lan.host.call(firewall.unguard, LINK)
    assert lan.host.run("nft", "list", "ruleset") == before
    for table in ("bridge theirs", "inet xen_other", "ip xen_hotplug_x"):
        lan.host.run("nft", "delete", "table", *table.split())


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "flush chain bridge xen_hotplug from_links",
        "delete table bridge xen_hotplug",
        "delete table inet xen_hotplug",
        f'delete element bridge xen_hotplug links {{ "{LINK}" }}',
        f"flush chain bridge xen_hotplug link-{LINK}",
    ],
)
def test_a_new_guard_mends_what_others_did(lan, firewall, harm):
    lan.host.call(firewall.guard, LINK, LIMITED)
    lan.host.run("nft", *harm.split())
    lan.host.call(firewall.guard, LINK, LIMITED)
    check(lan, {"forged": sent(FORGED_ARP)}, arrive=False)
    check(lan, HONEST_ARP, arrive=True)


def test_unguard_takes_what_others_left(lan, firewall):
    lan.host.call(firewall.guard, LINK, LIMITED)
    lan.host.run("nft", "delete", "table", "bridge", "xen_hotplug")
    lan.host.run("nft", "delete", "element", "inet", "xen_hotplug", "links", f'{{ "{LINK}" }}')
    lan.host.call(firewall.unguard, LINK)
    assert "xen_hotplug" not in lan.host.run("nft", "list", "tables")


def test_many_at_once_by_several_processes(lan, firewall):
    """Each with a firewall of its own: tables come and go under everybody's feet."""
    failures = []

    def work(number):
        made = KernelFirewall(None, None)
        try:
            for _ in range(15):
                made.guard(f"vif{number}.0", LIMITED)
                assert f"vif{number}.0" in made.guarded()
                made.unguard(f"vif{number}.0")
        except Exception as error:  # noqa: BLE001 - it is told below
            failures.append(error)
        finally:
            made.close()

    def run():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lan.host.call(run)
    assert failures == []
    assert lan.host.call(firewall.guarded) == []


class Slow(Channel):
    """Somebody does something between a look and what follows from it."""

    meanwhile = None
    patience = 0  # so many looks before

    def look(self, messages):
        found = super().look(messages)
        self.patience -= 1
        if self.meanwhile is not None and self.patience < 0:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return found


@pytest.mark.parametrize("before", ["nothing", "guarded", "another guarded"])
@pytest.mark.parametrize("meanwhile", ["guarded", "unguarded", "another guarded"])
def test_what_others_do_meanwhile_is_seen(lan, firewall, before, meanwhile):
    acts = {
        "nothing": lambda: None,
        "guarded": lambda: firewall.guard(LINK, Allowance(MAC, (OTHER,))),
        "unguarded": lambda: firewall.unguard(LINK),
        "another guarded": lambda: firewall.guard("vif7.0", Allowance(MAC)),
    }
    lan.host.call(acts[before])
    with contextlib.closing(Slow()) as channel:
        channel.meanwhile = acts[meanwhile]
        lan.host.call(Guards(channel).guard, LINK, ONLY_V4)
        rules = lan.host.run("nft", "list", "chain", "bridge", "xen_hotplug", f"link-{LINK}")
        assert rules.count("ether saddr !=") == 1
        assert f"0.0.0.0, {OWN} }} drop" in rules
        check(lan, {"forged": sent(FORGED_ARP)}, arrive=False)
        check(lan, HONEST_ARP, arrive=True)
        for unlikely, channel.patience in itertools.product((False, True), (0, 1)):
            lan.host.call(firewall.guard, LINK, ONLY_V4)
            channel.meanwhile = acts[meanwhile]
            lan.host.call(Guards(channel).unguard, LINK, unlikely=unlikely)
            assert channel.meanwhile is None
            assert LINK not in lan.host.call(firewall.guarded)
    lan.host.call(firewall.unguard, "vif7.0")


def test_names_that_no_link_has(lan, firewall):
    for name in ("", "sixteen-letters-", "a b", "a/b", "a\nb", "a\0b"):
        with pytest.raises(OSError) as failure:
            lan.host.call(firewall.guard, name, LIMITED)
        assert failure.value.errno == errno.EINVAL
        assert failure.value.filename == name


def test_names_that_are_hard(lan, firewall):
    for name in ("from_links", "links", 'a"b;{}', "\xe4\udcff", "fifteen-letters"):
        lan.host.call(firewall.guard, name, LIMITED)
        assert lan.host.call(firewall.guarded) == [name]
        lan.host.call(firewall.unguard, name)
        assert lan.host.call(firewall.guarded) == []


class Counting(Channel):
    """Counts what is sent."""

    sent = 0
    numbers = 0

    def _send(self, data, numbers):
        self.sent += len(data)
        self.numbers += numbers
        return super()._send(data, numbers)


def test_where_nothing_was_guarded_that_is_one_question(lan, firewall):
    """Until somebody changes any table: it may be another process that guards a link."""
    with contextlib.closing(Counting()) as channel:
        guards = Guards(channel)
        for asked in (4, 1, 1):
            channel.numbers = 0
            lan.host.call(guards.unguard, LINK, unlikely=True)
            assert channel.numbers == asked
        lan.host.call(firewall.guard, LINK, LIMITED)
        lan.host.call(guards.unguard, LINK, unlikely=True)
        assert lan.host.call(firewall.guarded) == []
        for asked in (4, 1):
            channel.numbers = 0
            lan.host.call(guards.unguard, LINK, unlikely=True)
            assert channel.numbers == asked
        channel.numbers = 0
        lan.host.call(guards.unguard, LINK)  # nothing is believed of what may have a guard
        assert channel.numbers == 3
        lan.host.call(guards.unguard, LINK, unlikely=True)
        assert channel.numbers == 3 + 1


def test_lost_answers_are_no_news_of_what_is_there(lan, firewall, monkeypatch):
    """The kernel tells nothing to a socket that ran over, until it was read to its end."""
    lan.host.call(firewall.guard, LINK, LIMITED)
    with monkeypatch.context() as broken:
        broken.setattr(Channel, "_answers", lambda _self, _first: iter(()))
        for call in (firewall.unguard, lambda link: firewall.keeps(link, LIMITED)):
            with pytest.raises(OSError, match="nf_tables refuses") as failure:
                lan.host.call(call, LINK)
            assert failure.value.errno == errno.ENOBUFS
    assert lan.host.call(firewall.keeps, LINK, LIMITED)


def test_the_hundredth_guard_says_no_more_than_the_first(lan):
    with contextlib.closing(Counting()) as channel:
        guards = Guards(channel)
        names = [f"vif{number}.0" for number in range(100, 201)]
        costs = []
        for change in (lambda name: guards.guard(name, LIMITED), guards.unguard):
            for name in names:
                channel.sent = 0
                lan.host.call(change, name)
                costs.append(channel.sent)
    # The first makes the tables, the last removes them.
    assert costs[0] > costs[1] == costs[100]
    assert costs[101] == costs[200] < costs[201]
