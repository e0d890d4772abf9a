"""Lines 112 to 114 of the checklist: the stock scripts' rules in FORWARD, and what they let pass.

Debian's scripts return before that step (bug 894013); stock is here what upstream ships.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time

import pytest
from harness.cards import assert_port, bridge_netfilter
from harness.frames import DATA, ethernet, ipv4, udp
from harness.lines import F_CARD, K_CARD
from harness.run import Runner
from harness.wires import SILENCE, socket_in

IPV4 = 0x0800
DISABLED = (
    "  # This function is disabled in Debian packaging. See Debian bug #894013.\n  return 0\n"
)
NOBODY = str(ipaddress.IPv4Address(0))  # who has no address yet
OUTSIDE = "02:00:00:00:00:01"
CRIPPLE = 'mount --bind /bin/false "$1"; shift; exec "$@"'


@pytest.fixture
def forward(card_runner, net):
    """A host that forwards nothing which no rule accepts, and that sees bridged packets."""
    script = card_runner.place.scripts / "vif-common.sh"
    as_shipped = script.read_text()
    assert DISABLED in as_shipped
    script.write_text(as_shipped.replace(DISABLED, ""))
    bridge_netfilter(net, on=True)
    net.run("iptables", "-P", "FORWARD", "DROP")
    yield lambda: net.run("iptables", "-S", "FORWARD").stdout.splitlines()[1:]
    net.run("iptables", "-P", "FORWARD", "ACCEPT")
    net.run("iptables", "-F", "FORWARD")
    bridge_netfilter(net, on=False)
    script.write_text(as_shipped)
    (card_runner.place.rundir / "iptables").unlink(missing_ok=True)


@pytest.fixture
def outside(net):
    """The host's own card, a port of the bridge; its other end is the network outside."""
    net.add_vif("out", "wire")
    net.ip("link", "set", "dev", "wire", "up")
    net.ip("link", "set", "dev", "out", "master", "xenbr0", "up")
    yield "wire"
    net.delete("out")


def passing(net, sender, receiver, frames):
    """Which of these frames, each by its name, come from one end of a wire to the other."""
    with socket_in(net) as source, socket_in(net) as target:
        source.bind((sender, IPV4))
        target.bind((receiver, IPV4))
        for frame in frames.values():
            source.send(frame)
        came = set()
        until = time.monotonic() + SILENCE
        while (left := until - time.monotonic()) > 0:
            target.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data = target.recv(2048)
                came |= {name for name in frames if b"<%s>" % name.encode() in data}
        return came


def frame(name, mac, source, destination, ports=(1000, 2000)):
    datagram = udp(*ports, DATA + b"<%s>" % name.encode())
    return ethernet(mac, IPV4, ipv4(source, destination, datagram))


@K_CARD
@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("", {"first", "second", "third", "dhcp"}),
        ("10.0.0.2 10.0.0.3", {"first", "second", "dhcp"}),
        ("10.0.0.0/30", {"first", "second", "dhcp"}),
        ("10.0.0.2", {"first", "dhcp"}),
    ],
)
def test_firewall_accepts(card_runner, net, card, forward, outside, words, passes):
    """112: traffic accepted with and without ip words equals 4.5."""
    backend = card(ip=words)
    mac = backend.read("mac").decode()
    guest = net.peer(backend.link)
    net.ip("link", "set", "dev", guest, "up")
    assert card_runner.online(backend).status == 0
    assert_port(net, backend.link)
    sent = {
        "first": frame("first", mac, "10.0.0.2", "10.0.0.77"),
        "second": frame("second", mac, "10.0.0.3", "10.0.0.77"),
        "third": frame("third", mac, "10.0.0.9", "10.0.0.77"),
        "dhcp": frame("dhcp", mac, NOBODY, "255.255.255.255", (68, 67)),
    }
    assert passing(net, guest, outside, sent) == passes
    answer = {"answer": frame("answer", OUTSIDE, "10.0.0.77", "10.0.0.2")}
    assert passing(net, outside, guest, answer) == {"answer"}
    assert card_runner.offline(backend).status == 0
    assert forward() == []


@F_CARD
def test_firewall_cleanup(card_runner, net, card, forward):
    """113: offline leaves no rule for the interface, even after a repeated online (D37)."""
    backend, other = card(ip="10.0.0.2"), card(ip="10.0.0.3")
    assert card_runner.online(other).status == 0
    net.run("iptables", "-A", "FORWARD", "-i", "xenbr0", "-j", "ACCEPT")
    before = forward()
    for words in ("10.0.0.2", "10.0.0.2 10.0.0.4", ""):
        backend.write("ip", words)
        assert card_runner.online(backend).status == 0
    assert sum(backend.link in rule for rule in forward()) == 2  # in and out, of the last words
    backend.write("ip", "10.0.0.5")
    assert card_runner.offline(backend).status == 0
    assert forward() == before


@F_CARD
@pytest.mark.parametrize("words", ["", "10.0.0.2 10.0.0.3"])
def test_firewall_cleanup_after_stock(card_runner, net, card, forward, words):
    """113: nor does an offline of a card that the stock script brought online."""
    backend, other = card(ip=words), card()
    stock = Runner("stock", card_runner.place, launcher=card_runner.launcher)
    assert stock.online(other).status == 0
    before = forward()
    assert stock.online(backend).status == 0
    assert sum(f" {backend.link} " in rule for rule in forward()) == (6 if words else 2)
    assert card_runner.offline(backend).status == 0
    assert forward() == before
    assert card_runner.offline(other).status == 0
    assert forward() == []


@F_CARD
def test_firewall_cleanup_after_a_failure(card_runner, net, card, forward, hook):
    """113: nor does an online that failed."""
    backend = card(ip="10.0.0.2")
    hook("10-failing", "exit 1")
    assert card_runner.online(backend).status == 1
    assert forward() == []


@F_CARD
@pytest.mark.parametrize("name", ["w\u00e4b", "a+b", "-x", "w*"])
def test_firewall_cleanup_of_a_name_that_iptables_cannot_be_told(
    card_runner, net, card, forward, name
):
    """113: there are no rules of it, and nothing is left to be done."""
    backend, unknown = card(vifname=name, ip="10.0.0.2"), card(vifname="other+")
    assert card_runner.online(backend).status == 0
    assert_port(net, name)
    assert forward() == []
    assert card_runner.offline(backend).status == 0
    assert card_runner.offline(unknown).status == 0
    journal = card_runner.place.rundir / "journal"
    assert not journal.exists() or not list(journal.iterdir())


@K_CARD
def test_firewall_unusable(card_runner, net, card, forward):
    """114: iptables not working: online succeeds."""
    backend = card(ip="10.0.0.2")
    program = os.path.realpath("/usr/sbin/iptables")
    usual = card_runner.launcher
    alone = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", CRIPPLE, "sh", program)
    card_runner.launcher = (*usual, *alone)
    card_runner.restart_agent()
    try:
        assert card_runner.online(backend).status == 0
        assert_port(net, backend.link)
        assert backend.read("hotplug-status") == b"connected"
        assert forward() == []
        assert card_runner.offline(backend).status == 0
    finally:
        card_runner.launcher = usual
        card_runner.restart_agent()
