"""A Xen host in an emulator: boots it, runs commands in its dom0, reads its consoles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab.image import BUILD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.image import Image

BOOT_SECONDS = 240.0  # 20 on an idle machine
COMMAND_SECONDS = 120.0
MORE = 30.0  # seconds for dom0's own limit to strike first
MEMORY = "6G"
DOM0_MEMORY = "2G"
SCRATCH = 32 << 20  # bytes of a block device for guests
# Written to, and forgotten at the end. If there is no room for it dom0 is told so.
DRIVE = "if=virtio,format=raw,cache=unsafe,snapshot=on,werror=report"
# With -cpu max dom0 dies in its first instructions: Xen 4.17 and SMAP do not agree in emulation.
CPU = "qemu64,+svm,+npt"
XEN_OPTIONS = (
    f"dom0_mem={DOM0_MEMORY},max:{DOM0_MEMORY} dom0_max_vcpus=2 console=com1 com1=115200,8n1"
    " loglvl=all guest_loglvl=all spec-ctrl=no"
)
READY = {"ready": True}  # the first that dom0's server says
# What costs time under emulation and does nothing for us; for guests too.
SPARE = "mitigations=off rodata=off cryptomgr.notests apparmor=0 audit=0"
LINUX_OPTIONS = f"root=/dev/vda console=hvc0 net.ifnames=0 quiet {SPARE}"


class LabError(Exception):
    """The lab itself does not work; a sentence for people."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in dom0 came to; ``status`` is None if it took too long and was killed."""

    command: str
    status: int | None
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.stdout}{self.stderr}(status {self.status})"


