"""Plays a scenario on both sides, an operation at a time.

After each operation stock's side is made like ours, so that the next one starts from equal states
and every difference is judged on its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING

from differential import noise
from differential import scenario as a
from differential.binding import attach
from differential.demands import Step
from differential.folder import Target
from differential.observation import BASE, Mentions, differences
from differential.rules import explain
from harness import loops
from harness.locks import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from differential.observation import Bound, Observation
    from differential.world import World
    from harness.guests import Backend

    Sides = Callable[[a.Scenario], AbstractContextManager["Pair"]]

HEX_IS_DECIMAL = 10  # file system devices below are spelled alike, so that stock finds its files
TRIES = 8  # a scenario in which somebody else's loop devices were in the way is played again
PAUSE = 0.2  # seconds longer to wait for them each time


@dataclasses.dataclass(slots=True)
class Pair:
    """Two sides in equal states."""

    stock: World
    ours: World
    before: Observation = dataclasses.field(init=False)
    users: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    owners: dict[str, str] = dataclasses.field(default_factory=dict)

    def build(self) -> None:
        self.stock.build()
        self.ours.build()
        seen = self.stock.observer.observe()
        self.before = self.ours.observer.observe()
        self.users = dict(seen.users)
        wrong = differences(self.before, seen)
        if wrong:  # nothing of anybody's has run yet
            raise noise.DisturbedError(f"the sides were not built alike: {wrong}")

    def play(self, operation: a.Operation) -> Step:
        """One operation on both sides, and what came of it."""
        backend, target = "", Target("none")
        disk = self.ours.disk(operation)
        if disk is not None:
            backend = disk.relative.removeprefix("backend/")
            target = self._placed(disk, inside=getattr(operation, "inside", False))
        if isinstance(operation, a.Remove):
            self.stock.close(operation)
            self.ours.close(operation)
            self.before = closed(self.before, backend)
        stock = self.stock.perform(operation)
        noise.refuse(self.stock.runner.place, backend, stock, sealed=target.sealed)
        ours = self.ours.perform(operation)
        step = Step(
            before=self.before,
            operation=operation,
            backend=backend,
            target=target,
            owners=dict(self.owners),
            mounted=dict(self.ours.folder.mounted),
            users=dict(self.users),
            finds_files=os.stat(self.stock.path).st_dev < HEX_IS_DECIMAL,
            watched=self.ours.runner.agent is not None,
            stock=stock,
            ours=ours,
        )
        self._note_owner(step)
        return step

    def _placed(self, disk: Backend, *, inside: bool) -> Target:
        target, exact = self.ours.target(disk, inside=inside), self.ours.observer.exact
        return dataclasses.replace(target, path=exact(target.path), real=exact(target.real))

    def _note_owner(self, step: Step) -> None:
        if isinstance(step.operation, a.Add):
            for bound in step.ours.loops - step.before.loops:
                self.owners[bound.token] = step.backend
        alive = {bound.token for bound in step.ours.loops}
        self.owners = {token: user for token, user in self.owners.items() if token in alive}

    def level(self, step: Step) -> None:
        """Make stock's side what ours is."""
        wanted = dataclasses.replace(step.ours, status=0, stdout=b"", errors=())
        seen = step.stock
        with contextlib.suppress(FileNotFoundError):
            for name in seen.litter - wanted.litter:
                (self.stock.runner.place.rundir / name).unlink()
        for bound in seen.loops - wanted.loops:
            live = self.stock.observer.find(bound.token)
            assert live is not None
            loops.detach(live.path)
        for bound in sorted(wanted.loops - seen.loops, key=lambda each: each.token):
            self._attach(bound)
        made = {
            file: max(step.stock.made.get(file, 0), step.ours.made.get(file, 0))
            for file in step.stock.made.keys() | step.ours.made.keys()
        }
        self.stock.observer.made, self.ours.observer.made = dict(made), dict(made)
        for path in seen.store.keys() | wanted.store.keys():
            if seen.store.get(path) != wanted.store.get(path):
                self._write(path, wanted)
        now = self.stock.observer.observe()
        wrong = differences(wanted, now)
        assert not wrong, f"stock's side could not be made like ours: {wrong}"
        self.before, self.users = dataclasses.replace(wanted, made=made), dict(now.users)

    def _attach(self, bound: Bound) -> None:
        observer = self.stock.observer
        paths = [
            entry.path
            for entry in os.scandir(os.fsencode(self.stock.path))
            if entry.is_file(follow_symlinks=False)
            and observer.files.get((entry.stat().st_dev, entry.inode())) == bound.file
        ]
        assert paths, f"{bound} cannot be bound on stock's side: its file has no name any more"
        observer.made[bound.file] = int(bound.token.rpartition("#")[2]) - 1
        attach(paths[0], read_only=bound.read_only, offset=bound.offset)
        observer.look_at_loops()

    def _write(self, path: str, wanted: Observation) -> None:
        store = self.stock.runner.place.store
        value = wanted.store.get(path)
        if value is None:
            store.remove(path)
            while path.startswith(f"{BASE}/"):
                path = path.rpartition("/")[0]
                if store.directory(path) or any(each.startswith(path) for each in wanted.store):
                    return
                store.remove(path)
            return
        assert not isinstance(value, Mentions)
        raw = self.stock.observer.concrete(value)
        store.write(path, raw)
        self.stock.observer.learn(path, raw, value)


