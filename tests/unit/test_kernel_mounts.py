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
    assert line == mounts.Line(Number(253, 0), b"/", b"ext4", b"/dev/vda1", read_only=False)


def test_optional_fields_may_be_missing_or_many():
    assert [line.number for line in mounts.parse(READ_ONLY + BIND_READ_ONLY)] == [Number(7, 3)] * 2


def test_an_empty_source():
    assert only(NO_SOURCE).source == b""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/a\040b", b"/a b"),
        (rb"/tab\011", b"/tab\t"),
        (rb"/line\012", b"/line\n"),
        (rb"/back\134040", rb"/back\040"),
        (b"/cr\r", b"/cr\r"),
        (b"/\xff\xc3", b"/\xff\xc3"),
    ],
)
def test_odd_mount_points(written, meant):
    assert only(b"9 1 8:1 / " + written + b" rw - ext4 /dev/sda1 rw\n").point == meant


def test_an_odd_source():
    assert only(rb"9 1 0:40 / /m rw - btrfs /dev/my\040disk rw" + b"\n").source == b"/dev/my disk"


def test_a_blank_that_a_file_system_did_not_escape():
    line = only(b"9 1 0:40 / /m rw - odd //server/my share ro,x\n")
    assert (line.kind, line.source, line.read_only) == (b"odd", b"//server/my share", True)


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


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/etc/passwd", (253, 0)),
        ("/mnt/a", (7, 3)),
        ("/mnt/a/disk.img", (7, 3)),
        ("/mnt/ab", (253, 0)),
    ],
)
def test_the_file_system_of_a_path(monkeypatch, tmp_path, path, number):
    (tmp_path / "mountinfo").write_bytes(ROOT + PROC + READ_ONLY)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "mountinfo"))
    assert mounts.finder()(path) == os.makedev(*number)


def test_what_was_mounted_last_hides_the_rest(monkeypatch, tmp_path):
    over = b"40 30 8:1 / /mnt/a rw - ext4 /dev/sda1 rw\n"
    (tmp_path / "mountinfo").write_bytes(ROOT + READ_ONLY + over)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "mountinfo"))
    assert mounts.finder()("/mnt/a/x") == os.makedev(8, 1)


@pytest.mark.parametrize("kind", [b"btrfs", b"overlay"])
def test_a_file_system_with_several_device_numbers(monkeypatch, tmp_path, kind):
    mount = b"40 24 0:40 / /mnt/a rw - %s none rw\n" % kind
    (tmp_path / "mountinfo").write_bytes(ROOT + mount)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "mountinfo"))
    assert mounts.finder()("/mnt/a/x") is None
    assert mounts.finder()("/mnt/b") == os.makedev(253, 0)


def test_a_path_of_nowhere(monkeypatch, tmp_path):
    (tmp_path / "mountinfo").write_bytes(PROC)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "mountinfo"))
    assert mounts.finder()("/srv/a") is None
