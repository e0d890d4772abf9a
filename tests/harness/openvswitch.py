"""A real Open vSwitch: its two daemons in a network namespace, with the userspace datapath.

No system service, no kernel module and no file outside of its folder is touched. ``ovs-vsctl`` is
the oracle: it shows what the database has.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.netns import Netns

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
READY_SECONDS = 10.0


@dataclass(slots=True)
class Switch:
    """The daemons, by their pids, and their folder."""

    directory: Path
    namespace: Netns
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def socket(self) -> str:
        return f"{self.directory}/db.sock"

    @property
    def environment(self) -> dict[str, str]:
        folder = str(self.directory)
        names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        return {"PATH": os.environ["PATH"], **dict.fromkeys(names, folder)}

    def start_server(self) -> None:
        command = ["ovsdb-server", f"{self.directory}/conf.db", f"--remote=punix:{self.socket}"]
        self._start("server", command)
        self._wait(lambda: Path(self.socket).exists() and self.vsctl("--no-wait", "init") == "")

    def start_vswitchd(self) -> None:
        self._start("vswitchd", ["ovs-vswitchd", f"unix:{self.socket}", "--disable-system"])
        self._wait(lambda: self.appctl("version").startswith("ovs-vswitchd"))

    def _start(self, name: str, command: list[str]) -> None:
        control = [f"--unixctl={self.directory}/{name}.ctl"]
        log = [f"--log-file={self.directory}/{name}.log", "-vconsole:off"]
        self.daemons[name] = subprocess.Popen(
            [*self.namespace.launcher, *command, *control, *log],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait(self, condition) -> None:
        until = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                if condition():
                    return
            assert time.monotonic() < until, "Open vSwitch does not start"
            time.sleep(0.02)

    def stop(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(READY_SECONDS)

    def kill(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.kill()
        process.wait(READY_SECONDS)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A daemon that hangs."""
        process = self.daemons[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def vsctl(self, *words: str) -> str:
        command = ["ovs-vsctl", f"--db=unix:{self.socket}", "--timeout=5", *words]
        return self._output(command).strip()

    def appctl(self, *words: str) -> str:
        return self._output(["ovs-appctl", f"--target={self.directory}/vswitchd.ctl", *words])

    def _output(self, command: list[str]) -> str:
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        ).stdout

    def add_bridge(self, name: str) -> None:
        self.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")

    def ports(self, bridge: str) -> list[str]:
        return self.vsctl("list-ports", bridge).split()

    def row(self, table: str, name: str, *columns: str) -> list[object]:
        """Columns of a row, as the protocol writes them."""
        found = self.vsctl("--format=json", f"--columns={','.join(columns)}", "list", table, name)
        answer = json.loads(found)
        (row,) = answer["data"]
        return [row[answer["headings"].index(column)] for column in columns]

    def port(self, name: str) -> tuple[list[int], list[int]]:
        """Tag and trunks."""
        tag, trunks = self.row("Port", name, "tag", "trunks")
        return as_list(tag), as_list(trunks)

    def external_ids(self, name: str) -> dict[str, str]:
        (ids,) = self.row("Interface", name, "external_ids")
        return dict(ids[1])


def as_list(value: object) -> list[int]:
    return list(value[1]) if isinstance(value, list) else [value]


@contextlib.contextmanager
def switch(namespace: Netns) -> Iterator[Switch]:
    """A running switch without a bridge; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ovs-") as directory:
        made = Switch(Path(directory), namespace)
        made._output(["ovsdb-tool", "create", f"{directory}/conf.db", SCHEMA])
        try:
            made.start_server()
            made.start_vswitchd()
            yield made
        finally:
            for name in ("vswitchd", "server"):
                if name in made.daemons:
                    made.stop(name)
