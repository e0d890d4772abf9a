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
        self.filesystems = {}
        self.hanging = {}
        self.failing = set()
        self.asked = []

    def hang(self, number):
        self.hanging[number] = threading.Event()

    def ask(self, number):
        self.asked.append(number)
        if number in self.hanging:
            assert self.hanging[number].wait(10)
        if number in self.failing:
            raise OSError(107, "not connected")
        return f"answer {number}"


@pytest.fixture
def devices(monkeypatch):
    devices = Devices()
    monkeypatch.setattr(inquiry, "filesystem", lambda n, _: devices.filesystems.get(n))
    yield devices
    for event in devices.hanging.values():
        event.set()
    for thread in threading.enumerate():
        if thread.name == "loop-inquiry":
            thread.join()


def test_answers(devices):
    assert Inquiry(devices.ask).ask([1, 2]) == {1: "answer 1", 2: "answer 2"}


def test_nothing_to_ask(devices):
    assert Inquiry(devices.ask).ask([]) == {}
    assert devices.asked == []


def test_an_error_is_no_answer(devices):
    devices.failing.add(1)
    assert Inquiry(devices.ask).ask([1, 2]) == {2: "answer 2"}


def test_who_hangs_does_not_stop_the_others(devices):
    devices.hang(2)
    devices.hang(4)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask([1, 2, 3, 4, 5]) == {n: f"answer {n}" for n in (1, 3, 5)}


def test_who_hangs_is_not_asked_again_until_it_answered(devices):
    devices.hang(1)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask([1]) == {}
    assert asking.ask([1]) == {}
    assert devices.asked == [1]

    devices.hanging.pop(1).set()
    for thread in asking._hanging.values():
        thread.join()
    assert asking.ask([1]) == {1: "answer 1"}


def test_nobody_on_a_dead_file_system_is_asked(devices):
    devices.filesystems.update({1: 50, 2: 50, 3: 51, 4: 50})
    devices.hang(1)
    asking = Inquiry(devices.ask, PATIENCE)
    assert asking.ask([1, 2, 3, 4]) == {3: "answer 3"}
    assert devices.asked == [1, 3]


def test_one_without_a_known_place_is_asked(devices):
    devices.hang(1)
    assert Inquiry(devices.ask, PATIENCE).ask([1, 2]) == {2: "answer 2"}


def test_slow_answers_do_not_add_up(devices, monkeypatch):
    """Each makes progress, but all together they take too long."""
    monkeypatch.setattr(inquiry, "LIMIT", PATIENCE)
    devices.hang(2)
    assert Inquiry(devices.ask, patience=10 * PATIENCE).ask([1, 2, 3]) == {1: "answer 1"}
