"""The index of who holds which disk: what makes it read what, and that it forgets nothing."""

import errno

import pytest
from fakes_store import FakeStore

from hotplug.agent.holders import StoreHolders, list_backends
from hotplug.events import Device
from hotplug.ports import Number

KEYS = ("physical-device", "mode", "params")
DISK = Number(0xFD, 3)


class CountingStore(FakeStore):
    """Notes what each request asks for."""

    def __init__(self, **options):
        super().__init__(**options)
        self.requests = []

    def survey(self, directories, nodes):
        self.requests.append([*directories, *nodes])
        return super().survey(directories, nodes)


def disk(store, domid, number="fd:3", *, kind="vbd", devid=51712):
    path = f"backend/{kind}/{domid}/{devid}"
    for key, value in {"params": "/dev/x", "mode": "w", "physical-device": number}.items():
        store.write(f"{path}/{key}", value.encode())
    return Device(kind, domid, devid)


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def index(store):
    """An index that a watch keeps; it has read everything once."""
    made = StoreHolders(store)
    store.watch("backend", "index", lambda path, _: made.changed(path))
    made.watched(None)
    return made


def users(index, number=DISK):
    return sorted(holder.device.domid for holder in index.of(number))


def one_goes_and_one_comes(store, index):
    """Guest 7 with its disk, and the disk of guest 6; that of guest 5 stays."""
    disk(store, 5)
    disk(store, 7)
    index.refresh()
    store.remove("backend/vbd/7/51712")
    store.remove("backend/vbd/7")
    disk(store, 6)


def asked(store, index):
    """What one refresh asks for."""
    store.requests.clear()
    index.refresh()
    return [path for request in store.requests for path in request]


def test_everything_is_read_once(store, index):
    disk(store, 5)
    disk(store, 6, kind="vbd3")
    disk(store, 7, "fd:4")
    index.refresh()
    assert users(index) == [5, 6]
    assert asked(store, index) == ["backend/vbd"]  # a round trip, for the events it brings


def test_only_what_changed_is_read_again(store, index):
    disk(store, 5)
    index.refresh()
    disk(store, 6)
    assert asked(store, index) == [f"backend/vbd/6/51712/{k}" for k in KEYS]
    assert users(index) == [5, 6]


def test_what_changed_comes_along_with_something_else(store, index):
    """With lists of guests, with backends to be read; but for one's own."""
    one_goes_and_one_comes(store, index)
    mine = disk(store, 8)
    store.write("a", b"1")
    store.requests.clear()
    assert index.read_along(mine, ["a", "b"]) == [b"1", None]
    assert len(store.requests) == 1
    assert users(index) == [5, 6]
    index.refresh(mine, asked=True)
    assert len(store.requests) == 1  # none of its own


def test_a_list_that_came_along_names_more_to_read(store):
    index = StoreHolders(store)
    index.watched(None)
    index.refresh()
    disk(store, 7)
    index.changed("backend/vbd/7")
    mine = Device("vbd", 8, 51712)
    assert index.read_along(mine, ["a"]) == [None]
    assert users(index) == []
    index.refresh(mine, asked=True)
    assert users(index) == [7]


def test_a_holder_stays_known_while_its_guest_is_listed_along(store, index):
    """Somebody else may be at his sharing check meanwhile."""
    disk(store, 5)
    index.refresh(Device("vbd", 7, 1))
    index.changed("backend/vbd/5")  # its permissions, for instance
    assert index.read_along(Device("vbd", 8, 1), ["a"]) == [None]
    assert users(index) == [5]


def test_what_was_known_of_a_backend_stays_when_its_guest_is_listed(store, index):
    device = disk(store, 5)
    index.refresh()
    store.forbid(device.path)
    index.changed("backend/vbd/5")
    index.refresh()
    assert index.hidden() == [device.path]
    assert users(index) == [5]


def test_a_hidden_backend_stays_hidden_while_its_guest_is_listed_along(store, index):
    device = disk(store, 5)
    store.forbid(device.path)
    index.refresh()
    assert index.hidden() == [device.path]
    index.changed("backend/vbd/5")
    index.read_along(Device("vbd", 8, 1), ["a"])
    assert index.hidden() == [device.path]


@pytest.mark.parametrize("others", [0, 9])
def test_too_much_does_not_come_along(store, index, others):
    """Everything, or more than the client sends at once."""
    if others:
        index.refresh()
    for number in range(others):
        disk(store, number)
    store.requests.clear()
    assert index.read_along(Device("vbd", 10, 1), ["a"]) == [None]
    assert store.requests == []
    index.refresh()
    assert users(index) == list(range(others))


def test_what_may_not_be_read_along_is_refused(store, index):
    index.refresh()
    mine = disk(store, 8)
    other = disk(store, 9)
    store.forbid(other.path)
    assert index.read_along(mine, ["a"]) == [None]
    assert index.hidden() == [other.path]
    store.forbid("secret")
    disk(store, 5)
    with pytest.raises(PermissionError) as caught:
        index.read_along(mine, ["a", "secret"])
    assert caught.value.filename == "secret"
    assert users(index) == [5]


