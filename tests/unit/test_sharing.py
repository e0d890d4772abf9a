"""The sharing verdict, case by case (contract 3.2 to 3.4)."""

import pytest

from hotplug.errors import DeviceBusyError
from hotplug.events import Device
from hotplug.handlers.disk import Mode
from hotplug.handlers.sharing import Party, User, busy, same_vm, user_in_conflict
from hotplug.ports import Holder, Mount, Number

LOOP = Number(7, 63)


def holder(mode, domid=9):
    return Holder(Device("vbd", domid, 51712), b"7:3f", mode, b"")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (b"r", Mode.READ),
        (b"ro", Mode.READ),
        (b"r!", Mode.READ),
        (b"!", Mode.READ),
        (b"x", Mode.READ),
        (b"w", Mode.WRITE),
        (b"rw", Mode.WRITE),
        (b"w!", Mode.FORCED),
        (b"rw!", Mode.FORCED),
    ],
)
def test_mode_spellings(text, mode):
    assert Mode.parse(text) is mode


@pytest.mark.parametrize(
    ("me", "other", "same"),
    [
        (Party(1, b"/vm/a", None), Party(2, b"/vm/a", None), True),  # local migration
        (Party(1, b"/vm/a", None), Party(2, b"/vm/b", None), False),
        (Party(1, b"/vm/s", b"/vm/a"), Party(2, b"/vm/a", None), True),  # I serve the holder
        (Party(1, b"/vm/a", None), Party(2, b"/vm/s", b"/vm/a"), True),  # the holder serves me
        (Party(1, b"/vm/s", b"/vm/a"), Party(2, b"/vm/t", b"/vm/a"), True),
        (Party(1, b"/vm/s", b"/vm/a"), Party(2, b"/vm/t", b"/vm/b"), False),
        (Party(1, b"/vm/a", None), Party(2, None, None), True),  # being torn down
        (Party(1, None, None), Party(2, b"/vm/a", None), False),
        (Party(1, None, None), Party(2, None, None), False),  # a driver domain
        (Party(1, None, None), Party(1, None, None), True),  # one guest, two disks
        (Party(1, b"/vm/a", None), Party(2, None, None, readable=False), False),
        (Party(1, None, None, readable=False), Party(1, None, None, readable=False), True),
    ],
)
def test_same_vm(me, other, same):
    assert same_vm(me, other) is same


@pytest.mark.parametrize(
    ("wanted", "held", "conflict"),
    [
        (Mode.READ, b"r", None),
        (Mode.READ, b"w", User.GUEST),
        (Mode.READ, b"w!", User.GUEST),
        (Mode.READ, b"", None),
        (Mode.WRITE, b"r", User.GUEST),
        (Mode.WRITE, b"w", User.GUEST),
        (Mode.WRITE, b"w!", User.GUEST),
        (Mode.FORCED, b"w", None),
    ],
)
def test_other_guest(wanted, held, conflict):
    assert user_in_conflict(wanted, [], [holder(held)], lambda _: False) is conflict
    assert user_in_conflict(wanted, [], [holder(held)], lambda _: True) is None


@pytest.mark.parametrize(
    ("wanted", "read_only", "conflict"),
    [
        (Mode.READ, True, None),
        (Mode.READ, False, User.LOCAL),
        (Mode.WRITE, True, User.LOCAL),
        (Mode.WRITE, False, User.LOCAL),
        (Mode.FORCED, False, None),
    ],
)
def test_local_mount(wanted, read_only, conflict):
    mounts = [Mount(LOOP, read_only)]
    assert user_in_conflict(wanted, mounts, [], lambda _: False) is conflict


def test_local_is_reported_first():
    mounts = [Mount(LOOP, read_only=False)]
    assert user_in_conflict(Mode.WRITE, mounts, [holder(b"w")], lambda _: False) is User.LOCAL


def test_the_sentences():
    prefix = "Device /dev/x is mounted "
    error = busy(prefix, Mode.WRITE, User.GUEST)
    assert isinstance(error, DeviceBusyError)
    assert error.status == "busy"
    assert str(error) == (
        "Device /dev/x is mounted in a guest domain,\nand so cannot be mounted now."
    )
    assert str(busy(prefix, Mode.WRITE, User.LOCAL)) == (
        "Device /dev/x is mounted in the privileged domain,\nand so cannot be mounted by a guest."
    )
    assert str(busy(prefix, Mode.READ, User.GUEST)) == (
        "Device /dev/x is mounted read-write in a guest domain,\n"
        "and so cannot be mounted read-only now."
    )
    assert str(busy(prefix, Mode.READ, User.LOCAL)) == (
        "Device /dev/x is mounted read-write in the privileged domain,\n"
        "and so cannot be mounted read-only by a guest."
    )


@pytest.mark.parametrize(
    ("major", "minor", "text"), [(7, 10, "7:a"), (253, 16, "fd:10"), (259, 5, "103:5")]
)
def test_device_number_format(major, minor, text):
    assert str(Number(major, minor)) == text
