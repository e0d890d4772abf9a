"""One connection to xenstored, shared by any number of threads.

Requests go out in one piece; replies are matched by their ``req_id``. There need not be a reading
thread: among the threads that wait for replies one leads and reads for all, the others sleep until
their replies are complete or it is their turn to lead. A program that wants watch events while it
asks nothing gives a thread to ``pump()``, which reads whenever nobody leads.

The stream is taken in order, whoever reads: the callback of a watch event has returned before any
reply behind it is handed out. Callbacks run in the reading thread. They must be quick, may not call
the client, and may not take a lock that is held by somebody who waits for the client. One that
raises breaks the connection, since whoever relies on it has missed an event.

Knows messages, not what they are about: that is for ``operations`` and ``client``.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident  # threading's, without importing it
from errno import EIO
from time import monotonic

from hotplug.xenstore.batch import Batch, Riders, packed
from hotplug.xenstore.errors import StoreConnectionError, timed_out
from hotplug.xenstore.protocol import (
    ERROR,
    HEADER,
    REQUEST_IDS,
    TRANSACTION_START,
    VERBS,
    WATCH_EVENT,
    Inbox,
    error_number,
    messages,
    watch_event,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from hotplug.xenstore.alarm import Alarm
    from hotplug.xenstore.batch import Outgoing, Rider
    from hotplug.xenstore.transport import Transport

    Callback: TypeAlias = Callable[[str, str], object]  # path and token

# How many requests of one caller are on their way at once. Even 32 of the largest fit the socket's
# buffer (net.core.wmem_default, 212,992 bytes), so that a thread can wait in send() only if others
# filled the buffer before. These are receiving: no daemon that waits for us stops us both.
WINDOW = 32


class Connection:
    """See the module."""

    def __init__(self, transport: Transport, name: str, timeout: float) -> None:
        self.transport = transport
        self.timeout = timeout
        self.callbacks: dict[bytes, Callback] = {}  # by token
        self._name = name

        # Of whoever reads.
        self._inbox = Inbox(messages(self._deliver))
        self._completed: list[Batch] = []  # since sleepers were last woken
        self._calling = 0  # the thread that is in a callback

        self._mutex = allocate_lock()  # for what follows; never held while waiting
        self._next_id = 1
        self._pending: dict[int, Batch] = {}
        self.riders = Riders()
        self._reading = False
        self._sleepers: dict[Batch, None] = {}  # in the order in which they will lead
        self._alarm: Alarm | None = None  # of the pump, if there is one
        self._broken = ""  # the sentence why no request can succeed any more
        self._cause: BaseException | None = None
        self._closed = False

        self._sending = allocate_lock()  # messages do not mix; without pipelining, turns
        self._last: Batch | None = None  # without pipelining: what was sent last

    # Requests

    def exchange(self, requests: Sequence[Outgoing], transaction: int) -> Batch:
        """Send requests, several at once if the transport can, and wait for all replies.

        TimeoutError if time runs out first. What was sent then may still be carried out.
        """
        deadline = monotonic() + self.timeout
        batch = Batch(len(requests))
        pipelines = self.transport.pipelines
        window = WINDOW if pipelines else 1
        try:
            for start in range(0, len(requests), window):
                part = requests[start : start + window]
                if pipelines:
                    self.send(batch, start, part, transaction, deadline)
                    self.wait(batch, deadline)
                else:
                    self._take_turn(batch, start, part[0], transaction, deadline)
        except TimeoutError:
            kind, payload = requests[0]
            path = payload.partition(b"\0")[0].decode()
            raise timed_out(self.timeout, VERBS.get(kind, "answer"), path) from None
        return batch

    def send(
        self,
        batch: Batch,
        start: int,
        requests: Sequence[Outgoing],
        transaction: int,
        deadline: float,
    ) -> None:
        """Send ``requests``, those of ``batch`` from ``start`` on; ``wait`` has to follow."""
        if not self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
            raise TimeoutError
        try:
            riders = self.riders.take()
            parts: list[bytes] = []
            for rider, early, within in riders:
                batch.ahead.append(rider)
                parts += packed(self._register(rider, 0, len(early)), early, within)
            parts += packed(self._register(batch, start, len(requests)), requests, transaction)
            try:
                self.transport.send(b"".join(parts), deadline)
            except TimeoutError:  # nothing was sent
                self._unsend(batch, riders)
                raise
            except OSError as error:
                self._break(error)
                raise self._gone() from error
            except BaseException as error:  # an interrupt: who knows how much was sent
                self._break(error)
                raise
        finally:
            self._sending.release()

    def _unsend(self, batch: Batch, riders: Sequence[Rider]) -> None:
        with self._mutex:
            unsent = {batch, *(rider[0] for rider in riders)}
            for req_id in list(self._pending):
                if self._pending.get(req_id) in unsent:
                    del self._pending[req_id]
            for rider in riders:
                self.riders.add(*rider)
            if not self._reading:
                self._hand_over()

    def _register(self, batch: Batch, start: int, count: int) -> int:
        """Number requests and expect their replies; answers the first number."""
        with self._mutex:
            if self._broken:
                raise self._gone()
            if self._alarm is not None:
                self._alarm.unset()  # the reply is not for the pump; wait() sets it again
            first = self._next_id
            if first + count > REQUEST_IDS:
                first = 1
            self._next_id = first + count
            batch.first = first - start
            batch.missing = count
            for req_id in range(first, first + count):
                self._pending[req_id] = batch
        return first

    def _take_turn(
        self, batch: Batch, index: int, request: Outgoing, transaction: int, deadline: float
    ) -> None:
        """Send one request and wait for its reply, while nobody else may send."""
        if not self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
            raise TimeoutError
        try:
            if self._last is not None:  # its owner may have given up before the reply came
                self.wait(self._last, deadline)
            req_id = self._register(batch, index, 1)
            kind, payload = request
            header = HEADER.pack(kind, req_id, transaction, len(payload))
            try:
                self.transport.send(header + payload, deadline)
            except OSError as error:  # this is how the driver answers some requests
                del self._pending[req_id]
                batch.refusals[index] = error.errno or EIO
                batch.missing = 0
            except BaseException as error:  # an interrupt: who knows whether it was sent
                self._break(error)
                raise
            self._last = batch
            self.wait(batch, deadline)
        finally:
            self._sending.release()

    # Replies

    def _deliver(self, kind: int, req_id: int, payload: bytes) -> None:
        """Take one message out of the stream."""
        if kind == WATCH_EVENT:
            path, token = watch_event(payload)
            callback = self.callbacks.get(token)
            if callback is not None:  # an event may cross our UNWATCH
                self._calling = get_ident()
                callback(path, token.decode("utf-8", "surrogateescape"))
                self._calling = 0
            return
        batch = self._pending.pop(req_id, None)
        if batch is None:
            return
        if kind == ERROR:
            batch.refusals[req_id - batch.first] = error_number(payload)
        else:
            batch.replies[req_id - batch.first] = payload
            if kind == TRANSACTION_START and not batch.is_wanted:
                self.riders.abort(payload)
        batch.missing -= 1
        if not batch.missing:
            self._completed.append(batch)

    def wait(self, batch: Batch, deadline: float) -> None:
        """Return when every reply is there; lead or sleep meanwhile."""
        mutex = self._mutex
        mutex.acquire()
        try:
            while batch.missing:
                if self._broken:
                    raise self._gone()
                if monotonic() >= deadline:
                    raise TimeoutError
                if self._reading:
                    self._sleep(batch, deadline)
                else:
                    self._lead(batch, deadline)
        finally:
            if not self._reading:
                self._hand_over()
            mutex.release()

    def _lead(self, batch: Batch, deadline: float) -> None:
        """Read for everybody until ``batch`` is complete. Called, and left, with the mutex."""
        self._reading = True
        if self._alarm is not None:
            self._alarm.unset()
        self._mutex.release()
        try:
            while batch.missing and not self._broken:
                # What is still to come for this batch is a header for each reply, at least.
                headers = batch.missing - 1 + sum(rider.missing for rider in batch.ahead)
                self._receive(self._inbox.missing + HEADER.size * headers)
                if batch.missing and monotonic() >= deadline:
                    break
        finally:
            self._mutex.acquire()
            self._reading = False

    def _receive(self, at_least: int) -> None:
        """Read once, as the leader. Whatever goes wrong, the place in the stream is lost."""
        try:
            data = self.transport.receive(at_least)
            if data:
                self._inbox.feed(data)
            elif data is not None:
                raise EOFError("xenstored closed it")  # noqa: TRY301 - handled as all the others
        except Exception as error:  # noqa: BLE001 - of callbacks too; wait() and pump() raise it
            self._break(error)
        except BaseException as error:
            self._break(error)
            raise
        if self._completed:
            with self._mutex:
                for batch in self._completed:
                    self._wake(batch)
            self._completed.clear()

    def _sleep(self, batch: Batch, deadline: float) -> None:
        """Wait until woken or out of time. Called, and left, with the mutex."""
        if self._calling == get_ident():
            raise RuntimeError("a watch callback may not call the xenstore client")
        batch.wake = lock = allocate_lock()
        lock.acquire()
        self._sleepers[batch] = None
        self._mutex.release()
        try:
            lock.acquire(timeout=max(0.0, deadline - monotonic()))
        finally:
            self._mutex.acquire()
            self._sleepers.pop(batch, None)
            batch.wake = None

    def _wake(self, batch: Batch) -> None:
        """Wake the owner of a batch, if it sleeps. Called with the mutex."""
        if batch.wake is not None:
            batch.wake.release()
            batch.wake = None
            del self._sleepers[batch]

    def _hand_over(self) -> None:
        """See to it that somebody reads, if there is anybody. Called with the mutex."""
        if self._sleepers:
            self._wake(next(iter(self._sleepers)))
        elif self._alarm is not None:
            self._alarm.set()

    def complete(self, batch: Batch) -> None:
        """End the wait for a batch that nothing was sent for. For callbacks."""
        batch.missing = 0
        self._completed.append(batch)

    # The pump

    def pump(self, pause: float = 0.0) -> None:
        """Read whenever nobody else does, ``pause`` seconds later, until the connection is closed.

        StoreConnectionError when it breaks.
        """
        from hotplug.xenstore.alarm import Alarm  # noqa: PLC0415 - select is only needed here

        alarm = None
        with self._mutex:
            if not self._broken:
                if self._alarm is not None:
                    raise RuntimeError("this xenstore connection has a pump already")
                self._alarm = alarm = Alarm(self.transport.fileno(), pause)
        if alarm is not None:
            self._pump(alarm)
        if not self._closed:
            raise self._gone()

    def _pump(self, alarm: Alarm) -> None:
        try:
            while self._stand_by(alarm):
                try:
                    self._receive(0)
                finally:
                    with self._mutex:
                        self._reading = False
        finally:
            with self._mutex:
                self._alarm = None
            alarm.close()

    def _stand_by(self, alarm: Alarm) -> bool:
        """Sleep until it is for the pump to read, then lead; False if the connection ended."""
        while True:
            with self._mutex:
                if self._broken:
                    return False
                if not self._reading:
                    self._hand_over()
            alarm.wait()
            with self._mutex:
                alarm.went_off()
                if not self._reading and not self._broken:
                    self._reading = True
                    return True

    # The end

    def close(self) -> None:
        """Close the connection; whoever waits on it gets StoreConnectionError."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        self._break(None)
        # Whoever is inside the transport comes out now. The descriptor may go only after that:
        # its number could be somebody else's file by the time of their next call.
        with self._sending:
            self._retire()
            self.transport.close()

    def _retire(self) -> None:
        """Take the lead, for ever."""
        with self._mutex:
            while self._reading:
                self._sleep(Batch(0), monotonic() + self.timeout)
            self._reading = True

    def _break(self, cause: BaseException | None) -> None:
        """Let every request fail from now on."""
        with self._mutex:
            if not self._broken:
                self._cause = cause
                how = "was closed" if cause is None else f"broke: {_reason(cause)}"
                self._broken = f"the connection to xenstore at {self._name} {how}"
            while self._sleepers:
                self._wake(next(iter(self._sleepers)))
            if self._alarm is not None:
                self._alarm.ring()
        self.transport.shut_down()

    def _gone(self) -> StoreConnectionError:
        error = StoreConnectionError(self._broken)
        error.__cause__ = self._cause
        return error


def _reason(cause: BaseException) -> str:
    return str(cause) if isinstance(cause, OSError | EOFError) else repr(cause)
