"""The index of loop devices against a model of the kernel: it never misses a binding."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis
import pytest
from hypothesis import strategies as st

from hotplug.kernel import loop_index
from hotplug.kernel.loop_index import Binding, LoopIndex
from hotplug.ports import FileId, Loop, Number

FILES = [FileId(1, inode) for inode in range(3)]
NUMBERS = range(4)


@dataclass
class Kernel:
    """Loop devices as sysfs, events and LOOP_GET_STATUS64 show them."""

    announces: bool = True  # LOOP_CONFIGURE sends an event
    counts: bool = True  # there is a diskseq
    devices: dict = field(default_factory=dict)  # number: Loop or None
    sequences: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    lost: bool = False
    silent: set = field(default_factory=set)  # devices that do not answer
    asked: list = field(default_factory=list)
    sequence: int = 0

    def _changed(self, number, *, event=True):
        self.sequence += 1
        self.sequences[number] = b"%d" % self.sequence
        if event:
            self.events.append(number)

    def add(self, number):
        self.devices.setdefault(number, None)
        self._changed(number)

    def remove(self, number):
        if self.devices.get(number) is None:
            self.devices.pop(number, None)
            self._changed(number)

    def bind(self, number, file):
        if number not in self.devices:
            self.add(number)
        if self.devices[number] is None:
            self._changed(number, event=self.announces)
            self.devices[number] = loop(number, file, self.sequence)

    def unbind(self, number):
        if self.devices.get(number) is not None:
            self.devices[number] = None
            self._changed(number)

    def touch(self, number):
        """An event without a change: udev asked for it, or the size changed."""
        self.events.append(number)

    def lose_events(self):
        self.events.clear()
        self.lost = True

    def ask(self, number):
        self.asked.append(number)
        if number in self.silent:
            raise OSError(107, "not connected")
        return self.devices.get(number)

    def bound_to(self, file):
        return {n for n, loop in self.devices.items() if loop is not None and loop.backing == file}

    # events

    def drain(self):
        events, self.events, lost, self.lost = self.events, [], self.lost, False
        return None if lost else events

    # sysfs

    def numbers(self):
        return list(self.devices)

    def exists(self, number):
        return number in self.devices

    def is_bound(self, number):
        return self.devices.get(number) is not None

    def disk_sequence(self, number):
        return self.sequences.get(number) if self.counts else None


def loop(number, file, sequence):
    return Loop(number, Number(7, number), file, 0, 0, False, False, b"%d" % sequence)


def watch(kernel, monkeypatch, *, events=True):
    monkeypatch.setattr(loop_index, "loop_sysfs", kernel)
    return LoopIndex(kernel.ask, kernel if events else None, announced=kernel.announces)


def really(index, kernel, file):
    """What is left of the candidates once each was looked at, as KernelLoops does."""
    return {n for n in index.candidates(file) if n in kernel.bound_to(file)}


def test_what_was_there_before(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    index = watch(kernel, monkeypatch)
    assert index.candidates(FILES[0]) == {1}
    assert index.candidates(FILES[1]) == set()


def test_nobody_is_asked_twice(monkeypatch):
    kernel = Kernel()
    for number in NUMBERS:
        kernel.bind(number, FILES[0])
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    index.candidates(FILES[1])
    assert sorted(kernel.asked) == list(NUMBERS)


def test_an_event_without_a_new_binding_needs_no_question(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.touch(1)
    assert index.candidates(FILES[0]) == {1}
    assert kernel.asked == [1]


def test_a_new_binding_of_the_same_number(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.unbind(1)
    kernel.bind(1, FILES[1])
    assert index.candidates(FILES[1]) == {1}
    assert index.candidates(FILES[0]) == set()


def test_a_kernel_that_does_not_announce_bindings(monkeypatch):
    kernel = Kernel(announces=False)
    kernel.add(1)
    index = watch(kernel, monkeypatch)
    assert index.candidates(FILES[0]) == set()
    kernel.bind(1, FILES[0])
    assert kernel.drain() == []
    assert index.candidates(FILES[0]) == {1}


def test_lost_events(monkeypatch):
    kernel = Kernel()
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.bind(1, FILES[0])
    kernel.bind(2, FILES[1])
    kernel.unbind(2)
    kernel.lose_events()
    assert index.candidates(FILES[0]) == {1}
    assert index.candidates(FILES[1]) == set()


def test_our_own_binding_needs_no_question(monkeypatch):
    kernel = Kernel()
    index = watch(kernel, monkeypatch)
    kernel.add(1)
    with index.attaching(1, FILES[0]):
        kernel.bind(1, FILES[0])
        ticket = index.ticket(1)
        index.record(1, Binding(kernel.devices[1], kernel.disk_sequence(1)), ticket)
    assert index.candidates(FILES[0]) == {1}
    assert index.current(1) == kernel.devices[1]
    assert kernel.asked == []


def test_what_we_are_binding_counts_already_and_is_not_asked(monkeypatch):
    kernel = Kernel()
    index = watch(kernel, monkeypatch)
    with index.attaching(1, FILES[0]):
        kernel.bind(1, FILES[0])  # and here our thread hangs
        kernel.silent.add(1)
        assert index.candidates(FILES[0]) == {1}
        assert index.candidates(FILES[1]) == set()
        assert kernel.asked == []


def test_we_are_done_with_binding_while_another_device_is_asked(monkeypatch):
    """And there was an event of ours meanwhile, so that what it is bound to is in doubt again."""
    kernel = Kernel()
    index = watch(kernel, monkeypatch)
    kernel.bind(2, FILES[1])
    binding = index.attaching(1, FILES[0])
    binding.__enter__()
    kernel.bind(1, FILES[0])

    def ask(number):
        binding.__exit__(None, None, None)
        return Binding(kernel.devices[number], None)

    index._inquiry._ask = ask
    assert index.candidates(FILES[0]) == {1}


@pytest.mark.parametrize("lost", [False, True])
def test_an_answer_that_is_older_than_a_change_is_not_believed(monkeypatch, lost):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    index = watch(kernel, monkeypatch)
    ticket = index.ticket(1)
    old = Binding(kernel.devices[1], kernel.disk_sequence(1))
    kernel.unbind(1)
    kernel.bind(1, FILES[1])
    if lost:
        kernel.lose_events()
    index.candidates(FILES[2])
    index.record(1, old, ticket)
    assert index.current(1) != old.loop
    assert index.candidates(FILES[1]) == {1}


def test_a_change_while_the_device_is_asked(monkeypatch):
    """It said the truth of that moment; both the old and the new file must find it."""
    kernel = Kernel(counts=False)
    index = watch(kernel, monkeypatch)
    kernel.bind(1, FILES[0])

    def ask(number):
        answer = kernel.devices[number]
        kernel.unbind(number)
        kernel.bind(number, FILES[1])
        return answer

    index._inquiry._ask = lambda number: Binding(ask(number), None)
    assert index.candidates(FILES[0]) == {1}
    index._inquiry._ask = lambda number: Binding(kernel.devices[number], None)
    assert index.candidates(FILES[1]) == {1}


def test_a_device_that_does_not_answer_is_no_candidate(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    kernel.bind(2, FILES[0])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    assert index.candidates(FILES[0]) == {2}
    assert index.found_too_late(FILES[0]) is None


def test_it_answers_when_its_file_system_is_back(monkeypatch):
    """The file could only be attached because of that, so it is found before that counts."""
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    index.candidates(FILES[1])
    kernel.silent.clear()
    assert index.found_too_late(FILES[1]) is None
    assert index.found_too_late(FILES[0]) == 1
    assert index.candidates(FILES[0]) == {1}
    assert index.found_too_late(FILES[0]) is None


def test_who_answered_in_time_is_not_found_too_late(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.silent.clear()
    assert index.candidates(FILES[0]) == {1}
    assert index.found_too_late(FILES[0]) is None


def test_a_file_that_nobody_asked_for_is_attached_without_a_look(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[1])
    kernel.silent.clear()
    kernel.asked.clear()
    assert index.found_too_late(FILES[0]) is None
    assert kernel.asked == []


def fall_silent_long_ago(index, number):
    index._silent[number] -= 2 * loop_index.LONGEST_EVENT


def test_who_was_silent_before_the_event_began_is_not_waited_for(monkeypatch):
    """The file was opened since, and the server of the silent device's file was dead then."""
    kernel = Kernel()
    kernel.bind(1, FILES[1])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    fall_silent_long_ago(index, 1)
    index.candidates(FILES[0])
    kernel.asked.clear()
    assert index.found_too_late(FILES[0]) is None
    assert kernel.asked == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_silent_device_that_was_bound_anew_is_silent_since_then(monkeypatch, lost):
    kernel = Kernel()
    kernel.bind(1, FILES[1])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    fall_silent_long_ago(index, 1)
    kernel.unbind(1)
    kernel.bind(1, FILES[0])
    if lost:
        kernel.lose_events()
    index.candidates(FILES[0])
    kernel.silent.clear()
    assert index.found_too_late(FILES[0]) == 1


