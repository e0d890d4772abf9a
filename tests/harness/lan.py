"""A host with two guests on a bridge and a neighbour outside, each in a namespace of its own.

What a guest sends is sent for real; ``lan.reached_by(frame)`` says who got it. It waits for no
time: an honest frame follows on the same way, and once that one has arrived, so has the other, or
never will.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket

from harness import frames
from harness.namespace import Namespace

ETH_P_ALL = 3
PATIENCE = 10.0  # seconds for the honest frame
MAC = "00:16:3e:00:00:01"
OTHER_MAC = "00:16:3e:00:00:02"
LINK_LOCAL = "fe80::216:3eff:fe00:1"
OWN, OTHER = "10.0.0.2", "10.0.0.3"
OWN6, OTHER6 = "2001:db8::2", "2001:db8::3"
HOST, HOST6 = "10.0.0.1", "2001:db8::1"
OUTSIDE, OUTSIDE6 = "10.0.0.4", "2001:db8::4"
LINK = "vif1.0"
HOST_MAC = "00:16:3e:00:00:ff"
QUIET = (  # no words of its own on any link
    ("ipv6/conf/default/router_solicitations", 0),
    ("ipv6/conf/default/dad_transmits", 0),
    ("ipv6/conf/all/forwarding", 1),
    ("ipv6/conf/default/mldv2_unsolicited_report_interval", 100000),
    ("ipv4/ip_forward", 1),
    ("ipv4/conf/all/rp_filter", 0),
    ("ipv4/conf/default/rp_filter", 0),
)


class Listener:
    """Everything that comes in at an interface."""

    def __init__(self, namespace, interface):
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = namespace.call(socket.socket, socket.AF_PACKET, kind, 0)
        self._socket.bind((interface, ETH_P_ALL))

    def close(self):
        self._socket.close()

    def until(self, wanted):
        """What comes in until these bytes have."""
        found = []
        while not any(wanted in data for data in found):
            ready = select.select([self._socket], [], [], PATIENCE)[0]
            assert ready, "the honest frame that follows did not arrive"
            found += self.now()
        return found

    def now(self):
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, direction, _, _) = self._socket.recvfrom(65536)
                if direction != socket.PACKET_OUTGOING:
                    found.append(data)
        return found


class Lan:
    """``listeners``: by the names that reached_by() uses."""

    def __init__(self, *, routed=False):
        self._undo = contextlib.ExitStack()
        self._count = itertools.count()
        self.routed = routed
        self.ipv6_is_free = True  # for what passes under every guard; else it is ARP
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self.host, self.guest, self.other, self.outside = (
                self._undo.enter_context(Namespace()) for _ in range(4)
            )
            for namespace in (self.host, self.guest, self.other, self.outside):
                for setting, value in QUIET:
                    namespace.set(setting, value)
            self.bridge_netfilter(on=False)
            self._connect()
            self._address()
            self.listeners = self._listen()
            self._sender = Listener(self.guest, "eth0")._socket
            self._undo.callback(self._sender.close)
            failed.pop_all()

    def close(self):
        self._undo.close()

    def bridge_netfilter(self, *, on):
        """A kernel without it is as one where it is off."""
        for family in ("iptables", "ip6tables"):
            with contextlib.suppress(FileNotFoundError):
                self.host.set(f"bridge/bridge-nf-call-{family}", int(on))

    def _connect(self):
        ends = ((LINK, self.guest, MAC), ("vif2.0", self.other, OTHER_MAC))
        for name, guest, mac in (*ends, ("eth0", self.outside, "00:16:3e:00:00:04")):
            peer = f"peer name eth0 address {mac} netns {guest.path}"
            self.host.run("ip", "link", "add", name, "type", "veth", *peer.split())
            guest.ip("link set lo up", "link set eth0 up")
            self.host.ip(f"link set {name} up")

    def _address(self):
        self.host.ip(
            f"link add br0 address {HOST_MAC} type bridge mcast_snooping 0",
            "link set br0 up",
            f"address add {HOST}/24 dev br0",
            f"address add {HOST6}/64 dev br0 nodad",
            *([] if self.routed else [f"link set {LINK} master br0"]),
            "link set vif2.0 master br0",
            "link set eth0 master br0",
        )
        if not self.routed:  # it must not send to a guest back what came in the guest's name
            self.host.ip(f"link set {LINK} type bridge_slave learning off")
        ends = ((self.guest, OWN, OWN6), (self.other, OTHER, OTHER6))
        for guest, v4, v6 in (*ends, (self.outside, OUTSIDE, OUTSIDE6)):
            guest.ip(f"address add {v4}/24 dev eth0", f"address add {v6}/64 dev eth0 nodad")
        if self.routed:
            self._route()

    def _route(self):
        self.host.ip(
            f"link set {LINK} address {HOST_MAC}",
            f"route add {OWN}/32 dev {LINK}",
            f"route add {OWN6}/128 dev {LINK}",
            f"neighbour add {OWN} lladdr {MAC} dev {LINK} nud permanent",
            f"neighbour add {OWN6} lladdr {MAC} dev {LINK} nud permanent",
            f"neighbour add {OUTSIDE} lladdr 00:16:3e:00:00:04 dev br0 nud permanent",
            f"neighbour add {OUTSIDE6} lladdr 00:16:3e:00:00:04 dev br0 nud permanent",
        )

        self.guest.ip(
            f"neighbour add {HOST} lladdr {HOST_MAC} dev eth0 nud permanent",
            f"neighbour add {HOST6} lladdr {HOST_MAC} dev eth0 nud permanent",
        )

    def _listen(self):
        if self.routed:
            places = {"outside": (self.outside, "eth0")}
        else:
            places = {
                "host": (self.host, "br0"),
                "guest": (self.other, "eth0"),
                "outside": (self.outside, "eth0"),
            }
        listeners = {name: Listener(*place) for name, place in places.items()}
        for listener in listeners.values():
            self._undo.callback(listener.close)
        return listeners

    def send(self, frame):
        self.guest.call(self._sender.send, frame)

    def reached_by(self, frame, core):
        """Who gets a frame that the guest sends; ``core`` is how it must end."""
        for listener in self.listeners.values():
            listener.now()
        mark = b"honest %d " % next(self._count)
        self.send(frame)
        self.send(self._honest(mark))
        arrived = {name: listener.until(mark) for name, listener in self.listeners.items()}
        return {name for name, got in arrived.items() if any(data.endswith(core) for data in got)}

    def _honest(self, mark):
        if self.routed:
            payload = frames.ipv4(OWN, OUTSIDE, frames.udp(1, 2, mark))
            return frames.ethernet(MAC, 0x0800, payload, to=HOST_MAC)
        if not self.ipv6_is_free:
            return frames.ethernet(MAC, 0x0806, frames.arp(MAC, OWN, OWN) + mark)
        payload = frames.ipv6(LINK_LOCAL, "ff02::1", frames.icmpv6(133, mark))
        return frames.ethernet(MAC, 0x86DD, payload, to=frames.ALL_NODES)
