"""The control socket's packets, whole, cut and odd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplug.client import wire

TEXT = st.binary(max_size=20).map(lambda text: text.replace(b"\0", b""))
NAME = TEXT.map(lambda text: text.replace(b"=", b""))
REQUESTS = st.builds(
    wire.Request,
    st.sampled_from([b"run", b"status"]),
    TEXT,
    st.lists(TEXT, min_size=1, max_size=5).map(tuple),
    st.dictionaries(NAME, TEXT, max_size=5),
)

EXAMPLE = wire.Request(
    b"run",
    b"/root",
    (b"/etc/xen/scripts/block", b"add"),
    {b"XENBUS_PATH": b"backend/vbd/5/51712", b"netdev": b""},
)
PACKET = (
    b"xen-hotplug 1\0run\0/root\0" + b"2\0/etc/xen/scripts/block\0add\0"
    b"XENBUS_PATH=backend/vbd/5/51712\0netdev=\0"
)


def test_the_example():
    assert wire.pack_request(EXAMPLE) == PACKET
    assert wire.unpack_request(PACKET) == EXAMPLE


@given(REQUESTS)
def test_every_request_comes_back(request_):
    assert wire.unpack_request(wire.pack_request(request_)) == request_


def test_a_request_cut_anywhere_is_refused_or_shorter():
    """A packet is whole or not there; a cut one may lack variables but invents nothing."""
    for end in range(len(PACKET)):
        try:
            cut = wire.unpack_request(PACKET[:end])
        except wire.WireError:
            continue
        assert cut.argv == EXAMPLE.argv
        assert cut.variables.items() < EXAMPLE.variables.items()


@pytest.mark.parametrize(
    ("packet", "problem"),
    [
        (b"", "does not end with a NUL"),
        (PACKET[:-1], "does not end with a NUL"),
        (b"GET / HTTP/1.1\r\n\0", "unknown protocol"),
        (b"xen-hotplug 2\0run\0/\0001\0block\0", "unknown protocol"),
        (b"xen-hotplug 1\0run\0/\0", "number of arguments is missing"),
        (b"xen-hotplug 1\0run\0/\0two\0block\0add\0", "number of arguments is missing"),
        (b"xen-hotplug 1\0run\0/\0" + b"9" * 5000 + b"\0block\0", "number of arguments is missing"),
        (b"xen-hotplug 1\0run\0/\0-1\0block\0", "number of arguments is missing"),
        (b"xen-hotplug 1\0run\0/\x000\0", "0 arguments announced"),
        (b"xen-hotplug 1\0run\0/\x003\0block\0add\0", "3 arguments announced, 2 fields follow"),
        (b"xen-hotplug 1\0run\0/\x001\0block\0add\0", "is not NAME=VALUE"),
    ],
)
def test_what_is_no_request(packet, problem):
    with pytest.raises(wire.WireError, match=problem):
        wire.unpack_request(packet)


@given(st.integers(0, 255), st.binary(max_size=100))
def test_every_reply_comes_back(status, text):
    assert wire.unpack_reply(wire.pack_reply(status, text)) == (status, text)


def test_a_reply_is_cut_to_one_packet():
    packet = wire.pack_reply(1, b"x" * (2 * wire.MAX_PACKET))
    assert len(packet) == wire.MAX_PACKET


def test_the_end_of_the_connection_is_no_reply():
    with pytest.raises(wire.WireError, match="without an answer"):
        wire.unpack_reply(b"")