def test_a_silent_device_that_was_unbound_is_forgotten(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[1])
    kernel.silent.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.unbind(1)
    index.candidates(FILES[0])
    assert index._silent == {}
    assert index._unsure == {}


def test_all_remembers_what_a_silent_device_was_bound_to(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    kernel.bind(2, FILES[1])
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.silent.add(1)
    assert index.all() == [kernel.devices[1], kernel.devices[2]]


def test_all_shows_what_changed_without_an_event(monkeypatch):
    kernel = Kernel()
    kernel.bind(1, FILES[0])
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.devices[1] = changed = Loop(1, Number(7, 1), FILES[0], 512, 0, False, True, b"x")
    assert index.all() == [changed]


def test_a_device_that_was_removed(monkeypatch):
    kernel = Kernel(announces=False)
    kernel.add(1)
    index = watch(kernel, monkeypatch)
    index.candidates(FILES[0])
    kernel.remove(1)
    assert index.candidates(FILES[0]) == set()
    assert index._free == set()


STEP = st.one_of(
    st.tuples(st.just("bind"), st.sampled_from(NUMBERS), st.sampled_from(FILES)),
    st.tuples(st.sampled_from(["unbind", "touch", "add", "remove"]), st.sampled_from(NUMBERS)),
    st.tuples(st.just("lose_events")),
    st.tuples(st.just("ours"), st.sampled_from(NUMBERS), st.sampled_from(FILES)),
)


@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    steps=st.lists(st.tuples(STEP, st.booleans()), min_size=2, max_size=20),
    announces=st.booleans(),
    counts=st.booleans(),
    events=st.booleans(),
)
def test_no_binding_is_ever_missed(monkeypatch, steps, announces, counts, events):
    kernel = Kernel(announces=announces, counts=counts)
    index = watch(kernel, monkeypatch, events=events)
    index._inquiry = Inline(kernel)
    for (name, *arguments), is_followed_by_a_question in [(("add", 0), True), *steps]:
        if name == "ours":
            bind_ours(index, kernel, *arguments)
        else:
            getattr(kernel, name)(*arguments)
        if is_followed_by_a_question:
            for number in NUMBERS:
                assert index.unchanged(number) in (None, kernel.devices.get(number))
            for file in FILES:
                assert really(index, kernel, file) == kernel.bound_to(file)
            for number in NUMBERS if counts or (announces and events) else ():
                assert index.unchanged(number) == kernel.devices.get(number)


@dataclass
class Inline:
    """Asks without a thread: many examples have to be quick."""

    kernel: Kernel

    def ask(self, numbers):
        answers = {}
        for number in numbers:
            sequence, loop = self.kernel.disk_sequence(number), self.kernel.ask(number)
            answers[number] = Binding(loop, sequence) if loop is not None else None
        return answers


def bind_ours(index, kernel, number, file):
    """As KernelLoops.attach does."""
    if kernel.devices.get(number) is None:
        with index.attaching(number, file):
            kernel.bind(number, file)
            ticket = index.ticket(number)
            sequence = kernel.disk_sequence(number)
            index.record(number, Binding(kernel.devices[number], sequence), ticket)
