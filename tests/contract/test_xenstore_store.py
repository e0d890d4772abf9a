"""What handlers may rely on, of the real store and of the fake alike."""

from __future__ import annotations

import errno

import pytest
from fakes_store import FakeStore

from hotplug import xenstore
from hotplug.xenstore import Permission, Write

HOME = "/local/domain/0"
VBD = "backend/vbd/5/51712"


@pytest.fixture(params=["real", "fake"])
def kind(request):
    return request.param


@pytest.fixture
def store(kind, request):
    if kind == "fake":
        yield FakeStore()
        return
    with xenstore.connect(request.getfixturevalue("xenstored").socket) as client:
        yield client
        for name in client.directory("/"):
            if name != "tool":
                client.remove(f"/{name}")


@pytest.fixture
def other(kind, store, request):
    """Somebody else at the same store."""
    if kind == "fake":
        yield store
        return
    with xenstore.connect(request.getfixturevalue("xenstored").socket) as client:
        yield client


def test_absent_empty_and_full_are_three_things(store):
    store.write("a/empty", b"")
    store.write("a/full", b"value")
    assert store.read("a/absent") is None
    assert store.read("a/empty") == b""
    assert store.read("a/full") == b"value"
    assert store.read("nowhere/at/all") is None


def test_every_byte_travels_unchanged(store):
    every = bytes(range(256))
    for value in (every, b"\0", b"\n", b"a\\x20b", b"\xff" * 3, every[::-1]):
        store.write("value", value)
        assert store.read("value") == value


def test_read_many_keeps_the_order(store):
    for number in range(100):
        store.write(f"many/{number}", b"%d" % number)
    paths = [f"many/{number}" for number in (*range(99, -1, -1), 100, 3)]
    expected = [*(b"%d" % number for number in range(99, -1, -1)), None, b"3"]
    assert store.read_many(paths) == expected
    assert store.read_many([]) == []


def test_relative_is_below_the_own_domain(store):
    store.write("a/b", b"1")
    assert store.read(f"{HOME}/a/b") == b"1"
    store.write(f"{HOME}/a/c", b"2")
    assert store.read("a/c") == b"2"
    assert store.domain_path(0) == HOME
    assert store.domain_path(5) == "/local/domain/5"


def test_a_write_creates_the_parents(store):
    store.write("/x/y/z", b"1")
    assert store.read("/x") == b""
    assert store.read("/x/y") == b""
    assert store.directory("/x") == ["y"]


def test_a_node_may_have_a_value_and_children(store):
    store.write("a", b"1")
    store.write("a/b", b"2")
    store.write("a", b"3")
    assert store.read_many(["a", "a/b"]) == [b"3", b"2"]


def test_mkdir_leaves_what_is_there(store):
    store.write("a", b"1")
    store.mkdir("a")
    store.mkdir("b/c")
    assert store.read_many(["a", "b", "b/c"]) == [b"1", b"", b""]


def test_directory(store):
    assert store.directory("d") is None
    store.mkdir("d")
    assert store.directory("d") == []
    for name in ("one", "two", "three"):
        store.write(f"d/{name}/deep", b"")
    assert sorted(store.directory("d")) == ["one", "three", "two"]
    assert [
        listing and sorted(listing) for listing in store.directory_many(["d", "e", "d/one"])
    ] == [
        ["one", "three", "two"],
        None,
        ["deep"],
    ]


def test_remove_takes_everything_below(store):
    store.write("a/b/c", b"1")
    store.write("a/bc", b"2")
    store.remove("a/b")
    assert store.read_many(["a", "a/b", "a/b/c", "a/bc"]) == [b"", None, None, b"2"]
    assert store.directory("a") == ["bc"]


def test_remove_of_the_absent_is_fine(store):
    store.remove("absent")
    store.remove("absent/below/nothing")
    store.write("a", b"1")
    store.remove("a/b")
    assert store.read("a") == b"1"


def test_the_root_cannot_be_removed(store):
    with pytest.raises(OSError) as caught:
        store.remove("/")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "path", ["", "a//b", "a/", "//", "a b", "a\0b", "ä", "a\n", "/" + "x" * 3072, "x" * 2049]
)
@pytest.mark.parametrize("operation", ["read", "directory", "remove", "mkdir"])
def test_what_is_no_path_is_refused(store, operation, path):
    with pytest.raises(OSError) as caught:
        getattr(store, operation)(path)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == path


