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
from hotplug.ports import Write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hotplug.events import Device
    from hotplug.ports import Host, Store

INIT_WAIT = b"2"  # XenbusStateInitWait: the backend waits to be told its device
CONNECTED = b"connected"
WISHES = (
    "type",
    "params",
    "mode",
    "frontend-id",
    "state",
    "physical-device",
)
BEFOREHAND = tuple(key for key in WISHES if key != "state")  # "state" changes until the script runs
ANSWERS = ("hotplug-status", "node")  # of use only where there is a device
GIVEN = ("hotplug-status", "physical-device", "physical-device-path", "node")  # what an add writes


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
    def read(cls, host: Host, device: Device) -> Disk:
        """Read a backend. MissingKeyError names a key that is not there."""
        store = host.store
        values = values_of(device, WISHES, lambda paths: host.holders.read_along(device, paths))
        if values["physical-device"] is not None or device.kind == "vbd3":  # which has no number
            values |= values_of(device, ANSWERS, store.read_many)
        if all(value is None for value in values.values()) and store.read(device.path) is None:
            raise BackendGoneError(f"there is no backend {device}; was the device removed?")
        has_device = values["physical-device"]  # then stock does not ask whose disk it is
        for key in ("params", "mode") if has_device else ("params", "mode", "frontend-id"):
            if not values[key]:
                raise missing(f"{device}/{key}", values[key])
        return cls.parse(device, values)

    @classmethod
    def read_rest(cls, store: Store, device: Device) -> Disk:
        """What is left of a backend that is going away; absent keys read as empty."""
        return cls.parse(device, values_of(device, WISHES + ANSWERS, store.read_many))

    @classmethod
    def parse(cls, device: Device, values: Mapping[str, bytes | None]) -> Disk:
        frontend = values["frontend-id"] or b"%d" % device.domid
        if not frontend.isdigit():
            raise HotplugError(
                f"{device.path}/frontend-id is '{os.fsdecode(frontend)}', which is no domid"
            )
        return cls(
            device=device,
            type=os.fsdecode(values["type"] or b""),
            params=os.fsdecode(values["params"] or b""),
            mode=Mode.parse(values["mode"] or b""),
            frontend=int(frontend),
            state=values["state"],
            physical_device=values["physical-device"],
            status=values.get("hotplug-status"),
            node=values.get("node"),
        )


def values_of(
    device: Device, keys: Sequence[str], read_many: Callable[[Sequence[str]], list[bytes | None]]
) -> dict[str, bytes | None]:
    base = device.path
    return dict(zip(keys, read_many([f"{base}/{key}" for key in keys]), strict=True))


def retraction(device: Device) -> list[Write]:
    """The changes after which a backend has no device any more."""
    return [Write(f"{device.path}/{key}", None) for key in GIVEN]


def missing(path: str, value: bytes | None) -> MissingKeyError:
    problem = "is missing" if value is None else "is empty"
    return MissingKeyError(f"{path} {problem} in xenstore; the toolstack must write it first")


def refuse_state(device: Device, state: bytes | None) -> None:
    """Only a backend in InitWait may get its device: otherwise it is closed or closing."""
    if state != INIT_WAIT:
        raise HotplugError(
            f"Path closed or removed during hotplug add: {device.path}"
            f" state: {os.fsdecode(state) if state is not None else 'unknown'}"
        )


def confirm_waiting(host: Host, device: Device) -> None:
    """See that what was read ahead is true and the backend waits, before others run a program."""
    if host.known is not None and host.known.in_use:
        state = host.store.read(f"{device.path}/state")
        host.known.confirm()
        refuse_state(device, state)
