"""What the dispatcher lets through, and what becomes of failures."""

import dataclasses
import time

import pytest
from fakes_host import World
from fakes_store import FakeStore

from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import run
from hotplug.errors import HotplugError, OutdatedError
from hotplug.events import Action, Device, Event, Known
from hotplug.handlers import disk, transactions

DISK = Device("vbd", 5, 51712)


class FakeLogs:
    """Keeps what is said."""

    def __init__(self):
        self.failures = []

    def failure(self, script, text):
        self.failures.append(f"{script}: {text}")

    def traceback(self, script):
        self.failures.append(f"{script}: a bug")


def outcome(world, base, handler):
    event = Event(Action.ADD, Device("vbd", 5, 51712, base))
    return run(world.host(), FakeLogs(), event, EventDeadline(5.0), handler)


@pytest.mark.parametrize(
    ("domid", "known", "base", "is_ours"),
    [
        (0, None, "backend", True),
        (0, None, "/local/domain/0/backend", True),
        (0, b"0", "/local/domain/0/backend", True),
        (0, b"0", "/local/domain/3/backend", False),
        (3, b"3", "backend", True),
        (3, b"3", "/local/domain/3/backend", True),
        (3, b"3", "/local/domain/0/backend", False),
    ],
)
def test_only_backends_of_our_own_domain(tmp_path, domid, known, base, is_ours):
    store = FakeStore(domid=domid)
    if known is not None:
        store.write("domid", known)
    handled = []
    result = outcome(World(tmp_path, store=store), base, lambda _, event: handled.append(event))
    assert bool(handled) is is_ours
    assert result.status == (0 if is_ours else 1)
    assert is_ours or result.text == (
        f"{base}/vbd/5/51712 belongs to another domain than ours, which is domain {domid}"
    )


class LateStore(FakeStore):
    """Its events come with the next answer, and not before."""

    def __init__(self):
        super().__init__()
        self.coming = []

    def read_many(self, paths, **options):
        for happen in self.coming:
            happen()
        self.coming.clear()
        return super().read_many(paths, **options)


class Ahead:
    """A backend that was read ahead, and a handler that goes by it."""

    def __init__(self, folder):
        self.store = LateStore()
        self.world = World(folder, store=self.store)
        self.known = Known({"params": b"/srv/a.img"})
        self.logs = FakeLogs()
        self.seen = []

    def changes(self):
        """The toolstack writes something: the event is on its way."""
        self.store.coming.append(lambda: setattr(self.known, "is_true", False))

    def run(self, handler, seconds=5.0, device=DISK, action=Action.ADD):
        host = dataclasses.replace(self.world.host(), ahead=lambda _: self.known)
        self.store.write(f"{device.path}/params", b"/srv/b.img")
        return run(host, self.logs, Event(action, device), EventDeadline(seconds), handler)

    def fails(self, host, event):
        """A handler."""
        del event
        self.seen.append(host.known)
        if host.known is not None:
            host.known.use()
            raise HotplugError("there is no such image")


@pytest.fixture
def ahead(tmp_path):
    return Ahead(tmp_path)


def test_what_failed_by_what_was_not_true_is_done_again(ahead):
    ahead.changes()
    assert ahead.run(ahead.fails).status == 0
    assert ahead.seen == [ahead.known, None]
    assert ahead.logs.failures == []


def test_what_failed_by_what_is_true_has_failed(ahead):
    assert ahead.run(ahead.fails).text == "there is no such image"
    assert ahead.seen == [ahead.known]


@pytest.mark.parametrize("confirms", [False, True])
def test_who_does_not_go_by_it_is_not_misled(ahead, confirms):
    def handler(host, _):
        ahead.seen.append(host.known)
        if confirms:
            host.known.use()
            host.known.confirm()
        raise HotplugError("for another reason")

    ahead.changes()
    assert ahead.run(handler).text == "for another reason"
    assert ahead.seen == [ahead.known]


def test_nothing_is_begun_again_when_time_is_up(ahead):
    ahead.changes()
    assert ahead.run(ahead.fails, seconds=0.0).text == "there is no such image"
    assert ahead.seen == [ahead.known]


def test_nothing_is_begun_again_when_time_is_up_by_then(ahead):
    def wait():
        time.sleep(0.2)
        ahead.known.is_true = False

    ahead.store.coming.append(wait)
    assert ahead.run(ahead.fails, seconds=0.1).status == 1
    assert ahead.seen == [ahead.known]


def test_a_store_that_does_not_answer_hides_no_failure(ahead):
    def refuse():
        raise TimeoutError("xenstore did not answer")

    ahead.store.coming.append(refuse)
    assert ahead.run(ahead.fails).text == "there is no such image"


@pytest.mark.parametrize(
    ("kind", "action", "gets_it"),
    [
        ("vbd", Action.ADD, True),
        ("vbd", Action.REMOVE, False),
        ("vif", Action.ONLINE, True),
        ("vif", Action.ADD, False),  # a tap's
        ("vif", Action.OFFLINE, False),
    ],
)
def test_what_was_read_ahead_is_for_arrivals(ahead, kind, action, gets_it):
    device = Device(kind, 5, 0)
    ahead.run(lambda host, _: ahead.seen.append(host.known), device=device, action=action)
    assert ahead.seen == [ahead.known if gets_it else None]


@pytest.mark.parametrize("confirm", [transactions.confirm, disk.confirm_waiting])
def test_to_confirm_takes_a_round_trip(ahead, confirm):
    host = dataclasses.replace(ahead.world.host(), known=ahead.known)
    ahead.store.write(f"{DISK.path}/state", b"2")
    ahead.changes()
    confirm(host, DISK)  # nobody goes by it
    ahead.known.use()
    with pytest.raises(OutdatedError):
        confirm(host, DISK)


def test_a_program_is_run_for_backends_that_wait(ahead):
    host = dataclasses.replace(ahead.world.host(), known=ahead.known)
    ahead.store.write(f"{DISK.path}/state", b"4")
    ahead.known.use()
    with pytest.raises(HotplugError, match="state: 4"):
        disk.confirm_waiting(host, DISK)