def test_the_longest_path_and_value(store):
    path = "/local/domain/0/" + "x" * 2032
    store.write(path, b"v" * (4096 - len(path) - 1))
    assert len(store.read(path)) == 4096 - len(path) - 1
    with pytest.raises(OSError) as caught:
        store.write(path, b"v" * (4096 - len(path)))
    assert (caught.value.errno, caught.value.filename) == (errno.E2BIG, path)
    assert store.read("/") == b""  # and the connection still works


def test_permissions(store):
    store.mkdir("p")
    assert store.get_permissions("p")[0].domid == 0
    assert store.get_permissions("absent") is None
    wanted = (
        Permission(0),
        Permission(5, read=True),
        Permission(6, write=True),
        Permission(7, read=True, write=True),
    )
    store.set_permissions("p", wanted)
    assert store.get_permissions("p") == wanted
    store.write("p/child", b"")
    assert store.get_permissions("p/child") == wanted  # inherited
    with pytest.raises(FileNotFoundError) as caught:
        store.set_permissions("absent", wanted)
    assert caught.value.filename == "absent"


def test_a_survey_lists_and_reads_at_once(store):
    store.write("a/b", b"1")
    store.mkdir("c")
    assert store.survey(["a", "c", "d"], ["a/b", "a/d"]) == ([["b"], [], None], [b"1", None])
    assert store.survey((), ()) == ([], [])


# Transactions


def test_a_transaction_that_was_asked_for_early(store, other):
    with store.begin() as begun:
        other.write("a", b"1")
        assert store.read("a") == b"1"
        assert begun.run(lambda snapshot: snapshot.read_and_apply(["a"], [Write("a", b"2")])) == [
            b"1"
        ]
        assert other.read("a") == b"2"
    assert store.read("a") == b"2"


def test_a_transaction_that_was_asked_for_with_the_next_request(store, other):
    with store.begin(with_next=True) as begun:
        assert store.survey((), ["a"]) == ([], [None])
        other.write("a", b"1")
        assert begun.run(lambda snapshot: snapshot.read_and_apply(["a"], [Write("a", b"2")])) == [
            b"1"
        ]
    assert store.read("a") == b"2"


def test_what_is_staged_is_seen_by_nobody(store, other):
    runs = []

    def body(snapshot):
        runs.append(snapshot.read_and_apply(["a"], [Write("a", b"1")]))
        return len(runs)

    with store.begin() as begun:
        assert begun.stage(body) == 1
        assert store.read("a") is None
        assert begun.run(body) == 1
        assert other.read("a") == b"1"
    with store.begin() as begun:
        assert begun.stage(body) == 2
    assert runs == [[None], [b"1"]]


def test_what_was_staged_and_left_leaves_nothing(store):
    with store.begin() as begun:
        begun.stage(lambda snapshot: snapshot.apply([Write("a", b"1")]))
    assert store.read("a") is None


def test_what_was_staged_runs_again_after_a_conflict(store, other):
    seen = []

    def body(snapshot):
        seen.append(snapshot.read("a"))
        snapshot.apply([Write("b", b"2")])

    with store.begin() as begun:
        begun.stage(body)
        other.write("a", b"1")
        begun.run(body)
    assert seen == [None, b"1"]
    assert store.read("b") == b"2"


def test_a_transaction_that_was_given_up(store):
    with store.begin() as begun:
        begun.give_up()
        for use in (begun.stage, begun.run):
            with pytest.raises(OSError, match="given up meanwhile") as caught:
                use(lambda snapshot: snapshot.apply([Write("a", b"1")]))
            assert caught.value.errno == errno.ECANCELED
    assert store.read("a") is None


def test_a_transaction_is_used_once(store):
    def write(snapshot):
        snapshot.apply([Write("a", b"1")])

    def fail(snapshot):
        write(snapshot)
        raise KeyError

    with store.begin() as begun:
        with pytest.raises(KeyError):
            begun.run(fail)
        with pytest.raises(OSError, match="given up meanwhile"):
            begun.run(write)
    assert store.read("a") is None
    with store.begin() as begun:
        begun.run(write)
        with pytest.raises(OSError, match="given up meanwhile"):
            begun.run(write)