def closed(before: Observation, backend: str) -> Observation:
    """The state after libxl has closed a device, if it is there at all."""
    if not before.has(backend):
        return before
    keys = {f"{BASE}/{backend}/online": b"0", f"{BASE}/{backend}/state": b"6"}
    return dataclasses.replace(before, store={**before.store, **keys})


@contextlib.contextmanager
def pair(stock: World, ours: World) -> Iterator[Pair]:
    """Two sides of a scenario, gone afterwards, ours by its own means."""
    made = Pair(stock, ours)
    try:
        made.build()
        yield made
        finish(ours)
    finally:
        for world in (stock, ours):
            world.tear_down()


def finish(ours: World) -> None:
    """Remove every disk as libxl does: then nothing that ours attached may be left."""
    for disk in ours.disks:
        result = ours.runner.remove(disk)
        assert result.status == 0, f"the last remove of {disk.relative} failed: {result}"
        disk.delete()
    journal = ours.runner.place.rundir / "journal"
    wait_until(lambda: not journal.exists() or not os.listdir(journal), "the journal is empty")


def play(sides: Sides, scenario: a.Scenario) -> list[Step]:
    """Play a scenario; AssertionError at the first difference that no rule demands."""
    for attempt in range(TRIES - 1):
        with contextlib.suppress(noise.DisturbedError):
            return play_once(sides, scenario)
        time.sleep(attempt * PAUSE)
    return play_once(sides, scenario)


def play_once(sides: Sides, scenario: a.Scenario) -> list[Step]:
    steps = []
    with sides(scenario) as both:
        for number, operation in enumerate(scenario.operations):
            step = both.play(operation)
            demanded, names = explain(step)
            wrong = differences(demanded, step.ours)
            if wrong:
                raise AssertionError(report(number, step, names, wrong))
            both.level(step)
            steps.append(step)
    return steps


def report(number: int, step: Step, names: list[str], wrong: list[str]) -> str:
    lines = [
        f"operation {number}, {step.operation} on {step.backend} ({step.target}):",
        f"rules: {names or 'none'}",
        *(f"  ours must not differ: {line}" for line in wrong),
        *(f"  before to stock: {line}" for line in differences(step.before, step.stock)),
        *(f"  before to ours: {line}" for line in differences(step.before, step.ours)),
    ]
    return "\n".join(lines)
