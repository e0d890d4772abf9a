"""The keys of a block backend, parsed once.

The keys and who writes them: the toolstack writes ``type``, ``params``, ``mode``,
``frontend-id`` and ``state`` before it asks for the device; ``physical-device``, ``node`` and
``hotplug-status`` are the answer. Values are raw bytes in the store; a path keeps odd bytes by
way of surrogateescape.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import BackendGoneError, HotplugError, MissingKeyError

if TYPE_CHECKING:
    from hotplug.events import Device
    from hotplug.ports import Store

INIT_WAIT = b"2"  # XenbusStateInitWait: the backend waits to be told its device
CONNECTED = b"connected"
KEYS = (
    "type",
    "params",
    "mode",
    "frontend-id",
    "state",
    "physical-device",
    "hotplug-status",
    "node",
)


class Mode(enum.Enum):
    """How a disk is to be used, and so what the sharing check demands."""

    READ = "r"
    WRITE = "w"
    FORCED = "!"  # write, and no questions asked

    @classmethod
    def parse(cls, text: bytes) -> Mode:
        """Reduce the spellings of the store (r, ro, w, rw, w!, rw!) to one of three."""
        if b"w" not in text:
            return cls.READ
        return cls.FORCED if b"!" in text else cls.WRITE

    @property
    def writes(self) -> bool:
        return self is not Mode.READ


@dataclass(frozen=True, slots=True)
class Disk:
    """A block backend as the store describes it; None is an absent key."""

    device: Device
    type: str
    params: str
    mode: Mode
    frontend: int  # domid of the guest
    state: bytes | None
    physical_device: bytes | None
    status: bytes | None
    node: bytes | None

    @classmethod
    def read(cls, store: Store, device: Device) -> Disk:
        """Read a backend in one round trip. MissingKeyError names a key that is not there."""
        base = device.path
        values = store.read_many([f"{base}/{key}" for key in KEYS])
        kind, params, mode, frontend, state, physical, status, node = values
        if params is None and frontend is None and state is None:
            raise BackendGoneError(f"there is no backend {base}; was the device removed?")
        if not frontend or not frontend.isdigit():
            raise missing(f"{base}/frontend-id", frontend)
        if not mode:
            raise missing(f"{base}/mode", mode)
        return cls(
            device=device,
            type=os.fsdecode(kind or b""),
            params=os.fsdecode(required(f"{base}/params", params)),
            mode=Mode.parse(mode),
            frontend=int(frontend),
            state=state,
            physical_device=physical,
            status=status,
            node=node,
        )


def required(path: str, value: bytes | None) -> bytes:
    """A value that must be there and not be empty."""
    if not value:
        raise missing(path, value)
    return value


def missing(path: str, value: bytes | None) -> MissingKeyError:
    problem = "is missing" if value is None else "is empty" if not value else "makes no sense"
    return MissingKeyError(f"{path} {problem} in xenstore; the toolstack must write it first")


def refuse_state(device: Device, state: bytes | None) -> None:
    """Only a backend in InitWait may get its device: otherwise it is closed or closing."""
    if state != INIT_WAIT:
        raise HotplugError(
            f"Path closed or removed during hotplug add: {device.path}"
            f" state: {os.fsdecode(state) if state is not None else 'unknown'}"
        )
