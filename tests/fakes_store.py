"""A store in memory, with xenstored's semantics as far as handlers and agent can see them.

Held to the same tests as the real client (``tests/contract/test_xenstore_store.py``). Tests say
what is in it, forbid paths, and make the next operation fail:

    store = FakeStore({"backend/vbd/5/51712/params": b"/srv/a.img"})
    store.forbid("/vm")
    store.fail_next(OSError(errno.ENOSPC, "full"), after=2)
    assert store.nodes() == {...}

Watch callbacks run in the thread that makes the change, before its call returns.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from hotplug.xenstore import Permission
from hotplug.xenstore.paths import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hotplug.ports import Write

T = TypeVar("T")

ATTEMPTS = 64
PAYLOAD_MAX = 4096
FORBIDDEN = (errno.EACCES, errno.EPERM)


def refusal_or(ask: Callable[[], T]) -> T | PermissionError:
    """What is answered, or why not."""
    try:
        return ask()
    except PermissionError as error:
        return error


@dataclass(frozen=True, slots=True)
class Node:
    """A node; replaced by a new one whenever it or the list of its children changes."""

    value: bytes = b""
    permissions: tuple[Permission, ...] = (Permission(0),)
    generation: int = 0


@dataclass(slots=True)
class Tree:
    """All nodes by absolute path, in the order of their creation, and what was done to them."""

    nodes: dict[str, Node]
    generations: Iterator[int]
    changed: list[tuple[str, bool]] = field(default_factory=list)  # for watches: path, exactly it?
    accessed: dict[str, None] = field(default_factory=dict)  # an ordered set

    def get(self, path: str) -> Node | None:
        self.accessed[path] = None
        return self.nodes.get(path)

    def children(self, path: str) -> list[str] | None:
        if self.get(path) is None:
            return None
        return [name for above, name in map(split, self.nodes) if above == path and name]

    def put(self, path: str, node: Node) -> None:
        """Create or replace a node."""
        self.create(path)
        self.nodes[path] = replace(node, generation=next(self.generations))
        self.changed.append((path, False))

    def create(self, path: str) -> bool:
        """Create a node and its parents; False if it is there already."""
        if self.get(path) is not None:
            return False
        above = split(path)[0]
        if not self.create(above):
            self._touch(above)
        permissions = self.nodes[above].permissions
        self.nodes[path] = Node(b"", permissions, next(self.generations))
        return True

    def remove(self, path: str) -> None:
        """Delete a node and all below it."""
        if self.get(path) is None:
            return
        self.changed.append((path, False))
        below = path + "/"
        for deeper in [name for name in self.nodes if name.startswith(below)]:
            self.accessed[deeper] = None
            self.changed.append((deeper, True))
            del self.nodes[deeper]
        del self.nodes[path]
        self._touch(split(path)[0])

    def _touch(self, path: str) -> None:
        self.accessed[path] = None
        self.nodes[path] = replace(self.nodes[path], generation=next(self.generations))


def split(path: str) -> tuple[str, str]:
    """The parent and the name of an absolute path."""
    above, _, name = path.rpartition("/")
    return above or "/", name


def refuse(number: int, path: str) -> OSError:
    return OSError(number, "the fake store refuses", path)


class FakeStore:
    """See the module. Implements ports.Store and the rest of xenstore.Client that we use."""

    def __init__(self, nodes: Mapping[str, bytes] | None = None, *, domid: int = 0) -> None:
        self._home = f"/local/domain/{domid}"
        self._lock = threading.RLock()
        self._generations = count(1)
        self._nodes: dict[str, Node] = {"/": Node()}
        self._watches: dict[str, tuple[str, Callable[[str, str], object]]] = {}  # by token
        self._forbidden: set[str] = set()
        self._failures: list[tuple[int, OSError]] = []  # (operations until then, error)
        self._lost_commits = 0
        self.held: set[FakeBegun] = set()  # transactions that are open
        for path, value in (nodes or {}).items():
            self._tree().put(self._absolute(path), Node(value))

    # What tests do with it

    def nodes(self, path: str = "/") -> dict[str, bytes]:
        """Every node below ``path`` that has a value, by absolute path."""
        below = self._absolute(path).rstrip("/") + "/"
        return {
            name: node.value
            for name, node in self._nodes.items()
            if name.startswith(below) and node.value
        }

    def forbid(self, path: str) -> None:
        """From now on nobody may touch ``path`` and what is below it."""
        self._forbidden.add(self._absolute(path))

    def allow(self, path: str) -> None:
        """Undo ``forbid``; watches hear of it as of every change of permissions."""
        self._forbidden.discard(self._absolute(path))
        self.fire(self._absolute(path))

    def fail_next(self, error: OSError, *, after: int = 0) -> None:
        """Let an operation fail: the next one, or the one after ``after`` others.

        The start and the end of a transaction count, as does each step in it.
        """
        self._failures.append((after, error))

    def lose_next_commits(self, commits: int) -> None:
        """Let the commits of transactions fail as if somebody else had been faster."""
        self._lost_commits = commits

    # Nodes

    def read(self, path: str) -> bytes | None:
        return self.read_many((path,))[0]

    def read_many(
        self, paths: Sequence[str], *, forbidden_is_absent: bool = False
    ) -> list[bytes | None]:
        with self._operation() as tree:
            return self._read_many(tree, paths, forbidden_is_absent=forbidden_is_absent)

    def directory(self, path: str) -> list[str] | None:
        return self.directory_many((path,))[0]

    def directory_many(self, paths: Sequence[str]) -> list[list[str] | None]:
        with self._operation() as tree:
            return self._directory_many(tree, paths)

    def survey(
        self, directories: Sequence[str], nodes: Sequence[str]
    ) -> tuple[list[list[str] | PermissionError | None], list[bytes | PermissionError | None]]:
        with self._operation() as tree:
            return (
                [refusal_or(lambda p=p: self._directory_many(tree, [p])[0]) for p in directories],
                [refusal_or(lambda p=p: self._read_many(tree, [p])[0]) for p in nodes],
            )

    def write(self, path: str, value: bytes) -> None:
        with self._operation() as tree:
            self._write(tree, path, value)

    def mkdir(self, path: str) -> None:
        with self._operation() as tree:
            where = self._permitted(path)
            if tree.create(where):
                tree.changed.append((where, False))

    def remove(self, path: str) -> None:
        with self._operation() as tree:
            self._remove(tree, path)

    def get_permissions(self, path: str) -> tuple[Permission, ...] | None:
        with self._operation() as tree:
            node = tree.get(self._permitted(path))
            return None if node is None else node.permissions

    def set_permissions(self, path: str, permissions: Sequence[Permission]) -> None:
        with self._operation() as tree:
            where = self._permitted(path)
            node = tree.get(where)
            if node is None:
                raise refuse(errno.ENOENT, path)
            tree.put(where, replace(node, permissions=tuple(permissions)))

    def domain_path(self, domid: int) -> str:
        return f"/local/domain/{domid}"

    # Transactions

    def transaction(self, body: Callable[[FakeSnapshot], T], *, attempts: int = ATTEMPTS) -> T:
        return FakeBegun(self).run(body, attempts=attempts)

    @contextlib.contextmanager
    def begin(self, *, with_next: bool = False) -> Iterator[FakeBegun]:
        del with_next
        begun = FakeBegun(self)
        try:
            yield begun
        finally:
            begun.give_up()

    def snapshot(self) -> FakeSnapshot:
        with self._operation() as tree:
            return FakeSnapshot(self, Tree(dict(tree.nodes), self._generations))

    def _commit(self, copy: Tree, start: Mapping[str, Node]) -> bool:
        with self._operation() as tree:
            if self._lost_commits:
                self._lost_commits -= 1
                return False
            if any(tree.nodes.get(path) is not start.get(path) for path in copy.accessed):
                return False
            for path in copy.accessed:
                if path in copy.nodes:
                    tree.nodes[path] = copy.nodes[path]
                else:
                    tree.nodes.pop(path, None)
            tree.changed += dict.fromkeys(copy.changed)
            return True

    # Watches

    def watch(self, path: str, token: str, callback: Callable[[str, str], object]) -> None:
        with self._operation():
            encode(path)
            if not token or "\0" in token:
                raise refuse(errno.EINVAL, path)
            if token in self._watches:
                raise refuse(errno.EEXIST, path)
            self._watches[token] = (path, callback)
        callback(path, token)

    def unwatch(self, path: str, token: str) -> None:
        with self._operation():
            if self._watches.get(token, ("",))[0] != path:
                raise refuse(errno.ENOENT, path)
            del self._watches[token]

    def fire(self, path: str) -> None:
        """Let the watches of ``path`` see a change; for @releaseDomain and the like."""
        self._fire([(path, False)])

    reads_are_barriers = True

    def barrier(self) -> None:
        with self._operation():
            pass

    def start_pump(
        self, on_broken: Callable[[OSError], object] | None = None, pause: float = 0.0
    ) -> None:
        """Nothing needs to be pumped here."""

    def close(self) -> None:
        pass

    def _fire(self, changed: Sequence[tuple[str, bool]]) -> None:
        for path, exactly in changed:
            for token, (watched, callback) in list(self._watches.items()):
                root = watched if watched.startswith("@") else self._absolute(watched)
                if path == root or (not exactly and path.startswith(root.rstrip("/") + "/")):
                    relative = not watched.startswith(("/", "@"))
                    callback(path[len(self._home) + 1 :] if relative else path, token)

    # The parts that a transaction shares

    def _tree(self) -> Tree:
        return Tree(self._nodes, self._generations)

    def _operation(self) -> Operation:
        return Operation(self)

    def begin_operation(self) -> Tree:
        """Begin an operation; it may be one that is to fail."""
        failing = [error for after, error in self._failures if after == 0]
        self._failures = [(after - 1, error) for after, error in self._failures if after > 0]
        if failing:
            raise failing[0]
        return self._tree()

    def _absolute(self, path: str) -> str:
        encode(path)  # refuses what is not a path
        return path if path.startswith(("/", "@")) else f"{self._home}/{path}"

    def _permitted(self, path: str) -> str:
        where = self._absolute(path)
        if any(where == top or where.startswith(top + "/") for top in self._forbidden):
            raise refuse(errno.EACCES, path)
        return where

    def _read_many(
        self, tree: Tree, paths: Sequence[str], *, forbidden_is_absent: bool = False
    ) -> list[bytes | None]:
        values: list[bytes | None] = []
        for path in paths:
            try:
                node = tree.get(self._permitted(path))
            except PermissionError:
                if not forbidden_is_absent:
                    raise
                node = None
            values.append(None if node is None else node.value)
        return values

    def _directory_many(self, tree: Tree, paths: Sequence[str]) -> list[list[str] | None]:
        return [tree.children(self._permitted(path)) for path in paths]

    def _write(self, tree: Tree, path: str, value: bytes) -> None:
        where = self._permitted(path)
        if len(path) + 1 + len(value) > PAYLOAD_MAX:
            raise refuse(errno.E2BIG, path)
        node = tree.get(where)
        if node is None:
            tree.create(where)
            node = tree.nodes[where]
        tree.put(where, replace(node, value=value))

    def _remove(self, tree: Tree, path: str) -> None:
        where = self._permitted(path)
        if where == "/":
            raise refuse(errno.EINVAL, path)
        tree.remove(where)

    def _apply(self, tree: Tree, changes: Sequence[Write]) -> None:
        for change in changes:
            if change.value is None:
                self._remove(tree, change.path)
            else:
                self._write(tree, change.path, change.value)


class Operation:
    """Everything that one request does: alone, and then the watches."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    def __enter__(self) -> Tree:
        self._store._lock.acquire()
        try:
            self._tree = self._store.begin_operation()
        except BaseException:
            self._store._lock.release()
            raise
        return self._tree

    def __exit__(self, *_: object) -> None:
        self._store._lock.release()
        self._store._fire(self._tree.changed)


