"""How often something is tried again, and when no more."""

from hotplug.agent.retries import FIRST, LONGEST, Retries
from hotplug.events import Device

ONE, OTHER = Device("vbd", 5, 51712), Device("vbd", 6, 51712)


class FakeClock:
    """Keeps what was asked for; ``pass_time`` lets all of it come due."""

    def __init__(self):
        self.alarms = []
        self.waits = []

    def __call__(self, seconds, call):
        return FakeAlarm(self, seconds, call)

    def pass_time(self):
        due, self.alarms = self.alarms, []
        for call in due:
            call()


class FakeAlarm:
    """One of them."""

    def __init__(self, clock, seconds, call):
        self.clock, self.seconds, self.call = clock, seconds, call

    def start(self):
        self.clock.waits.append(self.seconds)
        self.clock.alarms.append(self.call)

    def cancel(self):
        self.clock.alarms.remove(self.call)


def retries(*, fails=True):
    """Everything fails again, if ``fails``."""
    clock, tried = FakeClock(), []

    def again(device):
        tried.append(device)
        (made.failed if fails else made.settled)(device)

    made = Retries(again, clock)
    return made, clock, tried


def test_less_and_less_often():
    made, clock, tried = retries()
    made.failed(ONE)
    for _ in range(11):
        clock.pass_time()
    assert tried == [ONE] * 11
    assert clock.waits[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert clock.waits[-2:] == [LONGEST, LONGEST]


def test_one_clock_for_each_device():
    made, clock, tried = retries(fails=False)
    for device in (ONE, OTHER, ONE, ONE):
        made.failed(device)
    clock.pass_time()
    assert tried == [ONE, OTHER]
    assert clock.alarms == []


def test_a_success_begins_anew():
    made, clock, tried = retries()
    made.failed(ONE)
    clock.pass_time()
    made.settled(ONE)
    assert clock.alarms == []
    assert tried == [ONE]
    made.failed(ONE)
    assert clock.waits == [FIRST, 2 * FIRST, FIRST]


def test_what_never_failed_is_settled():
    made, clock, _ = retries()
    made.settled(ONE)
    assert (clock.waits, clock.alarms) == ([], [])
