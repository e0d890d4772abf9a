"""A script was run: what that asks for.

The conversion is pure. The same words reach us from the thin client through the control socket,
and from the process's own arguments and environment in a one-shot run.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import UsageError
from hotplug.events import Action, Device, Event, parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a toolstack may ask for.
PUBLIC = {action.value: action for action in Action if not action.is_ours}

# The link of a guest's emulated card, as device models name it; ``tap`` until Xen 4.1.
TAP = re.compile(r"(?:vif|tap)(\d{1,5})\.(\d{1,10})(?:-emu)?")
OF_VIF = (Action.ONLINE, Action.OFFLINE)
OF_TAP = (Action.ADD, Action.REMOVE)

PROBE = "block-drbd-probe"  # has a device as its argument
IFUP = "qemu-ifup"  # has a tap and a bridge as its arguments
SETUP = "vif-setup"  # stands for the script that the variable of this name says
SCSI = "vscsi"
CLEANUP = "xen-hotplug-cleanup"  # has no arguments: udev runs it when a device is gone

# The variable `script`: xend wrote parameters behind the path, libxl a path that may have blanks.
SCRIPT = re.compile(r"(?P<path>.*?)(?P<words>(?:\s+[A-Za-z_]\w*=\S*)*)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Invocation:
    """A script's argv, environment and working directory, as the toolstack gave them."""

    argv: tuple[str, ...]
    variables: Mapping[str, str]
    cwd: str = "/"

    @classmethod
    def decode(
        cls, argv: Sequence[bytes], variables: Mapping[bytes, bytes], cwd: bytes
    ) -> Invocation:
        return cls(
            tuple(map(os.fsdecode, argv)),
            {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()},
            os.fsdecode(cwd) or "/",
        )

    @property
    def script(self) -> str:
        return self.argv[0]

    @property
    def name(self) -> str:
        return os.path.basename(self.script)

    @property
    def is_probe(self) -> bool:
        return self.name == PROBE

    @property
    def is_setup(self) -> bool:
        return self.name == SETUP

    @property
    def knows_no_backend(self) -> bool:
        """Whether there is only an exit status to tell; somebody else's script tells itself."""
        return self.name in (PROBE, IFUP, SETUP)

    def behind_setup(self) -> Invocation:
        """The run that vif-setup stands for, each word as it was given."""
        path, words = script_words(self.variables.get("script", ""))
        path = path or os.path.join(os.path.dirname(self.script), "vif-bridge")
        return dataclasses.replace(self, argv=(path, *words, *self.argv[1:]))

    @property
    def from_udev(self) -> bool:
        return bool(self.variables.get("UDEV_CALL"))

    @property
    def is_for_cards(self) -> bool:
        """Whether the script is one for network cards, which go by their link as well."""
        return self.name.startswith("vif-")

    def event(self) -> Event | None:
        """What is asked for, None if that is nothing; UsageError if it makes no sense."""
        if self.name == CLEANUP:
            return self._about(Action.REMOVE, self._backend(Action.REMOVE))
        command = next((word for word in self.argv[1:] if "=" not in word), None)
        if self.name == SCSI and command != Action.ADD:
            return None  # whatever it is
        try:
            action = PUBLIC[command or ""]
        except KeyError:
            wish = f"Invalid command: {command}" if command else "Invalid command: none given"
            raise UsageError(wish) from None
        if not self.is_for_cards:
            return self._about(action, self._backend(action))
        role = parameters(self.argv[1:], self.variables).get("type_if") or "vif"
        if role not in ("vif", "tap"):
            raise UsageError(f"{action}: type_if is '{role}'; it must be 'vif' or 'tap'")
        if action not in (OF_TAP if role == "tap" else OF_VIF):
            return None  # the toolstack asks for both, and each kind of link has two of its own
        return self._about(action, self._tap(action) if role == "tap" else self._vif(action))

    def _about(self, action: Action, device: Device) -> Event:
        return Event(action, device, self.script, self.argv[1:], self.variables, self.cwd)

    def _backend(self, action: Action) -> Device:
        path = self.variables.get("XENBUS_PATH", "")
        if not path:
            raise UsageError(
                f"{action}: XENBUS_PATH is not set; it must name a backend,"
                f" for example backend/{'vif/5/0' if self.is_for_cards else 'vbd/5/51712'}"
            )
        return Device.parse(path)

    def _vif(self, action: Action) -> Device:
        device = self._backend(action)
        if device.kind != "vif":
            raise UsageError(f"{action}: {device} is no network card; XENBUS_PATH must name one")
        if not self.variables.get("vif"):
            raise UsageError(f"{action}: vif is not set; it must name the interface, e.g. vif5.0")
        return device

    def _tap(self, action: Action) -> Device:
        """The card that an emulated one stands beside: its name says which, in our own domain."""
        name = self.variables.get("INTERFACE", "")
        match = TAP.fullmatch(name)
        if match is None:
            problem = f"is '{name}'" if name else "is not set"
            raise UsageError(f"{action}: INTERFACE {problem}; it must be like vif5.0-emu")
        return Device("vif", int(match[1]), int(match[2]))


def script_words(text: str) -> tuple[str, list[str]]:
    """The path and the parameters in the variable `script`."""
    match = SCRIPT.fullmatch(text)
    return (match["path"], match["words"].split()) if match else ("", [])