class FakeBegun:
    """A transaction that was asked for; its reads see what was there then, as oxenstored's do."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._early: list[FakeSnapshot] = []
        self._refusal: OSError | None = None  # told at the first use
        try:
            self._early.append(store.snapshot())
        except OSError as error:
            self._refusal = error
        store.held.add(self)
        self._staged: list[tuple[FakeSnapshot, object]] = []
        self._is_over = False

    def stage(self, body: Callable[[FakeSnapshot], T]) -> T:
        snapshot, result = self._play(body)
        self._staged.append((snapshot, result))
        return result

    def run(self, body: Callable[[FakeSnapshot], T], *, attempts: int = ATTEMPTS) -> T:
        try:
            for _ in range(attempts):
                snapshot, result = self._staged.pop() if self._staged else self._play(body)
                snapshot.open = False
                if self._store._commit(snapshot._tree, snapshot.start):
                    return result
        finally:
            self.give_up()
        raise OSError(errno.EAGAIN, f"others changed the same part of the store {attempts} times")

    def give_up(self) -> None:
        self._is_over = True
        self._store.held.discard(self)

    def _play(self, body: Callable[[FakeSnapshot], T]) -> tuple[FakeSnapshot, T]:
        if self._is_over:
            raise OSError(errno.ECANCELED, "the transaction was given up meanwhile")
        if self._refusal is not None:
            self.give_up()
            raise self._refusal
        snapshot = self._early.pop() if self._early else self._store.snapshot()
        try:
            result = body(snapshot)
        except BaseException:
            snapshot.open = False
            self.give_up()
            raise
        return snapshot, result


class FakeSnapshot:
    """What the body of a transaction gets."""

    def __init__(self, store: FakeStore, tree: Tree) -> None:
        self._store = store
        self._tree = tree
        self.start = dict(tree.nodes)
        self.open = True

    def read(self, path: str) -> bytes | None:
        return self.read_many((path,))[0]

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        return self._store._read_many(self._step(), paths)

    def directory(self, path: str) -> list[str] | None:
        return self.directory_many((path,))[0]

    def directory_many(self, paths: Sequence[str]) -> list[list[str] | None]:
        return self._store._directory_many(self._step(), paths)

    def apply(self, changes: Sequence[Write]) -> None:
        self._store._apply(self._step(), changes)

    def read_and_apply(self, paths: Sequence[str], changes: Sequence[Write]) -> list[bytes | None]:
        tree = self._step()
        values = self._store._read_many(tree, paths)
        self._store._apply(tree, changes)
        return values

    def _step(self) -> Tree:
        if not self.open:
            raise ValueError("this transaction has ended")
        with self._store._operation():
            return self._tree
