"""What the fake store has beyond the real one: it does as it is told."""

from __future__ import annotations

import errno

import pytest
from fakes_store import FakeStore

from hotplug.xenstore import Write


def test_it_starts_with_what_it_is_given():
    store = FakeStore({"a/b": b"1", "/c": b"2"}, domid=3)
    assert store.read("a/b") == b"1"
    assert store.nodes() == {"/local/domain/3/a/b": b"1", "/c": b"2"}
    assert store.nodes("a") == {"/local/domain/3/a/b": b"1"}


def test_what_is_forbidden_is_neither_read_nor_written():
    store = FakeStore({"/vm/x/name": b"guest", "mine": b"1"})
    store.forbid("/vm")
    for call in (
        lambda: store.read("/vm/x/name"),
        lambda: store.directory("/vm"),
        lambda: store.write("/vm/y", b""),
        lambda: store.remove("/vm"),
        lambda: store.read_many(["mine", "/vm/x/name"]),
        lambda: store.transaction(lambda s: s.apply([Write("/vm/x", None)])),
    ):
        with pytest.raises(PermissionError):
            call()
    values = store.read_many(["mine", "/vm/x/name"], forbidden_is_absent=True)
    assert values == [b"1", None]
    assert store.nodes("/vm") == {"/vm/x/name": b"guest"}


def test_the_next_operation_fails():
    store = FakeStore()
    store.fail_next(OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        store.write("a", b"")
    store.write("a", b"1")
    store.fail_next(OSError(errno.EIO, "broken"), after=1)
    assert store.read("a") == b"1"
    with pytest.raises(OSError, match="broken"):
        store.read("a")


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_every_step_of_a_transaction_can_fail(after):
    store = FakeStore({"a": b"old"})
    store.fail_next(OSError(errno.EIO, "broken"), after=after)

    def body(snapshot):
        snapshot.read_many(["a"])
        snapshot.apply([Write("a", b"new")])

    with pytest.raises(OSError, match="broken"):
        store.transaction(body)
    assert store.read("a") == b"old"
    store.transaction(body)
    assert store.read("a") == b"new"


def test_commits_can_be_lost():
    store = FakeStore({"a": b"0"})
    runs = []

    def body(snapshot):
        runs.append(snapshot.read("a"))
        snapshot.apply([Write("a", b"1")])

    store.lose_next_commits(2)
    store.transaction(body)
    assert runs == [b"0", b"0", b"0"]
    store.lose_next_commits(5)
    with pytest.raises(OSError, match="5 times") as caught:
        store.transaction(body, attempts=5)
    assert caught.value.errno == errno.EAGAIN


def test_special_watches_are_fired_by_hand():
    store = FakeStore()
    events = []
    store.watch("@releaseDomain", "token", lambda *event: events.append(event))
    store.fire("@releaseDomain")
    assert events == [("@releaseDomain", "token")] * 2
