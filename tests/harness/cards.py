"""What a network card's link is to be like, once a script was run for it."""

from __future__ import annotations

PORT_MAC = "fe:ff:ff:ff:ff:ff"


def assert_port(net, link, bridge="xenbr0", mtu=1500):
    """It is a bridge's port, and up."""
    found = net.links()[link]
    assert (found.get("master"), found["address"], found["mtu"]) == (bridge, PORT_MAC, mtu)
    assert "UP" in found["flags"]


def assert_released(net, link):
    """It is in no bridge, and down."""
    found = net.links()[link]
    assert "master" not in found
    assert "UP" not in found["flags"]


def frontend_mtu(backend):
    """What the guest is told."""
    return backend.store.read(f"{backend.frontend}/mtu")


def states(net):
    """Of every link: what an event may change; the rest has clocks in it."""
    return {
        name: (
            link["ifindex"],
            "UP" in link["flags"],
            link["address"],
            link["mtu"],
            link.get("master"),
        )
        for name, link in net.links().items()
    }


def bridge_netfilter(net, *, on):
    """Whether iptables sees what goes over the bridges of a namespace, where the kernel can."""
    files = "/proc/sys/net/bridge/bridge-nf-call-"
    net.run("sh", "-c", f"for file in {files}*; do [ ! -e $file ] || echo {int(on)} >$file; done")
