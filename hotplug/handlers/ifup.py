"""qemu-ifup: a device model's tap becomes a port of a bridge.

Debian's, for device models that the toolstack gave a script. It knows no backend and no guest:
there is only what it is told, and an exit status.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.network import PORT_MAC, Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.ports import Host


def run(host: Host, words: Sequence[str]) -> None:
    """``words`` are TAP and BRIDGE; HotplugError if that cannot be done."""
    if len(words) < 2:
        raise HotplugError("the tap and the bridge are missing: qemu-ifup TAP BRIDGE")
    tap, bridge = words[:2]
    found, master = host.links.find_all((tap, bridge))
    if found is None or master is None:
        raise HotplugError(f"there is no network interface {tap if found is None else bridge}")
    with contextlib.suppress(OSError):  # a bridge's own MAC is then the tap's, perhaps
        host.links.change(found, Change(mac=PORT_MAC))
    try:
        host.links.change(found, Change(master=master.index, up=True))
    except OSError as error:
        raise HotplugError(f"{tap} cannot be made a port of {bridge}: {error.strerror}") from error
