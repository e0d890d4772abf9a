"""The client: one method for each thing that can be asked of the store.

Safe to be used by many threads at once; they share one connection. See the package for the whole
story, ``connection`` for how requests travel.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL
from time import monotonic

from hotplug.xenstore import operations, transport
from hotplug.xenstore.batch import Batch
from hotplug.xenstore.connection import Connection
from hotplug.xenstore.errors import StoreConnectionError, refused, timed_out
from hotplug.xenstore.operations import (
    ABSENT,
    ABSENT_OR_FORBIDDEN,
    ask,
    ask_unless_absent,
    fit,
)
from hotplug.xenstore.paths import encode
from hotplug.xenstore.protocol import (
    GET_DOMAIN_PATH,
    GET_PERMS,
    MKDIR,
    NO_TRANSACTION,
    READ,
    RM,
    SET_PERMS,
    UNWATCH,
    VERBS,
    WATCH,
    WRITE,
    pack_permissions,
    unpack_permissions,
)
from hotplug.xenstore.transaction import ATTEMPTS, Begun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, TypeVar

    from hotplug.xenstore.connection import Callback
    from hotplug.xenstore.protocol import Permission, Request
    from hotplug.xenstore.transaction import Transaction

    T = TypeVar("T")

TIMEOUT = 30.0  # seconds; a healthy xenstored answers in well under a millisecond
FENCE = "domid"  # any path will do, even of an absent node


def connect(path: str | None = None, *, timeout: float = TIMEOUT) -> Client:
    """Connect to xenstored: at ``path``, or where libxenstore would look for it.

    That is $XENSTORED_PATH, or else the socket in $XENSTORED_RUNDIR (/run/xenstored), or else the
    kernel's device. ``timeout`` is for every request, in seconds. StoreConnectionError if there is
    nobody.
    """
    path = path or transport.locate()
    return Client(Connection(transport.connect(path, timeout), path, timeout))


class Client:
    """A connection to xenstored. Close it, or use it in a ``with`` statement."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, watches and all. Calls under way fail; not from a callback."""
        self._connection.close()

    # Nodes

    def read(self, path: str) -> bytes | None:
        """The value of a node; None if it is absent, ``b""`` if it is empty."""
        return ask_unless_absent(self._connection, READ, encode(path), path)

    def read_many(
        self, paths: Sequence[str], *, forbidden_is_absent: bool = False
    ) -> list[bytes | None]:
        """The values of nodes, in one round trip."""
        absent = ABSENT_OR_FORBIDDEN if forbidden_is_absent else ABSENT
        return operations.read_many(self._connection, NO_TRANSACTION, paths, absent)

    def directory(self, path: str) -> list[str] | None:
        """The names of a node's children; None if the node is absent."""
        return self.directory_many((path,))[0]

    def directory_many(self, paths: Sequence[str]) -> list[list[str] | None]:
        """The names of the children of nodes, in one round trip as long as each fits 4 KiB."""
        return operations.directory_many(self._connection, NO_TRANSACTION, paths)

    def survey(
        self, directories: Sequence[str], nodes: Sequence[str]
    ) -> tuple[list[list[str] | PermissionError | None], list[bytes | PermissionError | None]]:
        """Lists of children and values in one round trip; a refusal is a value in its place."""
        return operations.survey(self._connection, directories, nodes)

    def write(self, path: str, value: bytes) -> None:
        """Set the value of a node; it and its parents are created if need be."""
        ask(self._connection, WRITE, fit(self._connection, encode(path) + value, path), path)

    def mkdir(self, path: str) -> None:
        """Make sure that a node exists; its value is left alone."""
        ask(self._connection, MKDIR, encode(path), path)

    def remove(self, path: str) -> None:
        """Delete a node and all below it; an absent one is fine."""
        # To xenstored it is not if the parent is absent, too.
        ask_unless_absent(self._connection, RM, encode(path), path)

    def get_permissions(self, path: str) -> tuple[Permission, ...] | None:
        """Who may do what with a node; None if it is absent."""
        reply = ask_unless_absent(self._connection, GET_PERMS, encode(path), path)
        return None if reply is None else unpack_permissions(reply)

    def set_permissions(self, path: str, permissions: Sequence[Permission]) -> None:
        """Replace a node's permissions; the first names the owner."""
        payload = encode(path) + pack_permissions(permissions)
        ask(self._connection, SET_PERMS, fit(self._connection, payload, path), path)

    def domain_path(self, domid: int) -> str:
        """Where a domain's nodes are, e.g. ``/local/domain/5``; it need not exist."""
        reply = ask(self._connection, GET_DOMAIN_PATH, b"%d\0" % domid, str(domid))
        return reply.rstrip(b"\0").decode()

    def batch(self, requests: Sequence[Request]) -> list[bytes | OSError]:
        """Send any requests at once; what came back for each, refusals as values."""
        payloads = [
            (request.kind, fit(self._connection, encode(request.path) + request.body, request.path))
            for request in requests
        ]
        batch = self._connection.exchange(payloads, NO_TRANSACTION)
        results: list[bytes | OSError] = []
        for index, (request, reply) in enumerate(zip(requests, batch.replies, strict=True)):
            if reply is None:
                verb = VERBS.get(request.kind, "answer")
                results.append(refused(batch.refusals[index], verb, request.path))
            else:
                results.append(reply)
        return results

    # Transactions

    def transaction(self, body: Callable[[Transaction], T], *, attempts: int = ATTEMPTS) -> T:
        """Run ``body`` until its commit succeeds; an exception in it aborts.

        It may run several times, so it should do nothing but read and change the store. OSError
        EAGAIN when others were faster in every attempt.
        """
        return self.begin().run(body, attempts=attempts)

    def begin(self, *, with_next: bool = False) -> Begun:
        """Ask for a transaction and do not wait for it: a round trip less, if more is done first.

        ``with_next``: in one piece with the next request of whatever thread, which takes no longer.

        with store.begin() as begun:
            value = store.read("outside/of/it")
            begun.run(body)

        Its reads may see the store as it was here (oxenstored) or as it is when they are made.
        """
        return Begun(self._connection, with_next=with_next)

    # Watches

    def watch(self, path: str, token: str, callback: Callback) -> None:
        """Call ``callback(path, token)`` whenever ``path`` or something below it changes.

        ``token`` is of the caller's choice and names this watch: one at a time for each token.
        """
        callbacks = self._connection.callbacks
        key = token.encode("utf-8", "surrogateescape")
        if not key or b"\0" in key:
            raise OSError(EINVAL, f"{token!r} cannot be the token of a xenstore watch", path)
        payload = fit(self._connection, b"%s%s\0" % (encode(path), key), path)
        if callbacks.setdefault(key, callback) is not callback:
            raise OSError(EEXIST, f"the token {token!r} is another xenstore watch's already", path)
        try:
            ask(self._connection, WATCH, payload, path)  # the first event comes at once
        except BaseException:
            callbacks.pop(key, None)
            raise

    def unwatch(self, path: str, token: str) -> None:
        """End a watch; its callback is not called any more. OSError ENOENT if there is none."""
        key = token.encode("utf-8", "surrogateescape")
        ask(self._connection, UNWATCH, b"%s%s\0" % (encode(path), key), path)
        self._connection.callbacks.pop(key, None)

    @property
    def reads_are_barriers(self) -> bool:
        """Whether every answer comes after the callbacks of all that was changed before it."""
        return self._connection.transport.in_order

    def barrier(self) -> None:
        """Return when the callbacks of everything that was changed before have been called.

        Over the socket any request does that. Over the device replies overtake events, but events
        do not overtake each other, and every new watch gets one at once.
        """
        if self._connection.transport.in_order:
            self.domain_path(0)
            return
        fence = Batch(1)
        fence.missing = 1
        token = f"barrier {id(fence):x}"
        self.watch(FENCE, token, lambda *_: self._connection.complete(fence))
        try:
            self._connection.wait(fence, monotonic() + self._connection.timeout)
        except TimeoutError:
            raise timed_out(self._connection.timeout, VERBS[WATCH], "") from None
        finally:
            self.unwatch(FENCE, token)

    def pump(self, pause: float = 0.0) -> None:
        """Let the calling thread receive watch events until the client is closed.

        A program that need not know at once lets ``pause`` seconds pass, and takes what has come by
        then in one piece. StoreConnectionError when the connection breaks.
        """
        self._connection.pump(pause)

    def start_pump(
        self,
        on_broken: Callable[[StoreConnectionError], object] | None = None,
        pause: float = 0.0,
    ) -> None:
        """Let a thread of its own do so; it calls ``on_broken`` when the connection breaks."""
        import threading  # noqa: PLC0415 - most programs that only ask questions need no thread

        def run() -> None:
            try:
                self.pump(pause)
            except StoreConnectionError as error:
                if on_broken is not None:
                    on_broken(error)

        threading.Thread(target=run, name="xenstore", daemon=True).start()
