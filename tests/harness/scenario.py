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
REMOVALS = ("remove", "offline")
FEWEST_STEPS = 5


@dataclass(slots=True)
class AskingRunner(Runner):
    """A runner whose agent, or whose runs, ask."""

    steps: Steps | None = None
    patience: float = 30.0  # seconds until a request to the store times out

    @property
    def variables(self) -> dict[str, str]:
        return {**self.steps.variables, "STORE_PATIENCE": str(self.patience)}

    def start_agent(self, variables: Mapping[str, str] | None = None) -> Agent:
        launcher = (*self.launcher, *self.steps.launcher("agent"))
        self.agent = agents.start(self.place, self.variables | (variables or {}), launcher)
        self.steps.meet()
        return self.agent

    def begin(self, backend: Backend, action: str) -> Running:
        """Start the event that is to ask."""
        start = self.start_card if backend.kind == "vif" else self.start
        if self.kind == "agent":
            return start(backend, action)
        cage = self.launcher
        self.launcher = (*cage, *self.steps.launcher("oneshot"))
        run = start(backend, action, variables=self.variables)
        self.launcher = cage
        self.steps.meet()
        return run


@dataclass(frozen=True, slots=True)
class Scenario:
    """An event, and how to have it due."""

    action: str
    make: Callable[[], Backend]
    steps: Steps
    ahead: bool = False  # whether the agent has read the backend's keys when the event comes

    def ready(self, runner: Runner) -> Backend:
        """A backend for which the event is due."""
        backend = self.make()
        if self.action in REMOVALS:
            add = runner.online if backend.kind == "vif" else runner.add
            assert add(backend).status == 0
            backend.close()
        return backend

    def stop_before(self, runner: AskingRunner, name: str) -> tuple[Backend, Running]:
        """Begin the event for a new backend, and let it go on to a step."""
        backend = self.ready(runner)
        with self.steps.armed(ahead=self.ahead):
            run = runner.begin(backend, self.action)
            while (step := self.steps.step()) != name:
                assert step is not None, f"there is no {name} in this event"
                self.steps.go()
        return backend, run

    def walks(self, runner: AskingRunner) -> Iterator[tuple[str | None, Backend, Running]]:
        """Begin the event again and again, and let it go one step farther each time.

        The step before which it waits comes first, None if the event is over.
        """
        for number in itertools.count():
            backend = self.ready(runner)
            with self.steps.armed(ahead=self.ahead):
                run = runner.begin(backend, self.action)
                step = self.steps.walk(number)
            yield step, backend, run
            if step is None:
                assert number > FEWEST_STEPS
                return

    def has_its_device(self, backend: Backend) -> bool:
        """Whether the event has done what it is for."""
        return self.action in REMOVALS or backend.read("hotplug-status") == b"connected"


def renew(backend: Backend) -> None:
    """After a removal libxl deletes the backend; later it makes another one of the same name."""
    keys = backend.tree()
    backend.store.remove(backend.path)
    for key in ANSWERS:
        keys.pop(key, None)
    keys |= {"state": b"2", "online": b"1"}
    backend.store.write_many({f"{backend.path}/{key}": value for key, value in keys.items()})
