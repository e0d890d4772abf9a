"""Which loop devices changed: the kernel's own uevents, through pyudev. The one module for pyudev
in ``kernel/``; it waits for nothing and knows nothing of loop devices but their names.

True here and not obvious:

- A uevent is in our socket's queue before the system call that caused it returns
  (kobject_uevent_net_broadcast() queues it in the caller's context). No udevd is needed.
- libudev asks for a receive buffer of 128 MiB. An agent that nobody asks anything reads nothing,
  so that much kernel memory could fill up with events of network interfaces; RECEIVE_BUFFER is
  our limit.
- When the buffer overflowed, pyudev's ``poll`` raises an OSError without errno, and does so for
  ever, because it never takes the socket's error. Only a new monitor helps.
"""

from __future__ import annotations

import pyudev

RECEIVE_BUFFER = 1 << 20  # bytes of kernel memory; holds about 800 events


class LoopUevents:
    """The loop devices for which there were events, collected when somebody asks."""

    __slots__ = ("_context", "_monitor", "_size")
    _monitor: pyudev.Monitor | None

    def __init__(self, receive_buffer: int = RECEIVE_BUFFER) -> None:
        self._context = pyudev.Context()
        self._size = receive_buffer
        self._monitor = self._listen()

    def _listen(self) -> pyudev.Monitor:
        monitor = pyudev.Monitor.from_netlink(self._context, source="kernel")
        monitor.filter_by("block")
        monitor.set_receive_buffer_size(self._size)
        monitor.start()
        return monitor

    def drain(self) -> list[int] | None:
        """The numbers of the loop devices that changed since the last call, in order.

        None if events were lost: then anything may have changed.
        """
        numbers: list[int] = []
        if self._monitor is None:
            return None
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                name = device.sys_name
                if name.startswith("loop") and name[4:].isdigit():  # not a partition, loop0p1
                    numbers.append(int(name[4:]))
        except OSError:
            self._monitor = self._listen()
            return None
        return numbers

    def close(self) -> None:
        self._monitor = None  # pyudev closes a monitor when nobody refers to it any more