def test_other_keys_cost_nothing(store, index):
    device = disk(store, 5)
    index.refresh()
    store.write(f"{device.path}/state", b"4")
    assert asked(store, index) == ["backend/vbd"]


def test_a_guest_that_goes_costs_no_reading_of_others(store, index):
    disk(store, 5)
    disk(store, 7)
    index.refresh()
    store.remove("backend/vbd/7")
    assert asked(store, index) == ["backend/vbd/7"]
    assert users(index) == [5]


def test_a_guest_that_goes_with_its_disk_costs_one_round_trip(store, index):
    """Its directory is listed while its disks, and those of others, are read."""
    one_goes_and_one_comes(store, index)
    asked(store, index)
    assert len(store.requests) == 1
    assert users(index) == [5, 6]


def test_what_a_guest_has_now_is_read_too(store):
    """An event of its directory is enough: there may be none of its disks."""
    index = StoreHolders(store)
    index.watched(None)
    index.refresh()
    disk(store, 7)
    index.changed("backend/vbd/7")
    index.refresh()
    assert users(index) == [7]


def test_ones_own_disk_is_left_for_the_next(store, index):
    """Who adds a disk need not know his own; the next one must."""
    disk(store, 5)
    index.refresh()
    mine = disk(store, 6)
    store.requests.clear()
    index.refresh(mine)
    assert store.requests == [["backend/vbd"]]
    index.refresh(mine)
    assert users(index) == [5]
    other = disk(store, 7)
    index.refresh(other)
    assert users(index) == [5, 6]


def test_a_first_look_at_everything_leaves_nobody_out(store, index):
    mine = disk(store, 5)
    disk(store, 6)
    index.refresh(mine)
    assert users(index) == [5, 6]


def test_a_disk_that_is_given_another_device(store, index):
    device = disk(store, 5)
    index.refresh()
    store.write(f"{device.path}/physical-device", b"fd:4")
    index.refresh()
    assert users(index) == []
    assert users(index, Number(0xFD, 4)) == [5]


FAILURES = (
    OSError(errno.EIO, "the store is sick"),
    TimeoutError(errno.ETIMEDOUT, "the store is silent"),
    PermissionError(errno.EACCES, "the store says no", "somewhere else"),
)


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_nothing_is_lost_when_everything_cannot_be_read(store, index, error, after):
    disk(store, 5)
    index.refresh()
    store.remove("backend/vbd")  # of everything
    disk(store, 5)
    disk(store, 6)
    store.fail_next(error, after=after)
    with pytest.raises(OSError, match="the store"):
        index.refresh()
    assert 5 in users(index)
    index.refresh()
    assert users(index) == [5, 6]


@pytest.mark.parametrize("error", FAILURES)
def test_nothing_is_lost_when_a_change_cannot_be_read(store, index, error):
    index.refresh()
    disk(store, 5)
    store.fail_next(error)
    with pytest.raises(OSError, match="the store"):
        index.refresh()
    index.refresh()
    assert users(index) == [5]


def test_without_a_watch_every_refresh_reads_everything(store):
    index = StoreHolders(store)
    disk(store, 5)
    index.refresh()
    disk(store, 6)
    store.fail_next(OSError(errno.EIO, "the store is sick"), after=2)
    with pytest.raises(OSError, match="the store is sick"):
        index.refresh()
    index.refresh()
    assert users(index) == [5, 6]


@pytest.mark.parametrize(
    "path",
    ["backend/vbd", "backend/vbd/9", "backend/vbd/9/51712", "backend/vbd/9/51712/mode"],
)
def test_what_may_not_be_read_is_hidden_until_it_may(store, index, path):
    disk(store, 9)
    disk(store, 5, kind="vbd3")
    store.forbid(path)
    index.refresh()
    assert index.hidden() == [path.removesuffix("/mode")]
    assert users(index) == [5]
    assert asked(store, index) == ["backend/vbd"]
    store.allow(path)
    index.refresh()
    assert index.hidden() == []
    assert users(index) == [5, 9]


def test_what_is_hidden_later_is_still_known(store, index):
    disk(store, 5)
    disk(store, 9)
    index.refresh()
    store.forbid("backend/vbd/9")
    store.fire("/local/domain/0/backend/vbd/9")
    index.refresh()
    assert users(index) == [5, 9]
    assert index.hidden() == ["backend/vbd/9"]


def test_a_hidden_directory_that_comes_and_goes(store, index):
    disk(store, 5)
    index.refresh()
    store.mkdir("backend/vbd/9")
    store.forbid("backend/vbd/9")
    index.refresh()
    assert index.hidden() == ["backend/vbd/9"]
    store.allow("backend/vbd/9")
    store.remove("backend/vbd/9")
    index.refresh()
    assert index.hidden() == []


def test_backends_are_listed_without_those_that_may_not_be(store):
    visible = disk(store, 5)
    disk(store, 9)
    store.forbid("backend/vbd/9")
    assert list_backends(store, ("vbd", "vbd3")) == [visible]
