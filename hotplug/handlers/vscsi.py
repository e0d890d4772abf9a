"""vscsi: the kernel does all the work, and waits for a word in xenstore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotplug.errors import BackendGoneError
from hotplug.ports import Write

if TYPE_CHECKING:
    from hotplug.events import Event
    from hotplug.ports import Host, Snapshot


def add(host: Host, event: Event) -> None:
    """Say the word, unless the backend is gone: that would bring it back."""
    base = event.device.path

    def body(store: Snapshot) -> None:
        if store.read_many([base]) == [None]:
            raise BackendGoneError(f"there is no backend {base}; was the device removed?")
        store.apply(
            [Write(f"{base}/hotplug-status", b"connected"), Write(f"{base}/hotplug-error", None)]
        )

    with host.deadline.committing():
        host.store.transaction(body)
