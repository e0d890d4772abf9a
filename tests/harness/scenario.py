"""Events that are to be disturbed, and runners whose events stop before every step and ask."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import agent as agents
from harness.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.agent import Agent
    from harness.guests import Backend
    from harness.run import Running
    from harness.steps import Steps

ANSWERS = ("physical-device", "physical-device-path", "node", "hotplug-status", "hotplug-error")
FEWEST_STEPS = 5


@dataclass(slots=True)
class AskingRunner(Runner):
    """A runner whose agent, or whose runs, ask."""

    steps: Steps | None = None

    def start_agent(self, variables: Mapping[str, str] | None = None) -> Agent:
        self.agent = agents.start(
            self.place, self.steps.variables | (variables or {}), self.steps.launcher("agent")
        )
        self.steps.meet()
        return self.agent

    def begin(self, backend: Backend, action: str) -> Running:
        """Start the event that is to ask."""
        if self.kind == "agent":
            return self.start(backend, action)
        self.launcher = self.steps.launcher("oneshot")
        run = self.start(backend, action, variables=self.steps.variables)
        self.launcher = ()
        self.steps.meet()
        return run


@dataclass(frozen=True, slots=True)
class Scenario:
    """An event, and how to have it due."""

    action: str
    make: Callable[[], Backend]
    steps: Steps

    def ready(self, runner: Runner) -> Backend:
        """A backend for which the event is due."""
        backend = self.make()
        if self.action == "remove":
            assert runner.add(backend).status == 0
            backend.close()
        return backend

    def begin(self, runner: AskingRunner, number: int) -> tuple[str | None, Backend, Running]:
        """Begin the event for a new backend, and let it go on to a step, the first is number 0.

        The step before which it waits comes first, None if the event was over before.
        """
        backend = self.ready(runner)
        with self.steps.armed():
            run = runner.begin(backend, self.action)
            step = self.steps.walk(number)
        return step, backend, run

    def walks(self, runner: AskingRunner) -> Iterator[tuple[str | None, Backend, Running]]:
        """Begin the event again and again, and let it go one step farther each time."""
        for number in itertools.count():
            step, backend, run = self.begin(runner, number)
            yield step, backend, run
            if step is None:
                assert number > FEWEST_STEPS
                return

    def has_its_device(self, backend: Backend) -> bool:
        """Whether the event has done what it is for."""
        return self.action == "remove" or backend.read("hotplug-status") == b"connected"


def renew(backend: Backend) -> None:
    """After a removal libxl deletes the backend; later it makes another one of the same name."""
    keys = backend.tree()
    backend.store.remove(backend.path)
    for key in ANSWERS:
        keys.pop(key, None)
    keys |= {"state": b"2", "online": b"1"}
    backend.store.write_many({f"{backend.path}/{key}": value for key, value in keys.items()})
