"""Guests in the lab: their configurations, their consoles, what they see of their disks."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.machine import Machine, Result

BOOT_SECONDS = 90.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Disk:
    """A line of ``disk = [..]``; xl hands a file to the block script only if it is told to."""

    vdev: str
    target: str
    mode: str = "w"
    script: str = "block"

    def __str__(self) -> str:
        return (
            f"vdev={self.vdev},access={self.mode},format=raw,backendtype=phy,"
            f"script={self.script},target={self.target}"
        )


@dataclass(slots=True)
class Guest:
    """A guest that may or may not be there."""

    machine: Machine
    name: str
    disks: Sequence[Disk] = ()
    kind: str = "pv"
    memory: int = 160
    address: str = ""  # of its card on xenbr0; no card if empty
    _seen: int = field(default=0, init=False)  # of its console, when it was made

    @property
    def config_path(self) -> str:
        return f"/tmp/{self.name}.cfg"

    @property
    def log(self) -> str:
        return f"/var/log/xen/console/guest-{self.name}.log"

    def config(self) -> str:
        disks = ",".join(f"'{disk}'" for disk in self.disks)
        extra = "console=hvc0 quiet" + (f" address={self.address}" if self.address else "")
        lines = [
            f'name="{self.name}"',
            f'type="{self.kind}"',
            'kernel="/tmp/vmlinux"',
            'ramdisk="/tmp/guest.gz"',
            f'extra="{extra}"',
            f"memory={self.memory}",
            f"disk=[{disks}]",
            "vif=['bridge=xenbr0']" if self.address else "",
        ]
        return "\n".join(lines) + "\n"

    def write_config(self) -> None:
        self.machine.put(self.config_path, self.config())

    def create(self) -> Result:
        """``xl create``; whether that worked is for the caller to see."""
        self.write_config()
        return self.machine.dom0(f"xl create {self.config_path}")

    def start(self) -> None:
        """Create it and wait until it is up."""
        self._seen = self._console_size()
        created = self.create()
        assert created.status == 0, str(created)
        self.wait_until_up()

    def wait_until_up(self) -> None:
        self.machine.wait_for(
            f"tail -c +{self._seen + 1} {self.log} | grep -q GUEST-READY",
            f"{self.name} is up",
            BOOT_SECONDS,
        )

    def _console_size(self) -> int:
        return int(self.machine.do(f"stat -c %s {self.log} 2>/dev/null || echo 0"))

    def run(self, command: str, limit: float = 60.0) -> str:
        """Run a shell command inside the guest, on its console; what it prints."""
        number = next(_numbers)
        before = self._console_size()
        line = f"echo BEGIN-$(({number})); {command}; echo END-$(({number}))=$?"
        self.machine.put(f"/tmp/{self.name}.line", f"{line}\n")
        domid = f"$(xl domid {self.name})"
        self.machine.do(
            f"cat /tmp/{self.name}.line > $(xenstore-read /local/domain/{domid}/console/tty)"
        )
        fresh = f"tail -c +{before + 1} {self.log}"
        self.machine.wait_for(f"{fresh} | grep -q '^END-{number}='", command, limit)
        said = self.machine.do(fresh).replace("\r", "")
        found = re.search(rf"BEGIN-{number}\n(.*?)\n?END-{number}=(\d+)", said, re.DOTALL)
        assert found, said
        assert found[2] == "0", f"{self.name}: {command}: {found[1]} (status {found[2]})"
        return found[1]

    @property
    def is_there(self) -> bool:
        return self.machine.dom0(f"xl domid {self.name}").status == 0

    def destroy(self) -> None:
        if self.is_there:
            self.machine.do(f"xl destroy {self.name}")
            self.machine.wait_for(f"! xl domid {self.name} 2>/dev/null", f"{self.name} is gone")
