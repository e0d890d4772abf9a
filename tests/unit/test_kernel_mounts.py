"""mountinfo, as text."""

from __future__ import annotations

import os

import pytest

from hotplug.kernel import mounts
from hotplug.ports import Mount, Number

ROOT = b"24 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n"
READ_ONLY = b"30 24 7:3 / /mnt/a ro,relatime shared:2 master:1 - ext4 /dev/loop3 ro\n"
BIND_READ_ONLY = b"31 24 7:3 / /mnt/b ro,relatime - ext4 /dev/loop3 rw,data=ordered\n"
PROC = b"20 24 0:5 / /proc rw - proc proc rw\n"
NO_SOURCE = b"21 24 0:6 / /none rw -  tmpfs  rw\n".replace(b"-  tmpfs", b"- tmpfs")


def only(content):
    (line,) = mounts.parse(content)
    return line


def test_a_line():
    line = only(ROOT)
    assert line == mounts.Line(Number(253, 0), b"/dev/vda1", read_only=False)


def test_optional_fields_may_be_missing_or_many():
    assert [line.number for line in mounts.parse(READ_ONLY + BIND_READ_ONLY)] == [Number(7, 3)] * 2


def test_an_empty_source():
    assert only(NO_SOURCE).source == b""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/dev/a\040b", b"/dev/a b"),
        (rb"/dev/tab\011", b"/dev/tab\t"),
        (rb"/dev/line\012", b"/dev/line\n"),
        (rb"/dev/back\134040", rb"/dev/back\040"),
        (b"/dev/cr\r", b"/dev/cr\r"),
        (b"/dev/\xff\xc3", b"/dev/\xff\xc3"),
    ],
)
def test_odd_names(written, meant):
    content = b"9 1 0:40 / /mount/" + written + b" rw - btrfs " + written + b" rw\n"
    assert only(content).source == meant


def test_a_blank_that_a_file_system_did_not_escape():
    line = only(b"9 1 0:40 / /m rw - odd //server/my share ro,x\n")
    assert (line.source, line.read_only) == (b"//server/my share", True)


def test_the_superblock_decides_what_is_read_only():
    assert mounts.table(READ_ONLY) == {Number(7, 3): [Mount(Number(7, 3), read_only=True)]}
    # A read-only bind mount of what is mounted read-write elsewhere, or was a moment ago.
    assert mounts.table(BIND_READ_ONLY) == {Number(7, 3): [Mount(Number(7, 3), read_only=False)]}


def test_a_read_only_word_elsewhere_in_the_options_is_nothing():
    content = b"9 1 8:1 / /m rw - ext4 /dev/sda1 rw,ro,norecovery\n"
    assert not only(content).read_only


def test_only_block_devices_are_in_the_table():
    assert list(mounts.table(ROOT + PROC + NO_SOURCE)) == [Number(253, 0)]


def test_the_source_names_the_device_behind_an_anonymous_number(monkeypatch):
    def stat(path):
        assert path == b"/dev/sdb"
        return os.stat_result((0o60600, *(0,) * 9), {"st_rdev": os.makedev(8, 16)})

    monkeypatch.setattr(mounts.os, "stat", stat)
    content = b"9 1 0:40 /sub /m rw - btrfs /dev/sdb rw,subvol=/sub\n"
    assert mounts.table(content) == {Number(8, 16): [Mount(Number(8, 16), read_only=False)]}


def test_a_source_that_is_no_block_device():
    content = b"9 1 0:40 / /m rw - fuse /dev/fuse rw\n8 1 0:41 / /n rw - x /dev/gone rw\n"
    assert mounts.table(content) == {}
