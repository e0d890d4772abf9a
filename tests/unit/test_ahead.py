"""What is read of backends before their events come: what for, until when it is true, how much."""

import errno
import threading

import pytest
from fakes_store import FakeStore

from hotplug.agent import ahead
from hotplug.agent.ahead import Ahead
from hotplug.agent.holders import StoreHolders
from hotplug.errors import OutdatedError
from hotplug.events import Device
from hotplug.xenstore import ProtocolError

DISK, CARD = Device("vbd", 5, 51712), Device("vif", 5, 0)
KEYS = {
    DISK: {"frontend-id": "5", "params": "/srv/a.img", "type": "phy", "mode": "w"},
    CARD: {"frontend-id": "5", "mac": "00:16:3e:00:00:05", "bridge": "xenbr0", "handle": "0"},
}
BOTH = pytest.mark.parametrize("device", [DISK, CARD], ids=["disk", "card"])


class Store(FakeStore):
    """Counts what it is asked, and lets somebody come in between."""

    def __init__(self):
        super().__init__()
        self.surveys = []
        self.meanwhile = lambda: None

    def survey(self, directories, nodes):
        self.surveys.append(list(nodes))
        answer = super().survey(directories, nodes)
        self.meanwhile()
        return answer


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def known(store):
    """What an agent with a watch knows, once it has read."""
    holders = StoreHolders(store)
    made = Ahead(store, holders)
    store.watch("backend", "holders", lambda path, _: holders.changed(path))
    store.watch("backend", "ahead", lambda path, _: made.changed(path))
    holders.watched(None)
    holders.refresh()
    store.surveys.clear()
    return made


def write(store, device, **keys):
    for key, value in {**KEYS[device], **keys}.items():
        store.write(f"{device.path}/{key.replace('_', '-')}", value.encode())


@BOTH
def test_a_new_backend_is_read_and_handed_out_once(store, known, device):
    write(store, device, state="1")
    assert known.of(device) is None
    known.read()
    found = known.of(device)
    assert {key: value.decode() for key, value in found.values.items() if value} == KEYS[device]
    assert found.is_true
    assert known.of(device) is None
    assert known.of(Device(device.kind, device.domid, device.devid + 1)) is None


def test_both_spellings_of_a_path_are_one_backend(store, known):
    write(store, DISK)
    known.read()
    assert known.of(Device("vbd", 5, 51712, "/local/domain/0/backend")) is not None


@pytest.mark.parametrize("is_handed_out", [False, True])
@pytest.mark.parametrize(
    ("device", "key"),
    [(DISK, key) for key in (*ahead.READ["vbd"], "hotplug-status")]
    + [(CARD, key) for key in ahead.READ["vif"] if key],
    ids=lambda value: getattr(value, "kind", value),
)
def test_what_changes_is_not_true_any_more(store, known, device, key, is_handed_out):
    write(store, device)
    known.read()
    found = known.of(device) if is_handed_out else known._ready[device.path]
    store.write(f"{device.path}/{key}", b"other")
    assert not found.is_true
    assert known.of(device) is None


@pytest.mark.parametrize("key", ["state", "online", "hotplug-error", "feature-sg", "params/below"])
def test_what_says_nothing_of_the_device_changes_nothing(store, known, key):
    write(store, DISK)
    known.read()
    store.write(f"{DISK.path}/{key}", b"2")
    assert known.of(DISK).is_true


@pytest.mark.parametrize(
    "path", [DISK.path, "backend/vbd/5", "backend/vbd", "backend"], ids=lambda path: path
)
def test_what_goes_is_forgotten(store, known, path):
    write(store, DISK)
    known.read()
    found = known.of(DISK)
    store.remove(path)
    assert not found.is_true
    known.read()
    assert known._known == {}


def test_who_may_read_a_backend_is_set_after_its_keys(store, known):
    write(store, DISK)
    known.read()
    store.set_permissions(DISK.path, store.get_permissions(DISK.path))
    known.read()
    assert known.of(DISK).is_true


def test_what_is_not_complete_yet(store, known):
    """Who writes key by key may be read in between."""
    keys = dict(KEYS[DISK])
    mode = keys.pop("mode")
    for key, value in keys.items():
        store.write(f"{DISK.path}/{key}", value.encode())
    known.read()
    assert known.of(DISK) is None
    store.write(f"{DISK.path}/mode", mode.encode())
    known.read()
    assert known.of(DISK) is not None


def test_who_goes_takes_nobody_else_along(store, known):
    other = Device("vbd", 51, 51712)
    write(store, DISK)
    KEYS[other] = KEYS[DISK]
    write(store, other)
    known.read()
    store.remove("backend/vbd/5")
    assert known.of(other).is_true


@BOTH
def test_a_changed_wish_is_read_again(store, known, device):
    key = {"vbd": "mode", "vif": "bridge"}[device.kind]
    write(store, device)
    known.read()
    store.write(f"{device.path}/{key}", b"r")
    known.read()
    assert known.of(device).values[key] == b"r"


