"""Guests in the lab: their configurations, their consoles, what they see of their disks."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab.machine import SPARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.machine import Machine, Result

BOOT_SECONDS = 180.0  # a dozen on an idle machine
# A device model loads its kernel byte by byte, each of which leaves the emulated processor.
HVM_BOOT_SECONDS = 600.0
# What the domain builder takes, and what a device model's BIOS does.
KERNEL, HVM_KERNEL = "/srv/vmlinux", "/vmlinuz"
# With no terminal of any kind: SeaBIOS takes minutes to write a line to a serial one.
HVM_LINES = ('vga="none"', "vnc=0", "sdl=0", "usb=0")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Disk:
    """A line of ``disk = [..]``; xl hands a file to the block script only if it is told to."""

    vdev: str
    target: str
    mode: str = "w"
    script: str = "block"
    backend: str = ""  # the driver domain that serves it

    def __str__(self) -> str:
        backend = f"backend={self.backend}," if self.backend else ""
        return (
            f"{backend}vdev={self.vdev},access={self.mode},format=raw,backendtype=phy,"
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
    address: str = ""  # of its first card
    vifs: Sequence[str] = ()  # as xl takes them; with an address and none, one on xenbr0
    ramdisk: str = "/srv/guest.gz"
    options: str = ""  # for its kernel
    more: Sequence[str] = ()  # lines of its configuration
    _number: int = field(default=0, init=False)  # of the last time that it was created
    _seen: int = field(default=0, init=False)  # bytes of its console

    @property
    def is_hvm(self) -> bool:
        """It has a device model."""
        return self.kind == "hvm"

    @property
    def config_path(self) -> str:
        return f"/tmp/{self.name}.cfg"

    @property
    def log(self) -> str:
        return f"/var/log/xen/console/guest-{self.name}.log"

    def config(self) -> str:
        disks = ",".join(f"'{disk}'" for disk in self.disks)
        extra = f"console=hvc0 quiet {SPARE} lab.number={self._number} {self.options}"
        if self.address:
            extra += f" lab.address={self.address}"
        cards = self.vifs or (["bridge=xenbr0"] if self.address else [])
        vifs = ",".join(f"'{card}'" for card in cards)
        lines = [
            f'name="{self.name}"',
            f'type="{self.kind}"',
            f'kernel="{HVM_KERNEL if self.is_hvm else KERNEL}"',
            f'ramdisk="{self.ramdisk}"',
            f'extra="{extra}"',
            f"memory={self.memory}",
            f"disk=[{disks}]",
            f"vif=[{vifs}]",
            *(HVM_LINES if self.is_hvm else ()),
            *self.more,
        ]
        return "\n".join(lines) + "\n"

    def write_config(self) -> None:
        self._number = next(_numbers)
        self.machine.put(self.config_path, self.config())

    def create(self) -> Result:
        """``xl create``; whether that worked is for the caller to see."""
        self.write_config()
        return self.machine.dom0(f"xl create {self.config_path}")

    def start(self) -> None:
        """Create it and wait until it is up."""
        created = self.create()
        assert created.status == 0, str(created)
        self.wait_until_up()

    def wait_until_up(self) -> None:
        limit = HVM_BOOT_SECONDS if self.is_hvm else BOOT_SECONDS
        self._await(rf"^GUEST-READY-{self._number}\r?\n", "it is up", limit)

    def run(self, command: str, limit: float = 60.0) -> str:
        """Run a shell command inside the guest, on its console; what it prints."""
        number = next(_numbers)
        line = f"echo BEGIN-$(({number})); {command}; echo END-$(({number}))=$?\n"
        self.machine.call("type_into", guest=self.name, text=line)
        said = self._await(rf"^END-{number}=\d+\r?\n", command, limit).replace("\r", "")
        found = re.search(rf"BEGIN-{number}\n(.*?)\n?END-{number}=(\d+)", said, re.DOTALL)
        assert found, said
        assert found[2] == "0", f"{self.name}: {command}: {found[1]} (status {found[2]})"
        return found[1]

    def _await(self, pattern: str, what: str, limit: float) -> str:
        """Wait for something on the console; what is new there."""
        wanted = {"path": self.log, "after": self._seen, "pattern": pattern, "limit": limit}
        there = self.machine.call("await_text", **wanted)
        assert there["found"], f"{self.name}: {what}: not after {limit:.0f} s\n{there['text']}"
        self._seen += len(there["text"].encode(errors="surrogateescape"))
        return there["text"]

    @property
    def is_there(self) -> bool:
        return self.name in self.machine.call("guests")

    def destroy(self) -> None:
        if self.is_there:
            self.machine.do(f"xl destroy {self.name}")


def driver_domain(machine: Machine, name: str = "netvm") -> Guest:
    """A guest that serves others: dom0's image, with our scripts and no agent yet."""
    disks = (
        Disk("xvda", "/dev/vdd"),  # its root; there is one, so there can be one driver domain
        Disk("xvdb", "/dev/vdb", mode="r"),  # the payload
    )
    return Guest(
        machine,
        name,
        disks,
        memory=512,
        ramdisk="/srv/root.gz",
        options="root=/dev/xvda lab.init=driver-domain",
        more=("driver_domain=1",),
    )
