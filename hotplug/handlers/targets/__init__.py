"""One module per kind of disk.

A target module offers three functions, listed in ``handlers/targets/table.py``:

``prepare(host, disk, event, resources)``
    Look at what the backend asks for, open it, refuse what cannot work. May hang, may be given
    up, attaches nothing. What it opens goes on ``resources``. Returns ``attach``.
``attach(entry, undo)``
    Attach the disk to this host. Writes to the journal *before* each thing that would leak, and
    puts the way back on ``undo``. Returns an ``Attached``.
``detach(host, device, attachment)``
    Take back what the journal says was attached. Must bear that half of it, or none, is there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hotplug.ports import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping


def nothing() -> None:
    """For targets that have nothing to check."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A disk on this host, ready to be given to the guest."""

    keys: Mapping[str, bytes]  # what to write into the backend, e.g. physical-device
    refuse_sharing: Callable[[], None] = nothing  # under the lock: DeviceBusyError if taken
    verify: Callable[[], None] = nothing  # HotplugError if it is no longer what we checked
    written: bytes | None = None  # physical-device, where a program of others wrote it


Attach: TypeAlias = Callable[[Entry, ExitStack], Attached]