@pytest.mark.parametrize(
    ("device", "keys"),
    [
        (DISK, {"params": ""}),
        (DISK, {"mode": ""}),
        (DISK, {"frontend_id": ""}),
        (DISK, {"physical_device": "7:0"}),
        (CARD, {"mac": ""}),
        (CARD, {"hotplug_status": "connected"}),
        (CARD, {"hotplug_status": "error"}),
    ],
    ids=str,
)
def test_what_is_incomplete_or_served_is_left_to_the_event(store, known, device, keys):
    write(store, device, **keys)
    known.read()
    assert known.of(device) is None


def test_an_empty_status_is_none(store, known):
    """libxl makes the key for the card's driver."""
    write(store, CARD, hotplug_status="")
    known.read()
    assert known.of(CARD) is not None


@pytest.mark.parametrize("path", ["backend/vbd/5/x/params", "backend/vbd/params", "backend/params"])
def test_what_is_no_backend_is_not_read(store, known, path):
    store.write(path, b"/srv/a.img")
    known.read()
    assert [nodes for nodes in store.surveys if any("params" in node for node in nodes)] == []


def test_other_kinds_are_not_read(store, known):
    store.write("backend/qdisk/5/51712/params", b"/srv/a.img")
    known.read()
    assert store.surveys == []


def test_a_change_while_it_is_read_is_not_missed(store, known):
    write(store, DISK)

    def change():
        store.meanwhile = lambda: None
        store.write(f"{DISK.path}/params", b"/srv/b.img")

    store.meanwhile = change
    known.read()
    assert known.of(DISK).values["params"] == b"/srv/b.img"


def test_what_keeps_changing_is_left_to_the_event(store, known):
    write(store, DISK)
    store.meanwhile = lambda: store.write(f"{DISK.path}/params", b"/srv/a.img")
    known.read()
    assert known.of(DISK) is None
    assert len(store.surveys) < 10


def test_what_goes_while_it_is_read(store, known):
    write(store, DISK)
    store.meanwhile = lambda: store.remove("backend/vbd/5")
    known.read()
    assert known.of(DISK) is None


def test_one_that_we_may_not_read_hides_no_other(store, known):
    write(store, DISK)
    write(store, CARD)
    store.forbid(f"{DISK.path}/mode")
    known.read()
    assert known.of(DISK) is None
    assert known.of(CARD) is not None


def test_those_that_nobody_asks_for_go_when_others_come(store, known, monkeypatch):
    monkeypatch.setattr(ahead, "MOST", 3)
    disks = [Device("vbd", domid, 51712) for domid in range(5)]
    for disk in disks:
        KEYS[disk] = KEYS[DISK]
        write(store, disk)
        known.read()
        if disk == disks[0]:
            first = known.of(disk)
    assert not first.is_true  # no event would find it any more
    assert [known.of(disk) is not None for disk in disks] == [False, False, True, True, True]
    assert len(known._known) == 3


def test_the_index_of_holders_is_brought_up_to_date(store, known):
    """So that the next event need not."""
    other = Device("vbd", 6, 51712)
    KEYS[other] = KEYS[DISK]
    write(store, other, physical_device="fd:3")
    write(store, DISK)
    known.read()
    store.surveys.clear()
    known._holders.refresh(asked=True)
    assert store.surveys == []


def test_to_confirm_is_to_be_done_with_it(store, known):
    write(store, DISK)
    known.read()
    found = known.of(DISK)
    assert found.use()["params"] == b"/srv/a.img"
    found.confirm()
    store.write(f"{DISK.path}/physical-device", b"7:0")
    found.confirm()  # by then that was us


def test_what_changed_while_it_was_in_use_cannot_be_confirmed(store, known):
    write(store, DISK)
    known.read()
    found = known.of(DISK)
    found.use()
    store.write(f"{DISK.path}/mode", b"r")
    with pytest.raises(OutdatedError, match="keys changed"):
        found.confirm()
    assert found.in_use


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def wait_for(condition):
    tick = threading.Event()
    for _ in range(1000):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it does not come")


def test_its_thread_reads_what_comes_and_survives_refusals(store, known):
    before = len(threads())
    known.start(pytest.fail)
    write(store, DISK)
    wait_for(lambda: DISK.path in known._ready)
    store.fail_next(OSError(errno.ENOSPC, "full"), after=len(KEYS[CARD]))
    write(store, CARD)
    wait_for(lambda: not store._failures)
    store.write(f"{CARD.path}/mac", b"00:16:3e:00:00:06")
    wait_for(lambda: CARD.path in known._ready)
    assert len(threads()) == before + 1


@pytest.mark.parametrize(
    "error", [ConnectionError("gone"), ProtocolError("a bug"), RuntimeError("a bug")], ids=repr
)
def test_its_thread_does_not_end_unnoticed(store, known, error):
    before = len(threads())
    noticed = []
    known.start(noticed.append)
    store.fail_next(error, after=len(KEYS[DISK]))
    write(store, DISK)
    wait_for(lambda: len(threads()) == before)
    assert noticed == [error]
