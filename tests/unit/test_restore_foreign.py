"""Images that Xen's own helper is given, because it may know more of them."""

from __future__ import annotations

import os

import pytest
from savefiles import Hvm, Pv, record

from hotplug.restore.foreign import is_foreign

UNKNOWN, OPTIONAL = 0x55, 0x80000055
RECORDS = 40  # where they begin
BEFORE = b"libxl's own"  # the image does not begin at the file's beginning


@pytest.fixture
def foreign(tmp_path):
    """Ask about a stream; nothing may be consumed by it."""

    def ask(stream):
        with (tmp_path / "image").open("w+b", buffering=0) as file:
            file.write(BEFORE + stream)
            file.seek(len(BEFORE))
            answer = is_foreign(file.fileno())
            assert file.tell() == len(BEFORE)
        return answer

    return ask


def with_record(stream, kind, at=RECORDS):
    return stream[:at] + record(kind, b"body") + stream[at:]


@pytest.mark.parametrize("guest", [Pv(), Pv(version=2), Hvm()])
def test_what_we_know(foreign, guest):
    assert not foreign(guest.stream())
    assert not foreign(with_record(guest.stream(), OPTIONAL))


@pytest.mark.parametrize("guest", [Pv(), Hvm()])
def test_an_unknown_record_before_the_memory(foreign, guest):
    stream = with_record(guest.stream(), OPTIONAL)
    assert foreign(with_record(stream, UNKNOWN))
    assert foreign(with_record(stream, UNKNOWN, RECORDS + 16))  # behind the other


def test_a_later_version(foreign):
    assert foreign(Pv(version=4).stream())


def test_behind_the_memory_nobody_looks(foreign):
    stream = Pv().stream()
    end = record(0)
    assert stream.endswith(end)
    assert not foreign(with_record(stream, UNKNOWN, len(stream) - len(end)))


@pytest.mark.parametrize("size", range(RECORDS + 17))
def test_a_file_that_ends(foreign, size):
    assert not foreign(Pv().stream()[:size])


def test_no_image(foreign):
    assert not foreign(b"x" * 100)
    assert not foreign(b"\xff" * 100)


def test_records_without_an_end(foreign):
    assert not foreign(Pv().stream()[:RECORDS] + record(OPTIONAL) * 5000 + record(UNKNOWN))


def test_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, with_record(Pv().stream()[:RECORDS], UNKNOWN))
    assert not is_foreign(reading)
    os.close(reading)
    os.close(writing)