class Machine:
    """A running host. Close it, or use it in a ``with`` statement."""

    def __init__(
        self, image: Image, *, options: Sequence[str] = (), interactive: bool = False
    ) -> None:
        self.image = image
        self._interactive = interactive  # Xen's console is our terminal
        sweep()
        self._directory = tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=BUILD)
        self._log = Path(self._directory.name) / "serial.log"
        self._pending = b""
        self._broken = ""  # how it failed us
        self._channel: socket.socket | None = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A name that takes no room: a socket's path must be short. It is gone when we are.
        path = f"xen-hotplug-lab-{os.getpid()}-{id(self):x}"
        listener.bind(f"\0{path}")
        listener.listen(1)
        self._log.touch()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(path, options),
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=None if interactive else log,
                stderr=None if interactive else subprocess.STDOUT,
                env={**os.environ, "TMPDIR": self._directory.name},  # for what is written to disks
            )
        try:
            self._channel = self._accept(listener)
            self._wait_until_up()
        except BaseException:
            self.close()
            raise
        finally:
            listener.close()

    def _accept(self, listener: socket.socket) -> socket.socket:
        """QEMU connects before it does anything else."""
        listener.settimeout(0.2)
        give_up = time.monotonic() + BOOT_SECONDS
        while self.is_on and time.monotonic() < give_up:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
        raise LabError(f"QEMU does not start:\n{self.serial()[-3000:]}")

    def _command(self, channel: str, options: Sequence[str]) -> list[str]:
        base = self.image.base
        linux = " ".join((LINUX_OPTIONS, *options))
        scratch = Path(self._directory.name) / "scratch"
        scratch.touch()
        os.truncate(scratch, SCRATCH)
        # /dev/vda to vdd: dom0's root, the payload, a disk for guests, a driver domain's root.
        drives = (base / "root.img", self.image.payload, scratch, base / "root.img")
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # whoever started it is gone: so is it
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi"),
            *("-cpu", CPU, "-smp", "2", "-m", MEMORY),
            *("-nic", "none", "-display", "none", "-monitor", "none"),
            *("-serial", "mon:stdio" if self._interactive else "stdio"),
            *("-kernel", str(base / "xen"), "-append", XEN_OPTIONS),
            *("-initrd", f"{base / 'vmlinuz'} {linux},{self.image.ramdisk}"),
            *(word for drive in drives for word in ("-drive", f"file={drive},{DRIVE}")),
            *("-chardev", f"socket,id=lab,path={channel},abstract=on", "-device", "virtio-serial"),
            *("-device", "virtserialport,chardev=lab,name=xen-hotplug.lab"),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Pull the plug. Nothing that happened in it lasts."""
        if self._channel is not None:
            self._channel.close()
        if self._interactive:
            self.process.terminate()  # it has to put the terminal right again
        else:
            self.process.kill()
        self.process.wait()
        self._directory.cleanup()

    @property
    def is_on(self) -> bool:
        return self.process.poll() is None

    # Commands

    def call(self, name: str, **arguments: Any) -> Any:
        """Have dom0's server do something; what there is to do, dom0/server.py tells."""
        self._send(call=name, arguments=arguments)
        limit = arguments.get("limit", COMMAND_SECONDS) + MORE
        answer = json.loads(self._line(limit, f"dom0 does not answer to: {name} {arguments}"))
        if answer == READY:
            self._broken = f"dom0 went down and came up again during: {name} {arguments}"
            raise LabError(self._broken)
        if "raised" in answer:
            raise LabError(f"{name} {arguments} in dom0: {answer['raised']}")
        return answer["returned"]

    def _send(self, **request: object) -> None:
        self._channel.settimeout(COMMAND_SECONDS)
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self._broken = f"the machine is gone: {error}"
            raise LabError(f"{self._broken}\n{self.serial()[-3000:]}") from error

    def dom0(self, command: str, limit: float = COMMAND_SECONDS) -> Result:
        """Run a shell command in dom0."""
        return Result(command, **self.call("run", command=command, limit=limit))

    def do(self, command: str, limit: float = COMMAND_SECONDS) -> str:
        """The same for a command that has to succeed; what it prints."""
        result = self.dom0(command, limit)
        assert result.status == 0, str(result)
        return result.stdout

    def put(self, path: str, content: str) -> None:
        """Write a file in dom0."""
        self.call("write", path=path, text=content)

    def wait_for(self, command: str, what: str, limit: float = COMMAND_SECONDS) -> None:
        """Wait until a command succeeds; dom0 does the asking."""
        loop = f"until {command}; do sleep 0.2; done"
        result = self.dom0(loop, limit)
        assert result.status == 0, f"{what}: not after {limit:.0f} s\n{self.dom0(command)}"

    def reboot(self, command: str) -> None:
        """Have dom0 and Xen boot again; what was written to disks is still there."""
        arguments = {"command": f"{command} >/dev/null 2>&1 &", "limit": COMMAND_SECONDS}
        self._send(call="run", arguments=arguments)
        if json.loads(self._line(COMMAND_SECONDS, "dom0 does not reboot")) != READY:
            self._wait_until_up()

    def _wait_until_up(self) -> None:
        begin = time.monotonic()
        answer = json.loads(self._line(BOOT_SECONDS, "dom0 did not come up"))
        if answer != READY:
            raise LabError(f"dom0 said {answer} when it had to say that it is ready")
        self.boot_seconds = time.monotonic() - begin

    def _line(self, seconds: float, problem: str) -> bytes:
        if self._broken:
            raise LabError(self._broken)  # nobody waits for it again
        give_up = time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = give_up - time.monotonic()
            data = b""
            if left > 0:
                self._channel.settimeout(left)
                try:
                    data = self._channel.recv(1 << 20)
                except OSError:  # too late, or QEMU is gone
                    data = b""
            if not data:
                self._broken = problem
                raise LabError(f"{problem}\n{self.serial()[-3000:]}")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    # Consoles and logs

    def serial(self) -> str:
        """What Xen and dom0's kernel said."""
        return self._log.read_text(errors="replace")

    def logs(self) -> str:
        """Everything that may tell what went wrong, for the report of a failed test."""
        parts = [f"--- Xen and dom0's kernel\n{self.serial()[-6000:]}"]
        try:
            parts.append(self.dom0(LOGS, 30).stdout)
        except (LabError, OSError) as error:
            parts.append(f"dom0 does not answer: {error}")
        return "\n".join(parts)


def sweep() -> None:
    """Remove what runs left behind that were killed."""
    for folder in BUILD.glob("run-*-*"):
        if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


LOGS = """
for command in 'xl list' 'xl dmesg | tail -n 40' 'losetup -a' 'dmesg | tail -n 30'; do
    echo "--- $command"; bash -c "$command" 2>&1
done
[ -d /run/systemd/system ] && journalctl --no-pager -b -u 'xen*' | tail -n 60
for file in /var/log/xen/*.log /var/log/xen/console/*.log /run/agent.log; do
    [ -e "$file" ] && { echo "--- $file"; tail -n 25 "$file"; }
done
true
"""
