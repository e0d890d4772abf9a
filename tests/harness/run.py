"""Run a hotplug script as libxl does, in one of three ways.

``stock`` is Debian's /etc/xen/scripts: it shows that a test is right about what stock does.
``agent`` is the drop-in of the same name with an agent running, ``oneshot`` the same drop-in
without one. Argv, environment and descriptors are those of contract 1.2.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import agent as agents
from harness.syslog import ERR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.agent import Agent
    from harness.guests import Backend
    from harness.place import Place
    from harness.proxy import Proxy
    from harness.syslog import Message

SECONDS = 40.0  # libxl's limit for one run
STOCK_TRIES = 20
LOST_RACE = re.compile(r"losetup .*/dev/loop\d+ .* failed$")

# The stock scripts have their directories and the log socket built in. In a mount namespace of
# its own a run finds this place's under those names. A new one for each run: it then has the
# mounts that the test has made meanwhile.
ENTER = """
mount --bind "$1/run" /run/xen-hotplug
mount --bind "$1/log" /var/log/xen
mount --bind "$1/scripts" /etc/xen/scripts
mount --bind "$1/logger" /usr/bin/logger
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended and what it said."""

    status: int  # negative: the signal that ended it
    stdout: bytes
    stderr: bytes
    log: str  # what was added to the log file
    syslog: list[Message]
    script: str  # argv[0]

    @property
    def errors(self) -> list[str]:
        """The messages of priority daemon.err."""
        return [message.text for message in self.syslog if message.priority == ERR]


@dataclass(slots=True)
class Running:
    """A run that has not ended yet."""

    process: subprocess.Popen[bytes]
    runner: Runner
    script: str
    arguments: tuple[str, ...]
    backend: Backend | None
    log_before: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """What libxl does after 40 s: SIGKILL to this one process."""
        self.process.kill()
        self.process.communicate()
        self.runner.running.remove(self)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float = SECONDS) -> Result:
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.runner.running.remove(self)
        self.runner.check(self)
        return Result(
            self.process.returncode,
            stdout,
            stderr,
            self.runner.logged(self.log_before),
            self.runner.place.syslog.take(),
            self.script,
        )


@dataclass(slots=True)
class Runner:
    """One way to run scripts, in one place."""

    kind: str  # stock, agent or oneshot
    place: Place
    agent: Agent | None = None
    domid: int = 0  # of the domain that the runs are in
    proxy: Proxy | None = None  # between the runs and the store, if there is one
    launcher: tuple[str, ...] = ()  # a command that starts the runs, or the agent, in a cage
    faults: list[str] = field(default_factory=list)  # broken promises, see check()
    running: list[Running] = field(default_factory=list)

    @property
    def is_stock(self) -> bool:
        return self.kind == "stock"

    def script(self, name: str) -> str:
        """The path of a script, as ``BE/script`` has it."""
        return f"/etc/xen/scripts/{name}" if self.is_stock else str(scripts_directory() / name)

    def start(
        self,
        backend: Backend | str | None,
        *arguments: str,
        script: str = "block",
        variables: Mapping[str, str | None] | None = None,
        cwd: str | Path = "/",
        relative: bool = True,
    ) -> Running:
        """Start a script; ``variables`` of value None are left out of the environment."""
        path = self.script(script)
        environment = self._environment(backend, path, relative=relative)
        for name, value in (variables or {}).items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        prefix = self._namespace() if self.is_stock else ()
        log_before = self.log_size()
        process = subprocess.Popen(
            [*self.launcher, *prefix, path, *arguments],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        known = None if isinstance(backend, str) else backend
        run = Running(process, self, path, arguments, known, log_before)
        self.running.append(run)
        return run

    def end_all(self) -> int:
        """Kill what a test left running; how many there were."""
        left = list(self.running)
        for run in left:
            run.kill()
        return len(left)

    def run(
        self,
        backend: Backend | str | None,
        *arguments: str,
        script: str = "block",
        variables: Mapping[str, str | None] | None = None,
        cwd: str | Path = "/",
        relative: bool = True,
        seconds: float = SECONDS,
    ) -> Result:
        """Run a script to its end."""
        return self.start(
            backend,
            *arguments,
            script=script,
            variables=variables,
            cwd=cwd,
            relative=relative,
        ).wait(seconds)

    def add(self, backend: Backend, **options) -> Result:
        """``add``, for stock as often as it takes.

        Stock loses a free loop device to whoever else takes it in between (D16), and that is
        what other users of this machine do. The tests are about what it does if it wins.
        """
        for _ in range(STOCK_TRIES if self.is_stock else 1):
            result = self.run(backend, "add", **options)
            if not any(LOST_RACE.search(text) for text in result.errors):
                break
            backend.drop("hotplug-error", "hotplug-status", "node")
            self.place.block_lock.unlink(missing_ok=True)
        return result

    def remove(self, backend: Backend, **options) -> Result:
        """``remove`` as libxl gets to it: the backend is closed first, if it is still there."""
        if backend.exists:
            backend.close()
        return self.run(backend, "remove", **options)

    def online(self, backend: Backend, **options) -> Result:
        """Run a card's script for its vif, as libxl does after the device model started."""
        return self._card(backend, "online", "vif", **options)

    def offline(self, backend: Backend, **options) -> Result:
        """The same once it is closed."""
        if backend.exists:
            backend.close()
        return self._card(backend, "offline", "vif", **options)

    def tap(self, backend: Backend, action: str, **options) -> Result:
        """``add`` or ``remove`` for the tap of a guest's emulated card."""
        variables = {"INTERFACE": f"{backend.link}-emu", **(options.pop("variables", None) or {})}
        return self._card(backend, action, "tap", variables=variables, **options)

    def _card(self, backend: Backend, action: str, role: str, **options) -> Result:
        return self.start_card(backend, action, role, **options).wait()

    def start_card(
        self,
        backend: Backend,
        action: str,
        role: str = "vif",
        variables: Mapping[str, str | None] | None = None,
        words: tuple[str, ...] = (),
        **options,
    ) -> Running:
        """Start a card's script, with further words of the administrator's."""
        configured = (backend.read("script") or b"vif-bridge").decode()
        options = {"script": os.path.basename(configured), **options}
        known = {"vif": backend.link, **(variables or {})}
        arguments = (action, f"type_if={role}", *words)
        return self.start(backend, *arguments, variables=known, **options)

    def log_size(self) -> int:
        log = self.place.log_file
        return log.stat().st_size if log.exists() else 0

    def logged(self, before: int) -> str:
        log = self.place.log_file
        return log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""

    def check(self, run: Running) -> None:
        """Note what lines 126 and 127 of the checklist forbid, after whatever run."""
        backend = run.backend
        if self.is_stock or backend is None:
            return
        actions = {"online", "offline"} if backend.kind == "vif" else {"add", "remove"}
        if not actions & set(run.arguments):
            return
        with contextlib.suppress(ConnectionError):
            keys = backend.tree()
            what = f"{' '.join(run.arguments)} of {backend.relative} ({run.process.returncode})"
            if run.process.returncode > 0 and keys and "hotplug-error" not in keys:
                self.faults.append(f"{what} failed without hotplug-error: {keys}")
            if self.claims_device(backend, keys) and "physical-device" not in keys:
                self.faults.append(f"{what} left connected without physical-device: {keys}")

    @staticmethod
    def claims_device(backend: Backend, keys: Mapping[str, bytes]) -> bool:
        return backend.kind == "vbd" and keys.get("hotplug-status") == b"connected"

    def start_agent(self, variables: Mapping[str, str] | None = None) -> Agent:
        self.agent = agents.start(self.place, variables, self.launcher)
        return self.agent

    def restart_agent(self, variables: Mapping[str, str] | None = None) -> None:
        """Have a new agent, if there is one at all; the old one may have died."""
        if self.agent is not None:
            assert self.agent.process.poll() is not None or self.agent.stop() == 0
            self.start_agent(variables)

    def reconfigure(self, **settings: object) -> None:
        """Change the configuration; an agent is started again."""
        self.place.configure(**settings)
        self.restart_agent()

    def _environment(
        self, backend: Backend | str | None, path: str, *, relative: bool
    ) -> dict[str, str]:
        environment = {**self.place.environment(), "script": path, "XENBUS_BASE_PATH": "backend"}
        if isinstance(backend, str):
            environment |= {"XENBUS_PATH": backend, "XENBUS_TYPE": "vbd"}
        elif backend is not None:
            where = backend.relative if relative else backend.path
            environment |= {"XENBUS_PATH": where, "XENBUS_TYPE": backend.kind}
        return environment

    def _namespace(self) -> list[str]:
        home = self.place.directory
        logger = home / "logger"
        if not logger.exists():
            shutil.copy("/usr/bin/logger", home / "logger.real")
            logger.write_text(
                f'#!/bin/sh\nexec {home}/logger.real --socket {self.place.syslog.path} "$@"\n'
            )
            logger.chmod(0o755)
            Path("/run/xen-hotplug").mkdir(exist_ok=True)
            self.place.log_file.parent.mkdir(exist_ok=True)
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        return [*unshare, "sh", "-ec", ENTER, "sh", str(home)]


@functools.cache
def scripts_directory() -> Path:
    """Where the drop-ins are installed."""
    command = [sys.executable, "-m", "hotplug", "scripts-dir"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    return Path(done.stdout.strip())
