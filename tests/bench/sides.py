"""The two sides of a comparison, and a machine on which both can play the same guest.

What a script left behind is checked after every run: a wrong result is an error, however fast it
came.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import launch
from bench.isolation import catch_syslog
from bench.launch import Command, Took
from harness import agent as agents
from harness import loops
from harness.guests import Guest
from harness.place import STOCK_SCRIPTS, place
from harness.run import scripts_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.agent import Agent
    from harness.guests import Backend
    from harness.place import Place

SETTLE = (
    0.02  # seconds; between libxl's writing of a backend and its script lies the driver's probe
)
DETACH_SECONDS = 5.0  # udev may have a loop device open; the kernel then detaches it afterwards


class ScriptFailedError(Exception):
    """A script did not do what it should."""


@dataclass(frozen=True, slots=True)
class Side:
    """One set of scripts."""

    name: str
    script: str  # the path of its `block`
    place: Place

    @property
    def log(self) -> Path:
        return self.place.directory / f"{self.name}.log"

    def command(self, backend: Backend, action: str) -> Command:
        environment = {
            **self.place.environment(),
            "script": self.script,
            "XENBUS_PATH": backend.relative,
            "XENBUS_TYPE": backend.kind,
            "XENBUS_BASE_PATH": "backend",
        }
        return Command((self.script, action), environment, str(self.log))

    def add(self, backends: Sequence[Backend]) -> Took:
        """``add`` for all at once, as libxl starts a guest."""
        time.sleep(SETTLE)
        took = launch.run([self.command(backend, "add") for backend in backends])
        self.check_statuses("add", took)
        for backend in backends:
            keys = backend.tree()
            if keys.get("hotplug-status") != b"connected" or "physical-device" not in keys:
                raise ScriptFailedError(f"{self.name}: {backend.relative} got no device: {keys}")
        return took

    def remove(self, backends: Sequence[Backend]) -> Took:
        """``remove`` for all at once, after what libxl and the driver do before it."""
        nodes = [(backend.read("node") or b"").decode() for backend in backends]
        for backend in backends:
            backend.close()
        time.sleep(SETTLE)
        took = launch.run([self.command(backend, "remove") for backend in backends])
        self.check_statuses("remove", took)
        for node in filter(None, nodes):
            wait_until_detached(node)
        for backend in backends:
            backend.delete()
        return took

    def check_statuses(self, action: str, took: Took) -> None:
        if any(took.statuses):
            raise ScriptFailedError(
                f"{self.name}: {action} ended with status {max(took.statuses, key=abs)}:"
                f" {self._said()}"
            )

    def _said(self) -> str:
        """The last words of a script, and of the log file that stock writes to instead."""
        words = []
        for log in (self.log, Path("/var/log/xen/xen-hotplug.log")):
            with contextlib.suppress(FileNotFoundError):
                words += log.read_text(errors="replace").split("\n")[-4:]
        return " ".join(words).strip() or "it said nothing"


def wait_until_detached(node: str) -> None:
    give_up = time.monotonic() + DETACH_SECONDS
    while os.path.exists(f"/sys/block/{os.path.basename(node)}/loop/backing_file"):
        if time.monotonic() > give_up:
            raise ScriptFailedError(f"{node} is still attached after `remove`")
        time.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Machine:
    """A store with some guests in it, an agent, and the two sides."""

    place: Place
    agent: Agent
    stock: Side
    ours: Side

    def image(self, name: str) -> str:
        """A sparse file to be a disk; the same name gives the same file."""
        path = self.place.directory / f"{name}.img"
        return str(path if path.exists() else loops.make_file(path, 16 << 20))

    @contextlib.contextmanager
    def disks(self, *images: str, one_guest: bool = False) -> Iterator[list[Backend]]:
        """Disks that wait for their devices, of one guest or of one guest each."""
        guests = [Guest(self.place.store) for _ in (images[:1] if one_guest else images)]
        try:
            yield [guests[-1 if one_guest else n].disk(image) for n, image in enumerate(images)]
        except ScriptFailedError:
            for loop in (loop for image in images for loop in loops.of(Path(image))):
                loops.detach(loop.path)
            raise
        finally:
            for guest in guests:
                guest.destroy()

    def agent_cpu_ms(self) -> float:
        """The CPU time of the agent and its threads so far."""
        fields = Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])  # the fields 14 and 15 of proc(5)
        return (user + system) * 1000 / os.sysconf("SC_CLK_TCK")

    def agent_rss_mib(self) -> float:
        for line in Path(f"/proc/{self.agent.pid}/status").read_text().split("\n"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("/proc/PID/status has no line VmRSS")


@contextlib.contextmanager
def machine(others: int = 0) -> Iterator[Machine]:
    """A machine on which ``others`` disks of other guests are connected already."""
    ours = scripts_directory() / "block"
    if not os.access(ours, os.X_OK):
        raise ScriptFailedError(f"{ours} is not there; install the project with `make venv`")
    with place() as home:
        catch_syslog(home.syslog.path)
        for number in range(others):
            add_other(home, number)
        agent = agents.start(home)
        try:
            yield Machine(
                home,
                agent,
                Side("stock", str(STOCK_SCRIPTS / "block"), home),
                Side("ours", str(ours), home),
            )
        finally:
            agent.stop()
            for loop in loops.below(home.directory):
                loops.detach(loop.path)


def add_other(home: Place, number: int) -> None:
    """Another guest with one disk, on a block device that nobody else wants."""
    Guest(home.store).disk(
        f"/dev/mapper/other-{number}",
        state=4,
        keys={
            "physical-device": f"fd:{number:x}",
            "physical-device-path": f"/dev/mapper/other-{number}",
            "hotplug-status": "connected",
        },
    )
