from __future__ import annotations

import errno
import sys

import pytest

from hotplug.xenstore import protocol
from hotplug.xenstore.errors import ProtocolError
from hotplug.xenstore.protocol import HEADER, Inbox, Permission, messages

STREAM = [
    (protocol.READ, 1, b"value"),
    (protocol.READ, 2, b""),
    (protocol.WATCH_EVENT, 0, b"backend/vbd\0token\0"),
    (protocol.ERROR, 3, b"ENOENT\0"),
    (protocol.DIRECTORY, 0xFFFFFFFF, bytes(range(256)) * 16),
]


def wire(kind, req_id, payload, tx_id=0):
    return HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


WIRE = b"".join(wire(*message) for message in STREAM)


@pytest.fixture
def got():
    return []


@pytest.fixture
def inbox(got):
    return Inbox(messages(lambda *message: got.append(message)))


def test_the_header_is_four_words_in_the_order_of_xs_wire():
    assert HEADER.size == 16
    assert wire(protocol.READ, 0x01020304, b"", tx_id=7) == b"".join(
        number.to_bytes(4, sys.byteorder) for number in (2, 0x01020304, 7, 0)
    )


def test_a_stream_whole(inbox, got):
    inbox.feed(WIRE)
    assert got == STREAM


def test_a_stream_cut_at_every_byte():
    for cut in range(len(WIRE) + 1):
        got = []
        inbox = Inbox(messages(lambda *message, got=got: got.append(message)))
        inbox.feed(WIRE[:cut])
        inbox.feed(WIRE[cut:])
        assert got == STREAM, cut


def test_a_stream_byte_by_byte(inbox, got):
    for byte in WIRE:
        inbox.feed(bytes((byte,)))
    assert got == STREAM


def test_bytes_left_over_wait_for_the_rest(inbox, got):
    inbox.feed(WIRE + WIRE[:20])
    assert got == STREAM
    inbox.feed(WIRE[20:21])
    assert got == [*STREAM, STREAM[0]]


def test_it_says_how_much_is_missing(inbox):
    assert inbox.missing == 16
    inbox.feed(WIRE[:10])
    assert inbox.missing == 6
    inbox.feed(WIRE[10:17])
    assert inbox.missing == len(b"value") - 1
    inbox.feed(WIRE[17:21])
    assert inbox.missing == 16


def test_the_parser_takes_exactly_what_it_asked_for():
    got = []
    parser = messages(lambda *message: got.append(message))
    assert next(parser) == 16
    assert parser.send(WIRE[:16]) == 5
    assert got == []
    assert parser.send(b"value") == 16
    assert got == STREAM[:1]


def test_an_oversized_message_is_refused_before_it_is_read(inbox, got):
    inbox.feed(HEADER.pack(protocol.READ, 1, 0, protocol.PAYLOAD_MAX))
    with pytest.raises(ProtocolError, match="4097 bytes, the limit is 4096"):
        inbox.feed(bytes(4096) + HEADER.pack(protocol.READ, 1, 0, 4097))
    assert len(got) == 1


def test_errors_travel_by_name():
    for name in ("EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO"):
        assert protocol.error_number(name.encode() + b"\0") == getattr(errno, name)
    for name in ("ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM"):
        assert protocol.error_number(name.encode() + b"\0") == getattr(errno, name)
    assert protocol.error_number(b"EAGAIN") == errno.EAGAIN
    assert protocol.error_number(b"EWHATEVER\0") == errno.EPROTO


def test_watch_events():
    assert protocol.watch_event(b"a/b\0token\0") == ("a/b", b"token")
    assert protocol.watch_event(b"@releaseDomain\0t\0") == ("@releaseDomain", b"t")
    assert protocol.watch_event(b"a\0t\0more\0") == ("a", b"t")
    for broken in (b"", b"a", b"a\0", b"a\0b"):
        with pytest.raises(ProtocolError, match="without path and token"):
            protocol.watch_event(broken)


def test_names():
    assert protocol.names(b"") == []
    assert protocol.names(b"a\0") == ["a"]
    assert protocol.names(b"a\0bc\0d\0") == ["a", "bc", "d"]


def test_directory_parts():
    assert protocol.directory_part(b"17\0a\0b\0") == (b"17", b"a\0b\0")
    assert protocol.directory_part(b"17\0\0") == (b"17", b"\0")
    with pytest.raises(ProtocolError, match="without a generation"):
        protocol.directory_part(b"17")


def test_permissions():
    permissions = (
        Permission(0),
        Permission(5, read=True),
        Permission(6, write=True),
        Permission(32751, read=True, write=True),
    )
    packed = b"n0\0r5\0w6\0b32751\0"
    assert protocol.pack_permissions(permissions) == packed
    assert protocol.unpack_permissions(packed) == permissions
    for broken in (b"x0\0", b"r\0", b"r5x\0", b"\0", b"r-1\0"):
        with pytest.raises(ProtocolError, match="not a permission"):
            protocol.unpack_permissions(broken)
