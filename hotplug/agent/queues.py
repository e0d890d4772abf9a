"""One queue per device, and workers that take from them.

Events of one device run in order; different devices run side by side. A few workers serve all
devices, because Python runs one of them at a time anyway. A worker that hangs in the kernel is
not counted: whenever work waits and no worker took any for a moment, there is one more. When an
event is taken from its worker (time is up), its device goes on with the next event; the worker
undoes what it did as soon as the kernel lets it go.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from hotplug.agent.deadline import GRACE
from hotplug.agent.dispatch import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.agent.deadline import EventDeadline
    from hotplug.errors import HotplugError

USUAL_WORKERS = 3  # two cores' worth of kernel time, and one that waits
MAX_WORKERS = 2000  # as many devices may hang at once before others wait for them
STARVED = 0.02  # seconds without anybody taking work: one more worker
LOOK_AGAIN = 0.1  # seconds, at a job whose time is up and that is not done
LAST_WORDS = 1.0  # seconds to write hotplug-error; the toolstack's 40 s are near
IDLE = 60.0  # seconds after which a surplus worker ends

Work: TypeAlias = "Callable[[EventDeadline], Outcome]"


@dataclass(slots=True, eq=False)
class Job:
    """Something to do for one device, and whom to tell."""

    key: str  # jobs of one key run in order
    name: str  # for people: "block add backend/vbd/5/51712"
    work: Work
    answer: Callable[[Outcome], None]
    late: Callable[[HotplugError, EventDeadline], Outcome]  # the answer when time is up
    deadline: EventDeadline
    running: bool = False
    answered: bool = False
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, outcome: Outcome) -> None:
        """Answer once: the worker and the clock may both come to the end."""
        with self.mutex:
            if self.answered:
                return
            self.answered = True
        self.answer(outcome)


class Worker:
    """A thread, and the job that it is handed while it sleeps.

    Each has a lock of its own to sleep on: a queue wakes one worker too many for every job, and
    they would wait for each other to let go of the interpreter.
    """

    __slots__ = ("_awake", "_job")

    def __init__(self) -> None:
        self._awake = threading.Lock()
        self._awake.acquire()
        self._job: Job | None = None

    def hand(self, job: Job | None) -> None:
        self._job = job
        self._awake.release()

    def wait(self) -> Job | None:
        """Sleep until there is a job; None: there is no need for this worker any more."""
        self._awake.acquire()
        return self._job


class Queues:
    """All queues, and the workers."""

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._on_crash = on_crash
        self._crashed = False
        self._mutex = threading.Lock()
        self._waiting: dict[str, deque[Job]] = {}  # a key is there while one of its jobs runs
        self._ready: deque[Job] = deque()  # those for which no worker was idle
        self._jobs: set[Job] = set()
        self._ends: list[tuple[float, int, Job]] = []  # a heap; also of jobs that are done
        self._submitted = 0
        self._workers = 0
        self._idle: list[Worker] = []  # a stack: who worked last is still warm
        self._loop = 0  # the thread that calls ``tick`` again and again
        self._handed: list[tuple[Worker, Job]] = []  # at its next call
        self._last_taken = 0.0
        self._waiting_since = 0.0
        self.finished = 0
        for _ in range(USUAL_WORKERS):
            self._add_worker()

    def submit(self, job: Job) -> None:
        with self._mutex:
            self._jobs.add(job)
            self._submitted += 1
            heapq.heappush(self._ends, (job.deadline.end + GRACE, self._submitted, job))
            queue = self._waiting.get(job.key)
            if queue is not None:
                queue.append(job)
                return
            self._waiting[job.key] = deque()
            self._start(job)

    def _start(self, job: Job) -> None:
        """Called with the mutex."""
        job.running = True
        if self._idle:
            worker = self._idle.pop()
            if threading.get_ident() == self._loop:
                self._handed.append((worker, job))
            else:
                worker.hand(job)
            return
        if not self._ready:
            self._waiting_since = time.monotonic()
        self._ready.append(job)

    def _add_worker(self) -> None:
        self._workers += 1
        threading.Thread(target=self._serve, name="worker", daemon=True).start()

    def _serve(self) -> None:
        worker = Worker()
        while (job := self._next(worker)) is not None:
            self._last_taken = time.monotonic()
            self._work_on(job)
        with self._mutex:
            self._workers -= 1

    def _next(self, worker: Worker) -> Job | None:
        with self._mutex:
            if self._ready:
                return self._ready.popleft()
            self._idle.append(worker)
        return worker.wait()

    def _work_on(self, job: Job) -> None:
        try:
            outcome = job.work(job.deadline)
        except BaseException as error:  # noqa: BLE001 - the store is gone or we have a bug
            self._crash(error)
            return
        if not job.deadline.was_taken:  # or else whoever took it answers
            job.tell(outcome)
        self._end(job)

    def _end(self, job: Job) -> None:
        """Let the device go on with its next event, whoever noticed the end first."""
        with self._mutex:
            if job not in self._jobs:
                return
            self._jobs.discard(job)
            self.finished += 1
            queue = self._waiting[job.key]
            if queue:
                self._start(queue.popleft())
            else:
                del self._waiting[job.key]

    def tick_from_here(self) -> None:
        """The calling thread will ``tick`` before it sleeps.

        So it wakes workers up then: at once they would wait for it to let go of the interpreter.
        """
        self._loop = threading.get_ident()

    def tick(self) -> float | None:
        """Look after jobs whose time is up and after starving ones.

        Returns the number of seconds after which to look again, None if nothing runs.
        """
        wait = self._look()
        while self._handed:
            worker, job = self._handed.pop()
            worker.hand(job)
        return wait

    def _look(self) -> float | None:
        now = time.monotonic()
        with self._mutex:
            late, next_end = self._late(now)
            starved = bool(self._ready)
            since = max(self._last_taken, self._waiting_since)
            if starved and now - since > STARVED and self._workers < MAX_WORKERS:
                self._add_worker()
        for job in late:
            self._expire(job)
        self._shrink(now)
        if starved:
            return STARVED
        return None if next_end is None else max(0.0, next_end - now)

    def _late(self, now: float) -> tuple[list[Job], float | None]:
        """Jobs whose time is up, and when to look again. Each is seen until it is done."""
        late = []
        while self._ends and (self._ends[0][0] <= now or self._ends[0][2] not in self._jobs):
            _, number, job = heapq.heappop(self._ends)
            if job in self._jobs:
                late.append(job)
                heapq.heappush(self._ends, (now + LOOK_AGAIN, number, job))
        return late, self._ends[0][0] if self._ends else None

    def _expire(self, job: Job) -> None:
        """Answer for a job that takes too long. Its worker may hang for ever."""
        with self._mutex:
            if not job.running:
                queue = self._waiting[job.key]
                if job in queue:
                    queue.remove(job)
                    self._jobs.discard(job)
        if not job.deadline.expire():
            if job.deadline.was_taken and job.running:
                self._end(job)  # nobody waits for it and it hangs: let its device go on
                threading.Thread(target=job.deadline.let_go, daemon=True).start()
            elif time.monotonic() > job.deadline.end + GRACE + LAST_WORDS:
                # The store hangs in the commit. What comes of it, it alone will know.
                job.tell(late_outcome(job.deadline.error()))
            return

        error = job.deadline.error()
        report = threading.Thread(target=self._report, args=(job, error), daemon=True)
        report.start()
        threading.Thread(target=self._answer_late, args=(job, error, report), daemon=True).start()

    def _report(self, job: Job, error: HotplugError) -> None:
        try:
            job.deadline.let_go()
            job.tell(job.late(error, job.deadline))
        except BaseException as crash:  # noqa: BLE001 - as for workers
            self._crash(crash)

    def _crash(self, error: BaseException) -> None:
        """The job stays without an answer: its client sees us end, and goes on alone."""
        self._crashed = True
        self._on_crash(error)

    def _answer_late(self, job: Job, error: HotplugError, report: threading.Thread) -> None:
        """The store may be what hangs: then the caller gets the sentence without it."""
        report.join(LAST_WORDS)
        job.tell(late_outcome(error))
        if job.running:
            self._end(job)

    def _shrink(self, now: float) -> None:
        if now - self._last_taken > IDLE and len(self._idle) > USUAL_WORKERS:
            with self._mutex:
                if len(self._idle) > USUAL_WORKERS:
                    self._idle.pop(0).hand(None)

    def drain(self, seconds: float) -> bool:
        """Wait until all is done; False if something still runs after ``seconds``.

        After a crash there is no use in waiting: at a shutdown the store may go before us.
        """
        end = time.monotonic() + seconds
        while self._jobs and not self._crashed and time.monotonic() < end:
            self.tick()
            time.sleep(0.005)
        return not self._jobs

    def snapshot(self) -> list[Job]:
        """The jobs that run or wait, for the status."""
        with self._mutex:
            return sorted(self._jobs, key=lambda job: job.deadline.started)

    @property
    def workers(self) -> int:
        return self._workers


def late_outcome(error: HotplugError) -> Outcome:
    """For the caller alone; the store does not get it."""
    return Outcome(error.exit_code, str(error))
