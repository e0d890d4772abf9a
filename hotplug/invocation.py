"""A script was run: what that asks for.

The conversion is pure. The same words reach us from the thin client through the control socket,
and from the process's own arguments and environment in a one-shot run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import UsageError
from hotplug.events import Action, Device, Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a toolstack may ask for; reclaim is ours alone.
PUBLIC = {action.value: action for action in Action if action is not Action.RECLAIM}

PROBE = "block-drbd-probe"  # has a device as its argument and knows no backend


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
    def is_probe(self) -> bool:
        return os.path.basename(self.script) == PROBE

    @property
    def from_udev(self) -> bool:
        return bool(self.variables.get("UDEV_CALL"))

    def event(self) -> Event:
        """What is asked for; UsageError if that makes no sense."""
        command = next((word for word in self.argv[1:] if "=" not in word), None)
        path = self.variables.get("XENBUS_PATH", "")
        try:
            action = PUBLIC[command or ""]
        except KeyError:
            wish = f"Invalid command: {command}" if command else "Invalid command: none given"
            raise UsageError(wish) from None
        if not path:
            raise UsageError(
                f"{action}: XENBUS_PATH is not set; it must name a backend,"
                " for example backend/vbd/5/51712"
            )
        return Event(
            action,
            Device.parse(path),
            self.script,
            self.argv[1:],
            self.variables,
            self.cwd,
        )
