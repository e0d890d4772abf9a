"""kernel/links.py and kernel/rtnetlink.py on real links, with iproute2 as the other opinion.

What every Links does is in tests/contract; here is what only the kernel can do: links that come
late or go meanwhile, many of them, several threads, and requests that cross.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import subprocess
import threading
import time

import pytest
from harness.locks import wait_until
from harness.netns import netns
from hypothesis import given
from hypothesis import strategies as st

from hotplug.agent.deadline import EventDeadline
from hotplug.errors import AbandonedError, DeadlineError
from hotplug.kernel import genetlink, link_messages, rtnetlink
from hotplug.kernel import links as links_module
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.links import KernelLinks
from hotplug.kernel.rtnetlink_messages import decode
from hotplug.kernel.rtnetlink_request import Request
from hotplug.network import Address, Change, Flush, Link, Neighbour, Route

MANY = 300
BRIDGES = ("xenbr0", "calls4", "calls6")


@pytest.fixture
def net():
    """A namespace for each test: the kernel removes many links faster with it than one by one."""
    with netns() as made:
        yield made


@pytest.fixture
def links(net):
    """The links of ``net``; this thread is in there."""
    with net.entered(), contextlib.closing(KernelLinks()) as made:
        yield made


def batch(net, lines):
    subprocess.run(
        ["ip", "-n", net.name, "-batch", "-"], input="\n".join(lines), text=True, check=True
    )


def later(seconds, *commands):
    """Have something happen in a while."""

    def run():
        time.sleep(seconds)
        for command in commands:
            command()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_link_as_iproute2_has_it(net, links):
    net.add_bridge("xenbr0", 9000)
    net.add_vif("vif1.0")
    net.add_tap("vif1.0-emu")
    net.ip("link", "set", "dev", "vif1.0", "master", "xenbr0")
    for name, seen in net.links().items():
        found = links.find(name)
        assert found.index == seen["ifindex"]
        assert found.kind == seen.get("linkinfo", {}).get("info_kind", "")
        assert found.mac == seen["address"]
        assert found.mtu == seen["mtu"]
        assert found.up == ("UP" in seen["flags"])
        master = links.get(found.master).name if found.master else None
        assert master == seen.get("master")


def test_longest_name(net, links):
    net.add_tap("x" * 15)
    assert links.find("x" * 15) is not None
    assert links.find("x" * 14) is None


# Waiting


def test_a_link_that_comes_late(net, links):
    thread = later(0.3, lambda: net.add_vif("vif1.0"))
    started = time.monotonic()
    found = links.wait_for("vif1.0", EventDeadline(10.0))
    waited = time.monotonic() - started
    thread.join()
    assert found.name == "vif1.0"
    assert waited > 0.2


def test_it_is_the_kernel_that_wakes_us(net, links, monkeypatch):
    """Not the next look at the clock."""
    monkeypatch.setattr(links_module, "SLICE", 60.0)
    thread = later(0.2, lambda: net.add_vif("vif1.0"))
    assert links.wait_for("vif1.0", EventDeadline(30.0)).name == "vif1.0"
    thread.join()


def test_a_link_that_gets_the_name_late(net, links):
    net.add_vif("other")
    thread = later(0.2, lambda: net.ip("link", "set", "dev", "other", "name", "vif1.0"))
    assert links.wait_for("vif1.0", EventDeadline(10.0)).name == "vif1.0"
    thread.join()


def test_a_link_that_was_there_only_for_a_moment(net, links):
    """Its news is still to be read when it is gone; the next one of that name counts."""

    def flicker():
        for _ in range(5):
            net.add_tap("vif1.0")
            net.delete("vif1.0")

    thread = later(0.1, flicker, lambda: net.add_vif("vif1.0"))
    found = links.wait_for("vif1.0", EventDeadline(20.0))
    thread.join()
    assert links.find("vif1.0") is not None
    assert found.name == "vif1.0"


def test_among_the_news_of_many_others(net, links):
    names = [f"link add name o{n} type veth peer name p{n}" for n in range(100)]
    thread = later(0.1, lambda: batch(net, [*names, "link add name vif1.0 type bridge"]))
    assert links.wait_for("vif1.0", EventDeadline(30.0)).kind == "bridge"
    thread.join()


def test_lost_news_may_have_been_ours(net, links):
    """A buffer that overflows (ENOBUFS) says only that something happened."""
    with rtnetlink.connect(rt.RTMGRP_LINK) as news:
        news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # as small as can be
        batch(net, [f"link add name o{n} type veth peer name p{n}" for n in range(20)])
        said = [links_module.is_news_of(news, "vif1.0", 0.1) for _ in range(20)]
    assert True in said
    assert said[-1] is False


def test_a_link_that_never_comes(links, monkeypatch):
    monkeypatch.setattr(links_module, "APPEAR", 0.3)
    with pytest.raises(OSError, match=r"did not make it within 0\.3 s") as failure:
        links.wait_for("vif1.0", EventDeadline(30.0))
    assert (failure.value.errno, failure.value.filename) == (errno.ENODEV, "vif1.0")


def test_no_longer_than_the_event_may_take(links):
    deadline = EventDeadline(0.3)
    with pytest.raises((DeadlineError, OSError)):
        links.wait_for("vif1.0", deadline)
    assert deadline.what == "waiting for the network interface vif1.0"


def test_nobody_waits_any_more(links):
    deadline = EventDeadline(30.0)
    thread = later(0.2, deadline.abandon)
    started = time.monotonic()
    with pytest.raises(AbandonedError):
        links.wait_for("vif1.0", deadline)
    thread.join()
    assert time.monotonic() - started < 5


# Meanwhile


def test_another_link_of_the_same_name_is_not_touched(net, links):
    """We hold an index: it is never used again while the namespace lives."""
    net.add_vif("vif1.0")
    old = links.find("vif1.0")
    net.delete("vif1.0")
    net.add_vif("vif1.0")
    with pytest.raises(OSError, match=r"vif1\.0") as failure:
        links.change(old, Change(up=True))
    assert failure.value.errno == errno.ENODEV
    assert not links.find("vif1.0").up


def test_a_link_renamed_by_others_is_still_ours(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    net.ip("link", "set", "dev", "vif1.0", "name", "other")
    links.change(link, Change(up=True))
    assert links.get(link.index).name == "other"
    assert links.find("other").up


def test_links_that_come_and_go_while_we_list(net, links):
    """The kernel says that a dump was interrupted, and it is asked again."""
    net.add_bridge("xenbr0")
    lines = [
        line
        for n in range(150)
        for line in (f"link add name b{n} type bridge", f"link delete dev b{n}")
    ]
    thread = threading.Thread(target=batch, args=(net, lines))
    thread.start()
    lists = 0
    while thread.is_alive():
        assert "xenbr0" in {bridge.name for bridge in links.bridges()}
        lists += 1
    thread.join()
    assert lists > 5


# Many


def test_many_links(net, links):
    batch(net, [f"link add name xenbr{n} type bridge" for n in range(MANY)])
    found = links.bridges()
    assert {bridge.name for bridge in found} == {f"xenbr{n}" for n in range(MANY)}
    assert all(links.get(bridge.index) == bridge for bridge in found)


def test_many_addresses_and_routes(net, links):
    net.add_tap("other")
    net.ip("link", "set", "dev", "other", "up")
    net.ip("address", "add", "198.51.100.1/24", "dev", "other")
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links.change(link, Change(up=True))
    for number in range(MANY):
        high, low = divmod(number, 256)
        links.change(link, Address(f"10.9.{high}.{low}", 32))
        links.change(link, Route(f"10.8.{high}.{low}/32", 2))
        links.change(link, Route(f"2001:db8::{number:x}/128", 2))
    addresses = [address for address in links.addresses(link) if ":" not in address.text]
    assert len(addresses) == MANY
    assert len([route for route in links.routes(link) if route.metric == 2]) == 2 * MANY
    assert next(a.text for a in links.addresses(links.find("other"))) == "198.51.100.1"
    links.change(link, Flush())
    assert links.addresses(link) == []
    assert "198.51.100.1/24" in net.addresses("other")


@pytest.mark.parametrize("count", [0, 3, 1500], ids=["none", "few", "many"])
def test_what_the_kernel_gives_a_link_that_goes_up_is_not_flushed(net, links, count):
    """Of many addresses, the kernel tells the last ones when the link is up already.

    Before Linux 6.9 those of IPv6, however few, if there are any of IPv4.
    """
    net.ip("link", "set", "dev", net.add_vif("vif1.0"), "up")
    link = links.find("vif1.0")
    lines = [f"addr add 10.9.{n // 250}.{n % 250 + 1}/32 dev vif1.0" for n in range(count)]
    batch(net, [*lines, "addr add fe80::77/64 dev vif1.0 nodad", "addr add 2001:db8::1 dev vif1.0"])
    links.change(link, Flush(), Change(up=True))
    wait_until(lambda: links.addresses(link), "the kernel has given it an address")
    left = {address.text for address in links.addresses(link)}
    assert len(left - {"fe80::77"}) == 1
    assert all(text.startswith("fe80:") for text in left)
    assert count or "fe80::77" not in left


def test_an_address_for_one_other_end_is_not_the_one_that_is_added(net, links):
    """The kernel has a route to that end, a former guest perhaps."""
    net.add_vif("vif1.0")
    net.ip("address", "add", "192.0.2.1", "peer", "10.0.0.9/32", "dev", "vif1.0")
    link = links.find("vif1.0")
    links.change(link, Flush(), Address("192.0.2.1", 32), Change(up=True))
    assert net.addresses("vif1.0") == ["192.0.2.1/32"]
    assert net.routes() == []


def test_more_steps_than_fit_into_a_datagram(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    steps = [Address(f"10.9.{n // 250}.{n % 250 + 1}", 32) for n in range(MANY)]
    wrong = Route("10.8.0.1/32", 2, "203.0.113.1")
    errors = links.apply(link, [*steps[:200], wrong, *steps[200:], Change(up=True), wrong])
    assert [error.errno for error in errors if error is not None] == [errno.ENETDOWN, errno.EINVAL]
    assert (errors.index(errors[200]), len(errors)) == (200, MANY + 3)
    assert len([a for a in links.addresses(link) if ":" not in a.text]) == MANY


def test_several_threads(net, links):
    names = [f"xenbr{n}" for n in range(8)]
    batch(net, [f"link add name {name} type bridge" for name in names])
    wrong = []

    def work(name, mtu):
        for _ in range(50):
            link = links.find(name)
            links.change(link, Change(mtu=mtu))
            found = links.get(link.index)
            if (found.name, found.mtu) != (name, mtu):
                wrong.append((name, found))

    threads = [
        threading.Thread(target=work, args=(name, 1400 + number))
        for number, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What handlers rely on


def test_where_ipv6_is_off(net, links):
    """handlers/routed.py forgives these numbers."""
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links.change(link, Change(up=True))
    net.run("sysctl", "-w", "net/ipv6/conf/vif1.0/disable_ipv6=1")
    with pytest.raises(PermissionError):
        links.change(link, Route("2001:db8::2/128"))
    with pytest.raises(OSError, match=r"vif1\.0") as failure:
        links.change(link, Neighbour("2001:db8::2", "00:16:3e:00:00:01"))
    assert failure.value.errno == errno.EINVAL
    links.change(link, Address("10.0.0.1", 32))
    links.change(link, Route("10.0.0.2/32"))
    assert [route.destination for route in links.routes(link)] == ["10.0.0.2/32"]


def test_a_route_as_iproute2_has_it(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links.change(link, Address("192.0.2.1", 32))
    links.change(link, Change(up=True))
    links.change(link, Route("10.0.0.2/32", 2, "192.0.2.1"))
    links.change(link, Route("2001:db8::2/128", 2))
    (line,) = net.routes()
    assert line.startswith("10.0.0.2 dev vif1.0 scope link src 192.0.2.1 metric 2")
    assert net.routes_over("vif1.0")["2001:db8::2"] == (2, "")


def test_not_those_of_other_tables(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links.change(link, Change(up=True))
    net.ip("route", "add", "10.0.0.3", "dev", "vif1.0", "table", "77")
    assert [r for r in links.routes(link) if ":" not in r.destination] == []


def test_a_default_route(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links.change(link, Change(up=True))
    net.ip("route", "add", "default", "dev", "vif1.0", "metric", "5")
    (found,) = [route for route in links.routes(link) if route.metric == 5]
    assert found == Route("0.0.0.0/0", 5)
    links.delete_route(link, found)
    assert [route for route in links.routes(link) if route.metric == 5] == []


def test_proxy_arp_of_a_link_that_is_gone(net, links):
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    net.delete("vif1.0")
    with pytest.raises(OSError, match=r"vif1\.0") as failure:
        links.change(link, Change(proxy_arp=True))
    assert failure.value.errno == errno.ENODEV


def test_closed_and_used_again(net, links):
    net.add_bridge("xenbr0")
    assert links.find("xenbr0")
    for _ in range(2):
        links.close()
    assert links.find("xenbr0")


# Messages


def test_an_answer_to_somebody_else_is_not_ours(net, links):
    """A request that was given up may be answered later."""
    net.add_bridge("xenbr0")
    with contextlib.closing(rtnetlink.Rtnetlink()) as channel:
        everything = link_messages.wanted()
        flags = rt.NLM_F_REQUEST | rt.NLM_F_DUMP
        header = rt.HEADER.pack(rt.HEADER.size + len(everything), rt.RTM_GETLINK, flags, 77, 0)
        channel._socket.send(header + everything)
        request = Request(rt.RTM_GETLINK, link_messages.wanted(name="xenbr0"))
        (found,) = channel.exchange(request).messages
        assert link_messages.link(found).name == "xenbr0"


def test_a_kernel_that_does_not_answer(net, links):
    """A sentence of it, as for all that the kernel does to a link."""
    net.add_bridge("xenbr0")
    link = links.find("xenbr0")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, genetlink.TIMEVAL.pack(0, 10000))
        links._kernel._socket.close()
        links._kernel._socket = ours
        with pytest.raises(OSError, match="the kernel has not answered for 5 s") as raised:
            links.change(link, Change(up=True))
    assert (raised.value.errno, raised.value.filename) == (errno.ETIMEDOUT, "xenbr0")


def test_answers_that_did_not_fit_into_the_buffer_are_the_loss_of_one(net, links):
    """The kernel tells nothing more to such a socket until it was read to its end."""
    net.add_vif("vif1.0")
    link = links.find("vif1.0")
    links._kernel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    refused = [Route("10.0.0.2/32", 2, "203.0.113.1")] * 40
    with pytest.raises(OSError, match="No buffer space") as raised:
        links.apply(link, refused)
    assert raised.value.errno == errno.ENOBUFS
    assert links.find("vif1.0") == link
    assert [error.errno for error in links.apply(link, refused)] == [errno.ENETDOWN] * 40


def test_a_dump_that_was_given_up_keeps_out_no_other(net, links, monkeypatch):
    """The kernel refuses a socket another one until all is read (EBUSY)."""
    net.add_vif("vif1.0")
    batch(net, [f"addr add 10.9.{n // 250}.{n % 250 + 1}/32 dev vif1.0" for n in range(1500)])
    link = links.find("vif1.0")
    with monkeypatch.context() as broken:
        broken.setattr(genetlink, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            links.change(link, Flush(), Change(mtu=1400))
    assert links.apply(link, [Flush(), Change(mtu=1300)]) == [None, None]
    assert links.addresses(link) == []


def interrupted(_):
    raise KeyboardInterrupt


@given(st.binary(max_size=200))
def test_any_bytes_are_split(data):
    for _, _, _, body in itertools.islice(rtnetlink.split(data), 100):
        assert len(body) >= rt.HEADER.size or body == data[-len(body) :]


def test_messages_are_aligned():
    one = rt.HEADER.pack(18, rt.RTM_GETLINK, 0, 1, 0) + b"ab"
    two = rt.HEADER.pack(16, rt.RTM_GETLINK, 0, 2, 0)
    assert [sequence for _, _, sequence, _ in rtnetlink.split(one + bytes(2) + two)] == [1, 2]


def test_links_as_pyroute2_reads_them(net, links):
    """Of messages that the kernel has made, with all the attributes of all kinds of links."""
    net.add_bridge("xenbr0", 9000)
    net.add_vif("vif1.0")
    net.add_tap("vif1.0-emu")
    net.ip("link", "set", "dev", "vif1.0", "master", "xenbr0", "up")
    for name, setting in zip(BRIDGES[1:], ("nf_call_iptables", "nf_call_ip6tables"), strict=True):
        net.add_bridge(name)
        net.ip("link", "set", "dev", name, "type", "bridge", setting, "1")
    with contextlib.closing(rtnetlink.Rtnetlink()) as channel:
        found = channel.dump_raw(rt.RTM_GETLINK, link_messages.wanted())
    assert len(found) >= 4
    for data in found:
        ours, theirs = link_messages.link(data), decode(data)
        info = theirs.get_attr("IFLA_LINKINFO")
        assert (
            ours
            == Link(
                theirs["index"],
                theirs.get_attr("IFLA_IFNAME"),
                (info.get_attr("IFLA_INFO_KIND") if info else None) or "",
                theirs.get_attr("IFLA_ADDRESS") or "",
                theirs.get_attr("IFLA_MTU"),
                bool(theirs["flags"] & rt.IFF_UP),
                theirs.get_attr("IFLA_MASTER") or 0,
                (info.get_attr("IFLA_INFO_SLAVE_KIND") if info else None) or "",
                group_learning=theirs.get_attr("IFLA_IFNAME") in BRIDGES,
                vlan_filtering=ours.vlan_filtering,  # as the kernel was built
                calls_iptables=theirs.get_attr("IFLA_IFNAME") in BRIDGES[1:],
            )
        )
    assert {link_messages.link(data).master_kind for data in found} == {"", "bridge"}
    assert {link.name for data in found if (link := link_messages.link(data)).kind} >= {*BRIDGES}


def test_this_thread_only(net):
    """The namespace is the thread's; the rest of this process is where it was."""
    with net.entered():
        inside = os.readlink("/proc/thread-self/ns/net")
    assert inside != os.readlink("/proc/thread-self/ns/net")