def test_what_failed_to_be_staged_is_not_committed(store):
    def fail(snapshot):
        snapshot.apply([Write("a", b"1")])
        raise KeyError

    with store.begin() as begun:
        with pytest.raises(KeyError):
            begun.stage(fail)
        with pytest.raises(OSError, match="given up meanwhile"):
            begun.run(lambda snapshot: snapshot.apply([Write("b", b"1")]))
    assert store.read_many(["a", "b"]) == [None, None]


def test_an_early_one_runs_again_after_a_conflict(store, other):
    runs = []

    def body(snapshot):
        seen = snapshot.read("a")
        if not runs:
            other.write("a", b"1")
        runs.append(seen)
        snapshot.apply([Write("b", b"2")])

    with store.begin() as begun:
        begun.run(body)
    assert runs == [None, b"1"]
    assert store.read("b") == b"2"


def test_a_transaction_returns_what_its_body_returns(store):
    store.write("a", b"1")
    assert store.transaction(lambda snapshot: snapshot.read_many(["a", "b"])) == [b"1", None]


def test_a_transaction_sees_its_own_changes(store):
    store.write("a/b", b"1")

    def body(snapshot):
        snapshot.apply([Write("a/c", b"2"), Write("a/b", None)])
        assert snapshot.read_many(["a/b", "a/c"]) == [None, b"2"]
        assert snapshot.read("a/c") == b"2"
        assert snapshot.directory("a") == ["c"]
        assert snapshot.directory_many(["a", "a/b"]) == [["c"], None]

    store.transaction(body)
    assert store.read_many(["a/b", "a/c"]) == [None, b"2"]


def test_nobody_sees_half_of_a_transaction(store, other):
    def body(snapshot):
        snapshot.apply([Write("a", b"1"), Write("b", b"2")])
        assert other.read_many(["a", "b"]) == [None, None]

    store.transaction(body)
    assert other.read_many(["a", "b"]) == [b"1", b"2"]


def test_read_and_apply_reads_before_it_changes(store):
    store.write("a", b"old")
    changes = [Write("a", b"new"), Write("absent/thing", None), Write("c", b"")]
    values = store.transaction(lambda snapshot: snapshot.read_and_apply(["a", "b"], changes))
    assert values == [b"old", None]
    assert store.read_many(["a", "b", "c"]) == [b"new", None, b""]


def test_an_exception_in_the_body_aborts(store):
    store.write("a", b"old")

    def body(snapshot):
        snapshot.read_and_apply(["a"], [Write("a", b"new")])
        raise KeyError("changed my mind")

    with pytest.raises(KeyError, match="changed my mind"):
        store.transaction(body)
    assert store.read("a") == b"old"


def test_a_conflict_runs_the_body_again(store, other):
    store.write("counter", b"0")
    runs = []

    def body(snapshot):
        runs.append(1)
        number = int(snapshot.read("counter"))
        if len(runs) < 3:
            other.write("counter", b"%d" % (number + 10))
        snapshot.apply([Write("counter", b"%d" % (number + 1))])
        return number

    assert store.transaction(body) == 20
    assert len(runs) == 3
    assert store.read("counter") == b"21"


@pytest.mark.parametrize(
    "change",
    [
        lambda other: other.write(f"{VBD}/state", b"6"),
        lambda other: other.remove(VBD),
        lambda other: other.remove("backend"),
        lambda other: other.write(f"{VBD}/absent", b""),
    ],
    ids=["rewritten", "removed", "removed above", "came to be"],
)
def test_what_was_read_is_still_so_at_the_commit(store, other, change):
    store.write(f"{VBD}/state", b"2")
    seen = []

    def body(snapshot):
        seen.append(snapshot.read_many([f"{VBD}/state", f"{VBD}/absent"]))
        if len(seen) == 1:
            change(other)

    store.transaction(body)
    assert len(seen) == 2
    assert seen[0] == [b"2", None]
    assert seen[1] == store.read_many([f"{VBD}/state", f"{VBD}/absent"])


