"""The journal: what a run that died leaves behind is what counts."""

import fcntl
import os

import pytest

from hotplug.agent.deadline import EventDeadline
from hotplug.agent.journal import FileJournal, last_attachment
from hotplug.errors import LockTimeoutError
from hotplug.events import Device
from hotplug.ports import Attachment

DISK = Device("vbd", 5, 51712)
FIRST = Attachment("file", {"path": "/a", "inode": 3})
SECOND = Attachment("file", {"path": "/a", "inode": 3, "loop": 7})


@pytest.fixture
def journal(tmp_path):
    return FileJournal(str(tmp_path))


def claim(journal):
    return journal.claim(DISK, EventDeadline(5))


def test_what_is_recorded_is_there_again(journal):
    with claim(journal) as entry:
        assert entry.attachment is None
        entry.record(FIRST)
        entry.record(SECOND)
    with claim(journal) as entry:
        assert entry.attachment == SECOND
    assert journal.devices() == [DISK]
    assert journal.peek(DISK) == SECOND
    assert journal.knows(DISK)


def test_nothing_attached_leaves_no_file(journal, tmp_path):
    with claim(journal):
        pass
    with claim(journal) as entry:
        entry.record(FIRST)
        entry.clear()
    assert os.listdir(tmp_path / "journal") == []
    assert not journal.knows(DISK)
    assert journal.peek(DISK) is None


def test_cut_at_every_byte(journal, tmp_path):
    with claim(journal) as entry:
        entry.record(FIRST)
        entry.record(SECOND)
    content = (tmp_path / "journal" / DISK.key).read_bytes()
    first_line = content.index(b"\n") + 1
    for length in range(len(content) + 1):
        expected = None if length < first_line else FIRST
        if length == len(content):
            expected = SECOND
        assert last_attachment(content[:length]) == expected


def test_odd_bytes_in_paths(journal):
    odd = Attachment("file", {"path": "/\udcff\n\\"})
    with claim(journal) as entry:
        entry.record(odd)
    assert journal.peek(DISK) == odd


def test_a_claim_waits_for_the_other_and_not_for_ever(journal):
    with claim(journal), pytest.raises(LockTimeoutError, match="another run for backend/vbd/5"):
        journal.claim(DISK, EventDeadline(0.01))
    with claim(journal):
        assert journal.try_claim(DISK) is None


def test_a_file_that_was_replaced_while_we_waited(journal, tmp_path, monkeypatch):
    path = tmp_path / "journal" / DISK.key
    real = fcntl.flock

    def unlinked_first(fd, operation):
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", unlinked_first)
    with claim(journal) as entry:
        entry.record(FIRST)
    assert journal.peek(DISK) == FIRST
