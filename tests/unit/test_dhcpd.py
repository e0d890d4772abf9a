"""The edits of a DHCP server's files: only what is a guest's changes, byte for byte."""

from __future__ import annotations

import os

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hotplug.handlers import dhcpd
from hotplug.handlers.dhcpd import Guest

GUEST = Guest("dom1", "00:16:3e:00:00:01", "10.0.1.1", "10.0.1.128")
OTHERS = ("dom1-2", "dom10", "xdom1", "dom", "DOM1")

# Files as nobody should write them: lines of pieces that nearly are what we look for.
PIECES = st.sampled_from(
    [b"host", b"dom1", b"dom10", b"dom1-2", b"{", b"}", b"{ x; }", b"#", b" ", b"\t", b'"', b"'"]
)
NOISE = st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=8).map(b"".join)
LINES = st.one_of(
    NOISE,
    st.sampled_from(OTHERS).map(lambda name: Guest(name, "m", "a", "r").line.rstrip(b"\n")),
)
FILES = st.lists(LINES, max_size=8).map(b"\n".join)
SETTING_LINES = st.one_of(
    NOISE,
    st.sampled_from(
        [
            b'INTERFACES="eth0 vif1.10 "',
            b"INTERFACES='eth0'",
            b"INTERFACES=eth0",
            b'INTERFACESv4=""  # served',
            b'INTERFACESv6="eth0"',
            b'DHCPDARGS="-q xvif1.1 vif1.1x"',
            b'# INTERFACES=""',
            b'INTERFACES="unfinished',
            rb'INTERFACES="a\"b"',
            b' DHCPD_INTERFACE=""',
        ]
    ),
)
SETTINGS = st.lists(SETTING_LINES, max_size=8).map(b"\n".join)


def has_entry(content):
    return dhcpd.without_guest(content, GUEST.name) != content


def test_line():
    assert GUEST.line == (
        b"host dom1 { hardware ethernet 00:16:3e:00:00:01; fixed-address 10.0.1.1;"
        b' option routers 10.0.1.128; option host-name "dom1"; }\n'
    )


@given(FILES)
@example(b"")
@example(b"no newline at the end")
@example(b"# host dom1 { }\n")
@example(b"host dom1 { x; } host dom2 { y; }\n")
@example(b"host dom1 {\n  hardware ethernet x;\n}\n")
def test_a_guest_that_comes_and_goes_leaves_no_trace(content):
    assume(not has_entry(content))
    there = dhcpd.with_guest(content, GUEST)
    ended = content + (b"\n" if content and not content.endswith(b"\n") else b"")
    assert there == ended + GUEST.line
    assert dhcpd.with_guest(there, GUEST) == there
    assert dhcpd.without_guest(there, GUEST.name) == ended


@given(FILES, FILES)
def test_a_guest_is_removed_from_wherever_it_is(before, after):
    assume(not has_entry(before + b"\n"))
    assume(not has_entry(after))
    content = before + b"\n" + GUEST.line + after
    assert dhcpd.without_guest(content, GUEST.name) == before + b"\n" + after


@pytest.mark.parametrize(
    "spelling",
    [
        b"host dom1 { hardware ethernet x; }",
        b"  host  dom1\t{hardware ethernet y;}  ",
        b"host dom1{}",
    ],
)
def test_other_spellings(spelling):
    assert dhcpd.without_guest(b"a\n" + spelling + b"\nb\n", "dom1") == b"a\nb\n"
    assert dhcpd.without_guest(b"a\n" + spelling, "dom1") == b"a\n"


@given(SETTINGS)
def test_a_link_that_comes_and_goes_leaves_no_trace(content):
    content = dhcpd.without_link(content, "vif1.1")
    there = dhcpd.with_link(content, "vif1.1")
    assert dhcpd.with_link(there, "vif1.1") == there
    gone = dhcpd.without_link(there, "vif1.1")
    assert dhcpd.with_link(gone, "vif1.1") == there
    # Only in the settings that list links, and there only blanks and quotes.
    lines = [
        before
        for before, after in zip(lines_of(content), lines_of(gone), strict=True)
        if before != after
    ]
    assert all(dhcpd.SETTING.match(line) for line in lines)
    assert [words_of(line) for line in lines_of(gone)] == [
        words_of(line) for line in lines_of(content)
    ]


def lines_of(content):
    return content.split(b"\n")


def words_of(line):
    return line.translate(None, b"\"' ")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'INTERFACES=""', b'INTERFACES="vif1.1 "'),
        (b'INTERFACES="eth0 "', b'INTERFACES="eth0 vif1.1 "'),
        (b'INTERFACES="eth0"', b'INTERFACES="eth0 vif1.1 "'),
        (b"INTERFACES='eth0'", b"INTERFACES='eth0 vif1.1 '"),
        (b"INTERFACES=eth0", b'INTERFACES="eth0 vif1.1 "'),
        (b"INTERFACES=", b'INTERFACES="vif1.1 "'),
        (b'INTERFACESv4=""  # x', b'INTERFACESv4="vif1.1 "  # x'),
        (b'DHCPDARGS="-q "', b'DHCPDARGS="-q vif1.1 "'),
        (b'DHCPD_INTERFACE="vif1.10 "', b'DHCPD_INTERFACE="vif1.10 vif1.1 "'),
        (b'INTERFACES="vif1.1 eth0 "', b'INTERFACES="eth0 vif1.1 "'),
        (b'INTERFACESv6=""', b'INTERFACESv6=""'),
        (b'#INTERFACES=""', b'#INTERFACES=""'),
        (b'INTERFACES="open', b'INTERFACES="open'),
    ],
)
def test_settings(before, after):
    for end in (b"", b"\n", b"\nOTHER=1\n"):
        assert dhcpd.with_link(before + end, "vif1.1") == after + end
        assert b"vif1.1 " not in dhcpd.without_link(after + end, "vif1.1")


def test_the_stock_script_can_remove_what_we_add():
    """Its sed looks for the name with a blank behind it."""
    there = dhcpd.with_link(b'INTERFACES="eth0"\n', "vif1.1")
    assert there.replace(b"vif1.1 ", b"", 1) == b'INTERFACES="eth0 "\n'


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "dhcpd.conf"
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    with open(path, "rb") as reader:
        assert dhcpd.edit(str(path), lambda content: content + b"new\n")
        assert reader.read() == b"old\n"  # who has it open has the old one
    assert path.read_bytes() == b"old\nnew\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(tmp_path) == ["dhcpd.conf"]


def test_what_does_not_change_is_not_written(tmp_path):
    path = tmp_path / "dhcpd.conf"
    path.write_bytes(b"old\n")
    before = path.stat().st_ino
    assert not dhcpd.edit(str(path), lambda content: content)
    assert path.stat().st_ino == before


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "dhcpd.conf"
    path.write_bytes(b"old\n")

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        dhcpd.edit(str(path), lambda _: b"new\n")
    assert path.read_bytes() == b"old\n"
    assert os.listdir(tmp_path) == ["dhcpd.conf"]


def test_a_leftover_of_a_killed_run_is_overwritten(tmp_path):
    path = tmp_path / "dhcpd.conf"
    path.write_bytes(b"old\n")
    (tmp_path / "dhcpd.conf.xen-hotplug").write_bytes(b"half of a longer content")
    assert dhcpd.edit(str(path), lambda _: b"new\n")
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["dhcpd.conf"]