def test_changes_elsewhere_are_no_conflict(store, other):
    store.write("mine/a", b"1")
    store.write("theirs/a", b"1")
    runs = []

    def body(snapshot):
        runs.append(snapshot.read("mine/a"))
        other.write("theirs/a", b"2")
        snapshot.apply([Write("mine/a", b"2")])

    store.transaction(body)
    assert runs == [b"1"]
    assert store.read_many(["mine/a", "theirs/a"]) == [b"2", b"2"]


def test_who_always_loses_is_told(store, other):
    def body(snapshot):
        snapshot.read("a")
        other.write("a", b"")
        snapshot.apply([Write("b", b"")])

    with pytest.raises(OSError, match="others changed the same part") as caught:
        store.transaction(body, attempts=3)
    assert caught.value.errno == errno.EAGAIN
    assert store.read("b") is None


def test_a_snapshot_ends_with_its_transaction(store):
    kept = store.transaction(lambda snapshot: snapshot)
    with pytest.raises(ValueError, match="has ended"):
        kept.read("a")


# Watches


@pytest.fixture
def events(store):
    return []


def test_a_read_is_a_barrier(store, other, events):
    assert store.reads_are_barriers
    store.watch("w", "token", lambda path, _: events.append(path))
    other.write("w/a", b"1")
    store.read("anything")
    assert events == ["w", "w/a"]


def test_a_watch_is_called_at_once_and_for_every_change_below(store, other, events):
    store.watch("w", "token", lambda *event: events.append(event))
    store.barrier()
    assert events == [("w", "token")]
    other.write("w/a/b", b"1")
    other.write("x", b"1")
    store.barrier()
    assert events == [("w", "token"), ("w/a/b", "token")]


def test_absolute_watches_have_absolute_events(store, other, events):
    store.watch(f"{HOME}/w", "token", lambda path, _: events.append(path))
    other.write("w/a", b"1")
    store.barrier()
    assert events == [f"{HOME}/w", f"{HOME}/w/a"]


def test_the_removal_of_a_directory_is_one_event_for_those_above(store, other, events):
    store.write("w/a/b/c", b"1")
    store.watch("w", "above", lambda *event: events.append(event))
    store.watch("w/a/b/c", "inside", lambda *event: events.append(event))
    store.watch("w/a/b/d", "absent", lambda *event: events.append(event))
    store.barrier()
    events.clear()
    other.remove("w/a")
    store.barrier()
    assert sorted(events) == [("w/a", "above"), ("w/a/b/c", "inside")]


def test_a_transaction_is_seen_when_it_is_committed(store, other, events):
    store.watch("w", "token", lambda path, _: events.append(path))

    def body(snapshot):
        snapshot.apply([Write("w/a", b"1"), Write("w/b", b"1")])
        store.barrier()
        assert events == ["w"]

    other.transaction(body)
    store.barrier()
    assert sorted(events) == ["w", "w/a", "w/b"]


def test_two_watches_may_meet(store, other, events):
    store.watch("w", "one", lambda *event: events.append(event))
    store.watch("w/a", "two", lambda *event: events.append(event))
    store.barrier()
    events.clear()
    other.write("w/a/b", b"")
    store.barrier()
    assert sorted(events) == [("w/a/b", "one"), ("w/a/b", "two")]


def test_unwatch_ends_it(store, other, events):
    store.watch("w", "token", lambda *event: events.append(event))
    store.barrier()
    store.unwatch("w", "token")
    other.write("w", b"")
    store.barrier()
    assert len(events) == 1
    with pytest.raises(FileNotFoundError):
        store.unwatch("w", "token")
    store.watch("w", "token", lambda *event: events.append(event))  # the token is free again
    store.barrier()
    assert len(events) == 2


def test_a_token_names_one_watch(store, events):
    store.watch("a", "token", lambda *event: events.append(event))
    with pytest.raises(FileExistsError):
        store.watch("b", "token", lambda *event: events.append(event))
    for bad in ("", "a\0b"):
        with pytest.raises(OSError) as caught:
            store.watch("c", bad, lambda *event: events.append(event))
        assert caught.value.errno == errno.EINVAL
    store.barrier()
    assert events == [("a", "token")]
