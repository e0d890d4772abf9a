"""Guests and their disks in the store, written as libxl writes them.

The nodes are those of Xen 4.17's ``libxl_disk.c`` and ``libxl_device.c`` (the same in 4.20).
``state`` is 2 from the start, as after the backend driver's probe, which is when libxl runs the
script.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.store import Store, Value

XVDA = 51712  # xvda; 51728 is xvdb
DEFAULT_SCRIPT = "/etc/xen/scripts/block"
_domids = itertools.count(1)


@dataclass(slots=True)
class Backend:
    """One device of a guest: its backend and frontend directories."""

    store: Store
    kind: str
    domid: int
    devid: int
    backend_domid: int = 0

    @property
    def relative(self) -> str:
        """``XENBUS_PATH`` as libxl spells it."""
        return f"backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def path(self) -> str:
        return f"/local/domain/{self.backend_domid}/{self.relative}"

    @property
    def frontend(self) -> str:
        kind = "vbd" if self.kind == "vbd3" else self.kind
        return f"/local/domain/{self.domid}/device/{kind}/{self.devid}"

    @property
    def link(self) -> str:
        """The name that the backend driver gives a card's link."""
        return f"vif{self.domid}.{self.devid}"

    @property
    def record(self) -> str:
        """libxl's own list of devices."""
        return f"/libxl/{self.domid}/device/{self.kind}/{self.devid}"

    def read(self, key: str) -> bytes | None:
        return self.store.read(f"{self.path}/{key}")

    def write(self, key: str, value: Value) -> None:
        self.store.write(f"{self.path}/{key}", value)

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.store.remove(f"{self.path}/{key}")

    def tree(self) -> dict[str, bytes]:
        """The nodes of the backend that have a value."""
        return self.store.tree(self.path)

    @property
    def exists(self) -> bool:
        return self.store.exists(self.path)

    def close(self) -> None:
        """What libxl and the backend driver do before the script's ``remove``."""
        self.store.write_many({f"{self.path}/online": 0, f"{self.path}/state": 6})

    def delete(self) -> None:
        """What libxl does after the script's ``remove``."""
        for path in (self.path, self.frontend, self.record):
            self.store.remove(path)


@dataclass(slots=True)
class Guest:
    """A domain that exists, as far as the store is concerned."""

    store: Store
    domid: int = field(default_factory=lambda: next(_domids))
    vm: str | None = ""  # "" makes one up; None leaves the key out
    name: str = ""
    target: int | None = None  # the domain that this stubdomain serves
    backends: list[Backend] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.vm == "":
            self.vm = f"/vm/{uuid.uuid4()}"
        self.name = self.name or f"guest-{self.domid}"
        values: dict[str, Value] = {"name": self.name, "domid": self.domid}
        if self.vm is not None:
            values["vm"] = self.vm
            self.store.write_many({f"{self.vm}/name": self.name, f"{self.vm}/uuid": self.vm[4:]})
        if self.target is not None:
            values["target"] = self.target
        self.store.write_many({f"{self.home}/{key}": value for key, value in values.items()})
        self.store.set_permissions(self.home, "n0", f"r{self.domid}")

    @property
    def home(self) -> str:
        return f"/local/domain/{self.domid}"

    def disk(
        self,
        params: Value | None,
        mode: str | None = "w",
        *,
        devid: int = 0,
        kind: str = "vbd",
        state: int | None = 2,
        script: str = DEFAULT_SCRIPT,
        dev: str = "",
        backend_domid: int = 0,
        keys: Mapping[str, Value | None] | None = None,
    ) -> Backend:
        """Add a disk; ``keys`` are further nodes of the backend, None leaves one out."""
        number = devid or XVDA + 16 * len(self.backends)
        return self.add(
            kind,
            number,
            {
                "frontend-id": self.domid,
                "params": params,
                "script": script,
                "online": 1,
                "removable": 0,
                "bootable": 1,
                "state": state,
                "dev": dev or f"xvd{chr(ord('a') + len(self.backends) % 26)}",
                "type": "phy",
                "mode": mode,
                "device-type": "disk",
                "discard-enable": 1,
                **(keys or {}),
            },
            backend_domid,
        )

    def card(
        self,
        devid: int | None = None,
        *,
        state: int | None = 2,
        script: str = "/etc/xen/scripts/vif-bridge",
        backend_domid: int = 0,
        keys: Mapping[str, Value | None] | None = None,
    ) -> Backend:
        """Add a network card, with the nodes of libxl_nic.c; ``keys`` are further ones."""
        cards = sum(backend.kind == "vif" for backend in self.backends)
        number = cards if devid is None else devid
        backend = self.add(
            "vif",
            number,
            {
                "frontend-id": self.domid,
                "online": 1,
                "state": state,
                "script": script,
                "mac": f"00:16:3e:00:{self.domid % 256:02x}:{number:02x}",
                "bridge": "xenbr0",
                "handle": number,
                "type": "vif",
                "hotplug-status": "",
                **(keys or {}),
            },
            backend_domid,
        )
        self.store.write(f"{backend.frontend}/mtu", 1500)
        self.store.set_permissions(f"{backend.frontend}/mtu", f"n{backend_domid}", f"r{self.domid}")
        return backend

    def add(
        self, kind: str, devid: int, keys: Mapping[str, Value | None], backend_domid: int = 0
    ) -> Backend:
        """Add a device of any kind, with the nodes of its backend."""
        backend = Backend(self.store, kind, self.domid, devid, backend_domid)
        back = {key: value for key, value in keys.items() if value is not None}
        back["frontend"] = backend.frontend
        front: dict[str, Value] = {
            "backend": backend.path,
            "backend-id": backend_domid,
            "state": 1,
            "virtual-device": devid,
            "device-type": "disk",
        }
        record: dict[str, Value] = {
            "frontend": backend.frontend,
            "backend": backend.path,
            **back,
        }
        self.store.write_many(
            {
                **{f"{backend.path}/{key}": value for key, value in back.items()},
                **{f"{backend.frontend}/{key}": value for key, value in front.items()},
                **{f"{backend.record}/{key}": value for key, value in record.items()},
            }
        )
        self.store.set_permissions(backend.path, f"n{backend_domid}", f"r{self.domid}")
        self.store.set_permissions(backend.frontend, f"n{self.domid}", f"r{backend_domid}")
        self.backends.append(backend)
        return backend

    def destroy(self) -> None:
        """Remove the domain from the store, its devices included."""
        for backend in self.backends:
            backend.delete()
        self.store.remove(self.home)
        if self.vm is not None:
            self.store.remove(self.vm)
