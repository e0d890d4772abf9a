"""Everything that a run of a script touches, apart from everybody else's.

A place has a store, a runtime directory with the lock files, a log file, a system log and a
folder of scripts. The drop-ins are told by their environment and configuration, the stock
scripts, which have these names built in, by a mount namespace (see run.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import xenstored
from harness.domain import Domain
from harness.proxy import Proxy
from harness.store import Store
from harness.syslog import Syslog

if TYPE_CHECKING:
    from collections.abc import Iterator

STOCK_SCRIPTS = Path("/etc/xen/scripts")


@dataclass(frozen=True, slots=True)
class Place:
    """Directories and services of one group of runs."""

    directory: Path
    daemon: xenstored.Daemon
    store: Store  # as domain 0, whatever the runs connect as
    syslog: Syslog
    socket: str  # the store, as the runs know it

    @property
    def rundir(self) -> Path:
        return self.directory / "run"

    @property
    def block_lock(self) -> Path:
        return self.rundir / "block"

    @property
    def log_file(self) -> Path:
        return self.directory / "log" / "xen-hotplug.log"

    @property
    def scripts(self) -> Path:
        """Where block-* programs of others are looked for: a copy of the stock scripts."""
        return self.directory / "scripts"

    @property
    def config(self) -> Path:
        return self.directory / "xen-hotplug.toml"

    def configure(self, **settings: object) -> None:
        """Write the configuration file; an agent has to be started again to see it."""
        values: dict[str, object] = {
            "log_file": str(self.log_file),
            "syslog": str(self.syslog.path),
            "scripts": str(self.scripts),
            **settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def environment(self) -> dict[str, str]:
        """What a toolstack's process has, and where this place is."""
        inherited = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
            if name in os.environ
        }
        return {
            **inherited,
            "XENSTORED_PATH": self.socket,
            "XEN_HOTPLUG_RUNDIR": str(self.rundir),
            "XEN_HOTPLUG_CONFIG": str(self.config),
        }

    def helper(self, name: str, text: str) -> Path:
        """Put a program of somebody else's into the folder of scripts."""
        path = self.scripts / name
        path.write_text(text)
        path.chmod(0o755)
        return path


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A place of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="xh-") as name:
        directory = Path(name)
        with xenstored.start(directory / "xs") as daemon, Store(daemon.socket) as store:
            syslog = Syslog(directory / "syslog")
            made = Place(directory, daemon, store, syslog, daemon.socket)
            made.rundir.mkdir()
            made.log_file.parent.mkdir()
            shutil.copytree(STOCK_SCRIPTS, made.scripts)
            made.configure()
            try:
                yield made
            finally:
                syslog.close()


@contextlib.contextmanager
def place_behind_proxy() -> Iterator[tuple[Place, Proxy]]:
    """A place whose runs reach the store through a proxy."""
    with place() as made:
        proxy = Proxy(str(made.directory / "proxy"), made.daemon.socket)
        try:
            yield dataclasses.replace(made, socket=proxy.path), proxy
        finally:
            proxy.close()


@contextlib.contextmanager
def place_in_domain(domid: int) -> Iterator[Place]:
    """A place whose runs are in a driver domain."""
    with place() as made:
        domain = Domain(made.daemon, domid)
        try:
            yield dataclasses.replace(made, socket=domain.path)
        finally:
            domain.close()
