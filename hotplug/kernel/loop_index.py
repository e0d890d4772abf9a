"""Which loop devices are bound to a file, kept by the kernel's events instead of by scans.

The promise: a device whose binding was complete before the question is in the answer. What is
merely stale (an old binding, an old offset) is no danger, because who asks looks at every
candidate again. So it must not happen that a binding goes unnoticed:

- Unbinding is announced by every kernel since 5.8: __loop_clr_fd() sends a change event, also when
  the last close does it (autoclear, and since commit 18048c1af783, Linux 6.11, always).
- Binding is announced by Linux 5.8-5.18 and, since commit e7bc0010ceb4, by 6.15 and its
  backports. In between commit 498ef5c777d9 threw the event away unless partitions were scanned.
  Where we cannot be sure, every device that was free when we last looked is looked at again in
  sysfs, which takes a microsecond each. A device cannot be bound without having been free.
- An event may precede the binding by a moment (5.8: it is sent before lo_state says "bound").
  Whoever then asks the device waits for its mutex, which is held until the binding is complete.
- LOOP_CHANGE_FD, which gives a read-only device another file, sends no event before 6.15. Nothing
  but installers uses it; until the next event of that device we would miss it. Known, accepted.
- LOOP_SET_STATUS64 changes offset, reference and flags without an event, but not the file.
- Events that were lost (ENOBUFS) leave nothing certain: all devices are looked at again.

A device that does not answer lies on a dead file system. The file that we are asked about does
not: it was opened a moment ago. Had that file system died just after, then the file could not be
attached either before it is back, and then the silent device answers too: ``found_too_late``.

The mutex is held for moments only, never while a device is asked: Inquiry says what can hang.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hotplug.kernel import loop_sysfs
from hotplug.kernel.inquiry import PATIENCE, Inquiry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hotplug.ports import FileId, Loop


GRACE = 0.25  # seconds for a device to answer after its file system has
LONGEST_EVENT = 60.0  # seconds; who was silent before the event began is not bound to its file


class Events(Protocol):
    """Numbers of the devices that changed since the last call; None: events were lost."""

    def drain(self) -> list[int] | None: ...

    def close(self) -> None: ...


class Binding(NamedTuple):
    """What a device is bound to, and the disk sequence number that it had before it said so."""

    loop: Loop
    sequence: bytes | None


class Ticket(NamedTuple):
    """How many changes of a device we had heard of."""

    scans: int
    changes: int


class LoopIndex:
    """Who is bound to which file. Without events each question is a scan."""

    __slots__ = (
        "_announced",
        "_attaching",
        "_bindings",
        "_by_file",
        "_changes",
        "_doubtful",
        "_events",
        "_free",
        "_inquiry",
        "_lost",
        "_mutex",
        "_scans",
        "_settling",
        "_silent",
        "_unsure",
    )

    def __init__(
        self,
        ask: Callable[[int], Loop | None],
        events: Events | None,
        *,
        announced: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        def identify(number: int) -> Binding | None:
            sequence = loop_sysfs.disk_sequence(number)  # first: a change in between then shows
            loop = ask(number)
            return Binding(loop, sequence) if loop is not None else None

        self._inquiry = Inquiry(identify, patience)
        self._events = events
        self._announced = announced
        self._mutex = threading.Lock()
        self._settling = threading.Lock()  # held for a bounded time: see Inquiry.ask
        self._bindings: dict[int, Binding] = {}
        self._by_file: dict[FileId, set[int]] = {}
        self._attaching: dict[int, FileId] = {}
        self._doubtful: set[int] = set()  # bound, but to what?
        self._free: set[int] = set()
        self._changes: dict[int, int] = {}
        self._silent: dict[int, float] = {}  # bound, but it does not answer: since when
        self._unsure: dict[FileId, set[int]] = {}  # who was silent when this file was asked for
        self._scans = 0
        self._lost = True  # nothing is known yet

    def candidates(self, backing: FileId) -> set[int]:
        """The devices that may be bound to a file; all that answer and are, are among them."""
        with self._mutex:
            self._look_around()
            doubtful = self._doubtful - self._attaching.keys()
            # Who was bound to it and has changed since is asked; it does not count if silent.
            found = self._by_file.get(backing, set()) - doubtful
            found.update(n for n, file in self._attaching.items() if file == backing)
        # What is answered counts even if the device changes again meanwhile.
        answers = self._settle(doubtful) if doubtful else {}
        if doubtful or self._unsure:
            self._note_silence(backing, doubtful - answers.keys())
        return found.union(n for n, b in answers.items() if b and b.loop.backing == backing)

    def found_too_late(self, backing: FileId) -> int | None:
        """A device that did not answer when its file was asked for, and that is bound to it.

        To be asked once the file's own file system has answered: now its devices do as well.
        """
        with self._mutex:
            unsure = self._unsure.pop(backing, None)
        if not unsure:
            return None
        with self._settling:
            self._inquiry.wait_for(unsure, GRACE)
        answers = self._settle(unsure)
        return next((n for n, b in answers.items() if b and b.loop.backing == backing), None)

    def all(self) -> list[Loop]:
        """Every bound device, as it is now; of those that do not answer what we know for sure."""
        with self._mutex:
            self._look_around()
            bound = self._doubtful | self._bindings.keys()
        answers = self._settle(bound, again=True)
        answered = (binding.loop for binding in answers.values() if binding is not None)
        remembered = (self.current(number) for number in bound - answers.keys())
        return sorted(filter(None, (*answered, *remembered)), key=attrgetter("number"))

    def ask(self, number: int) -> Loop | None:
        """What a device is bound to, in a bounded time; TimeoutError if it does not say.

        Whoever is known is not asked again: that takes a thread.
        """
        known = self.current(number)
        if known is not None:
            part = loop_sysfs.part_of_file(number)
            if part is not None:
                return replace(known, offset=part[0], size_limit=part[1])
        answers = self._settle({number}, again=True)
        if number not in answers:
            raise TimeoutError(
                errno.ETIMEDOUT,
                "does not say what it is bound to; is the file system of its file alive?",
                f"/dev/loop{number}",
            )
        binding = answers[number]
        return binding.loop if binding is not None else None

    def current(self, number: int) -> Loop | None:
        """What a device is bound to, if we are sure without asking it."""
        binding = self._bindings.get(number)
        return binding.loop if binding is not None and is_current(number, binding) else None

    def unchanged(self, number: int) -> Loop | None:
        """The same, a little sooner where every change is announced."""
        if self._announced and self._events is not None:
            with self._mutex:
                self._take_events()
                binding = self._bindings.get(number)
                if binding is not None and number not in self._doubtful and not self._lost:
                    return binding.loop
        return self.current(number)

    @contextlib.contextmanager
    def attaching(self, number: int, backing: FileId) -> Iterator[None]:
        """We are binding this device: nobody needs to ask it, which might hang as we might."""
        with self._mutex:
            self._attaching[number] = backing
        try:
            yield
        finally:
            with self._mutex:
                del self._attaching[number]

    def ticket(self, number: int) -> Ticket:
        """To be taken before a device is asked; ``record`` sees by it whether it changed since."""
        with self._mutex:
            self._take_events()
            return self._ticket(number)

    def record(self, number: int, binding: Binding | None, ticket: Ticket) -> None:
        """Take in what a device said."""
        with self._mutex:
            if self._ticket(number) == ticket:
                self._set(number, binding)
                self._doubtful.discard(number)

    def close(self) -> None:
        """Listen no more; from now on each question is a scan."""
        with self._mutex:
            if self._events is not None:
                self._events.close()
                self._events = None

    # The rest is for the thread that has the mutex.

    def _ticket(self, number: int) -> Ticket:
        return Ticket(self._scans, self._changes.get(number, 0))

    def _take_events(self) -> None:
        changed = self._events.drain() if self._events is not None else None
        if changed is None:
            self._lost = True
            self._scans += 1
            if self._events is not None:
                self._silent.clear()
            return
        for number in changed:
            self._changes[number] = self._changes.get(number, 0) + 1
            self._doubtful.add(number)
            self._silent.pop(number, None)

    def _look_around(self) -> None:
        """Take the events and see in sysfs which of the devices they concern are bound."""
        self._take_events()
        suspects = self._doubtful - self._attaching.keys()
        if self._lost:
            suspects.update(loop_sysfs.numbers(), self._bindings)
            suspects.difference_update(self._attaching)
            self._lost = False
        elif not self._announced:
            suspects |= self._free
        for number in suspects:
            if not loop_sysfs.is_bound(number):
                if number in self._doubtful or number not in self._free:
                    self._set(number, None)
                self._doubtful.discard(number)
            elif (binding := self._bindings.get(number)) and is_current(number, binding):
                self._doubtful.discard(number)
            else:
                self._doubtful.add(number)

    def _set(self, number: int, binding: Binding | None) -> None:
        former = self._bindings.pop(number, None)
        if former is not None:
            numbers = self._by_file[former.loop.backing]
            numbers.discard(number)
            if not numbers:
                del self._by_file[former.loop.backing]
        self._silent.pop(number, None)
        if binding is not None:
            self._bindings[number] = binding
            self._by_file.setdefault(binding.loop.backing, set()).add(number)
            self._free.discard(number)
        elif loop_sysfs.exists(number):
            self._free.add(number)
        else:
            self._free.discard(number)

    # These take the mutex themselves.

    def _note_silence(self, backing: FileId, silent: set[int]) -> None:
        """Remember who did not answer a question and may do so when it is too late."""
        now = time.monotonic()
        with self._mutex:
            self._unsure.pop(backing, None)
            since = {number: self._silent.setdefault(number, now) for number in silent}
            if unsure := {n for n, begin in since.items() if now - begin < LONGEST_EVENT}:
                self._unsure[backing] = unsure

    def _settle(self, numbers: set[int], *, again: bool = False) -> dict[int, Binding | None]:
        """Ask devices. Those that do not answer are missing in the result.

        Those that another thread asked while we waited for our turn are not asked ``again``.
        """
        with self._settling:
            with self._mutex:
                left = numbers if again else numbers & self._doubtful
                tickets = {number: self._ticket(number) for number in left}
                answers = {number: self._bindings.get(number) for number in numbers - left}
            fresh = self._inquiry.ask(sorted(left))
        for number, binding in fresh.items():
            self.record(number, binding, tickets[number])
        return answers | fresh


def is_current(number: int, binding: Binding) -> bool:
    """Whether the binding is surely still the one that we know."""
    sequence = binding.sequence
    return sequence is not None and loop_sysfs.disk_sequence(number) == sequence
