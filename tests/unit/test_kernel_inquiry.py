"""Asking devices that may never answer."""

from __future__ import annotations

import threading

import pytest

from hotplug.kernel import inquiry
from hotplug.kernel.inquiry import Inquiry

PATIENCE = 0.02


class Devices:
    """Some of them hang until they are told to go on."""

    def __init__(self):
        self.hanging = {}
        self.failing = set()
        self.asked = []

    def hang(self, *numbers):
        self.hanging.update((number, threading.Event()) for number in numbers)

    def ask(self, number):
        self.asked.append(number)
        if number in self.hanging:
            assert self.hanging[number].wait(10)
        if number in self.failing:
            raise OSError(107, "not connected")
        return f"answer {number}"


@pytest.fixture
def devices():
    devices = Devices()
    yield devices
    for event in devices.hanging.values():
        event.set()
    for thread in threading.enumerate():
        if thread.name == "loop-inquiry":
            thread.join()


def test_answers(devices):
    assert Inquiry(devices.ask).ask([1, 2]) == {1: "answer 1", 2: "answer 2"}
    assert devices.asked == [1, 2]


def test_nothing_to_ask(devices):
    assert Inquiry(devices.ask).ask([]) == {}
    assert devices.asked == []


def test_an_error_is_no_answer(devices):
    devices.failing.add(1)
    assert Inquiry(devices.ask).ask([1, 2]) == {2: "answer 2"}
    assert Inquiry(devices.ask).ask([1]) == {}


def test_who_hangs_does_not_stop_the_others(devices):
    devices.hang(2, 4)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask([1, 2, 3, 4, 5]) == {n: f"answer {n}" for n in (1, 3, 5)}


@pytest.mark.parametrize("place", [1, 2, 3])
def test_wherever_it_is(devices, place):
    devices.hang(place)
    answers = Inquiry(devices.ask, PATIENCE).ask([1, 2, 3])
    assert sorted(answers) == sorted({1, 2, 3} - {place})


def test_who_hangs_is_not_asked_again_until_it_answered(devices):
    devices.hang(1, 2)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask([1, 2]) == {}
    assert asking.ask([1, 2]) == {}
    assert devices.asked == [1, 2]

    devices.hanging.pop(1).set()
    asking.wait_for([1], 10)
    assert asking.ask([1, 2]) == {1: "answer 1"}
    assert devices.asked == [1, 2, 1]


def test_waiting_for_who_hangs_ends(devices):
    devices.hang(1)
    asking = Inquiry(devices.ask, PATIENCE)
    asking.ask([1])
    asking.wait_for([1, 7], PATIENCE)
    assert asking.ask([1]) == {}


def test_many_that_hang_take_no_longer_than_one(devices):
    """Their patience does not add up: all of them are asked within the time for two."""
    numbers = range(30)
    devices.hang(*numbers)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask(numbers) == {}
    assert sorted(devices.asked) == list(numbers)


def test_slow_answers_do_not_add_up(devices, monkeypatch):
    """The first device takes all the time that there is; the others get threads of their own."""
    monkeypatch.setattr(inquiry, "LIMIT", PATIENCE)
    devices.hang(1)
    assert sorted(Inquiry(devices.ask, 2 * PATIENCE).ask([1, 2, 3])) == [2, 3]
