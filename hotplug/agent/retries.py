"""What could not be taken back just now is tried again, less and less often.

A backend that we may not read may stay so for ever, and each try is a line in the log. Its watch
event brings a try at once, whatever the clock here says.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.events import Device

FIRST = 10.0  # seconds until we try again
LONGEST = 3600.0  # seconds; doubled from the first up to here


class Retries:
    """The devices whose turn comes again: one clock for each, however often it fails."""

    def __init__(
        self,
        again: Callable[[Device], object],
        clock: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer,
    ) -> None:
        self._again = again  # called in a thread of the clock
        self._clock = clock
        self._mutex = threading.Lock()
        self._waits: dict[Device, float] = {}  # the last one, in seconds
        self._timers: dict[Device, threading.Timer] = {}

    def failed(self, device: Device) -> None:
        """Try again later, unless that is to happen already."""
        with self._mutex:
            if device in self._timers:
                return
            last = self._waits.get(device)
            wait = self._waits[device] = FIRST if last is None else min(2 * last, LONGEST)
            timer = self._clock(wait, lambda: self._due(device))
            self._timers[device] = timer
            timer.daemon = True
            timer.start()

    def settled(self, device: Device) -> None:
        """It did not fail any more."""
        if device not in self._waits:  # as good as always
            return
        with self._mutex:
            self._waits.pop(device, None)
            timer = self._timers.pop(device, None)
        if timer is not None:
            timer.cancel()

    def _due(self, device: Device) -> None:
        with self._mutex:
            self._timers.pop(device, None)
        self._again(device)
