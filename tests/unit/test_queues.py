"""Order, deadlines and starvation in the agent's queues, with real threads and no waiting."""

import threading
import time

import pytest

from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import DONE, Outcome
from hotplug.agent.queues import Job, Queues
from hotplug.errors import AbandonedError, DeadlineError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("hotplug.agent.queues.GRACE", 0.001)
    monkeypatch.setattr("hotplug.agent.queues.LOOK_AGAIN", 0.01)
    monkeypatch.setattr("hotplug.agent.queues.STARVED", 0.002)


class Bench:
    """Queues, and what came of the jobs."""

    def __init__(self):
        self.crashes = []
        self.queues = Queues(self.crashes.append)
        self.answers = []
        self.changed = threading.Condition()

    def submit(self, key, work, seconds=30.0):
        def answer(outcome):
            with self.changed:
                self.answers.append((key, outcome))
                self.changed.notify_all()

        deadline = EventDeadline(seconds)
        job = Job(
            key=key,
            name=key,
            work=work,
            answer=answer,
            late=lambda error, _: Outcome(1, str(error)),
            deadline=deadline,
        )
        self.queues.submit(job)
        return job

    def wait_for(self, count):
        end = time.monotonic() + 10
        with self.changed:
            while len(self.answers) < count:
                assert time.monotonic() < end, self.answers
                self.changed.wait(0.005)
                self.queues.tick()
        return self.answers


def test_one_device_in_order():
    bench, order = Bench(), []
    for number in range(50):
        bench.submit("a", lambda _, n=number: (order.append(n), DONE)[1])
    bench.wait_for(50)
    assert order == list(range(50))
    assert bench.queues.finished == 50


def test_devices_that_hang_delay_no_other():
    bench, gate = Bench(), threading.Event()
    for number in range(8):
        bench.submit(f"hangs {number}", lambda _: (gate.wait(20), DONE)[1])
    bench.submit("well", lambda _: DONE)
    assert bench.wait_for(1) == [("well", DONE)]
    gate.set()
    bench.wait_for(9)


def test_time_is_up_and_the_device_goes_on():
    bench, gate = Bench(), threading.Event()
    undone = []

    def hang(deadline):
        deadline.stage("opening /dead")
        gate.wait(20)
        with pytest.raises(DeadlineError):
            deadline.check()
        undone.append(True)
        return Outcome(1, "not heard by anybody")

    bench.submit("a", hang, seconds=0.02)
    bench.submit("a", lambda _: DONE)
    first, second = bench.wait_for(2)
    assert first == ("a", Outcome(1, "gave up after 0 s while opening /dead"))
    assert second == ("a", DONE)
    gate.set()
    assert bench.queues.drain(10)
    end = time.monotonic() + 10
    while not undone and time.monotonic() < end:
        time.sleep(0.001)
    assert undone
    assert len(bench.answers) == 2


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_what_a_job_that_hangs_holds_is_taken_from_it(is_abandoned):
    """When its time is up, whether anybody waits for it or not."""
    bench, taken, woken = Bench(), threading.Event(), threading.Event()

    def hang(deadline):
        deadline.hold(taken.set)
        assert woken.wait(10)
        return DONE

    job = bench.submit("a", hang, seconds=0.05)
    if is_abandoned:
        assert job.deadline.abandon()
        assert not taken.is_set()
    end = time.monotonic() + 10
    while not taken.is_set():
        assert time.monotonic() < end
        bench.queues.tick()
        time.sleep(0.001)
    woken.set()


def test_time_is_up_before_its_turn():
    bench, gate = Bench(), threading.Event()
    bench.submit("a", lambda _: (gate.wait(20), DONE)[1])
    ran = []
    bench.submit("a", lambda _: (ran.append(1), DONE)[1], seconds=0.01)
    assert bench.wait_for(1)[0][1].status == 1
    gate.set()
    bench.wait_for(2)
    assert bench.queues.drain(10)
    assert not ran


def test_not_given_up_while_it_writes():
    deadline = EventDeadline(30)
    with deadline.committing():
        assert not deadline.expire()
        assert not deadline.abandon()
    assert deadline.committed
    assert deadline.expire()
    assert deadline.was_taken


def test_nothing_is_written_once_nobody_waits():
    deadline = EventDeadline(30)
    assert deadline.abandon()
    with pytest.raises(AbandonedError), deadline.committing():
        raise AssertionError
    assert not deadline.committed


def test_a_failed_write_is_not_a_commit():
    deadline = EventDeadline(30)
    with pytest.raises(OSError, match="store"), deadline.committing():
        raise OSError("store")
    assert not deadline.committed
    assert deadline.abandon()


def test_a_worker_that_breaks_ends_the_agent():
    bench = Bench()

    def broken(_):
        raise ConnectionResetError("store")

    bench.submit("a", broken)
    end = time.monotonic() + 10
    while not bench.crashes and time.monotonic() < end:
        time.sleep(0.001)
    assert isinstance(bench.crashes[0], ConnectionResetError)


def test_an_abandoned_job_that_hangs_lets_its_device_go_on():
    bench, gate = Bench(), threading.Event()
    job = bench.submit("a", lambda _: (gate.wait(20), DONE)[1], seconds=0.05)
    bench.submit("a", lambda _: DONE)
    assert job.deadline.abandon()
    assert bench.wait_for(1) == [("a", DONE)]
    gate.set()


def test_nobody_waits_for_a_crashed_job():
    """The store goes while the agent ends: its clients shall go on at once, not after 38 s."""
    bench = Bench()

    def work(_):
        raise ConnectionError("the store is gone")

    bench.submit("a", work)
    begun = time.monotonic()
    assert not bench.queues.drain(30.0)
    assert time.monotonic() - begun < 10
    assert len(bench.crashes) == 1
    assert bench.answers == []
