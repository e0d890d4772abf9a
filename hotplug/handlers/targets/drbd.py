"""``block-drbd-probe``: may Remus replicate this device? Needs no xenstore.

Remus uses DRBD's protocol D, which exists only in DRBD versions that were changed for it. The
exit statuses are those that the stock script documents; unlike it, all of them are returned.
libxl takes every status but 0 as "not a DRBD device".
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.ports import Deadline, Finished, Programs

USABLE = 0
NOT_DRBD = 1
UNKNOWN_ERROR = 2
NOT_PROTOCOL_D = 3
NOT_READY = 4  # not connected, or not Primary here and Secondary there

MEANINGS = {
    USABLE: "can be used by Remus",
    NOT_DRBD: "is not a DRBD device",
    UNKNOWN_ERROR: "cannot be examined: drbdadm failed",
    NOT_PROTOCOL_D: "does not use DRBD's protocol D",
    NOT_READY: "is not Connected and Primary/Secondary",
}
NO_RESOURCES = 1  # drbdadm's exit status where none is configured
PROTOCOL_D = re.compile(rb"\bprotocol\s+D;")


def probe(programs: Programs, deadline: Deadline, argument: str) -> int:
    """Look at a device; the exit status, whose meaning ``explain`` tells."""

    def ask(*argv: str) -> Finished:
        deadline.stage(f"running {' '.join(argv)}")
        return programs.run(argv, deadline)

    try:
        devices = ask("drbdadm", "sh-dev", "all")
        if os.fsencode(argument) not in devices.stdout.split():
            return NOT_DRBD if devices.status in (0, NO_RESOURCES) else UNKNOWN_ERROR
        resource = resource_of(argument, ask)
        if resource is None:
            return UNKNOWN_ERROR
        # The status does not matter: a drbdsetup that knows no such call knows no protocol D.
        if not PROTOCOL_D.search(ask("drbdsetup", argument, "show").stdout):
            return NOT_PROTOCOL_D
        connection = ask("drbdadm", "cstate", resource).stdout.strip()
        roles = ask("drbdadm", "role", resource).stdout.strip()
    except FileNotFoundError:
        return NOT_DRBD  # without DRBD's tools no device is a DRBD device
    except (HotplugError, OSError):
        return UNKNOWN_ERROR
    ready = (connection, roles) == (b"Connected", b"Primary/Secondary")
    return USABLE if ready else NOT_READY


def resource_of(device: str, ask: Callable[..., Finished]) -> str | None:
    """The resource that a device belongs to."""
    for resource in ask("drbdadm", "sh-resource", "all").stdout.split():
        name = os.fsdecode(resource)
        if os.fsencode(device) in ask("drbdadm", "sh-dev", name).stdout.split():
            return name
    return None


def explain(argument: str, status: int) -> str:
    """A sentence about a device that cannot be used; "" if it can."""
    return f"{argument} {MEANINGS[status]}" if status != USABLE else ""
