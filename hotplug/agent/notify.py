"""What the agent tells a service manager, and the sockets that it is given by one.

sd_notify(3) and sd_listen_fds(3) are the specification. Where the environment names no service
manager these functions do nothing, so that the agent need not know how it was started.
"""

from __future__ import annotations

import os
import socket
import time

from hotplug.errors import ConfigError

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
PATIENCE = 1.0  # seconds that a busy manager may keep us from our work


def ready(status: str = "") -> None:
    """Start-up or a reload has finished; ``status`` is for ``systemctl status``."""
    _send("READY=1", f"STATUS={status}")


def reloading() -> None:
    """A reload begins; ``ready`` ends it. The time tells the manager which SIGHUP we mean."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")


def stopping() -> None:
    """The agent drains and will end."""
    _send("STOPPING=1")


def alive() -> None:
    """Feed the watchdog."""
    _send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between two calls of ``alive``, half of what is allowed; None without a watchdog."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed.isdigit() or int(allowed) == 0 or meant != str(os.getpid()):
        return None
    return int(allowed) / 1_000_000 / 2


def listen_sockets() -> list[socket.socket]:
    """The listening sockets that were passed to us; programs that we start must not get them."""
    meant = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant != str(os.getpid()) or not count.isdigit():
        return []
    return [_listener(FIRST_DESCRIPTOR + index) for index in range(int(count))]


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(
            f"descriptor {descriptor} from the service manager is no socket: {error.strerror}"
        ) from error
    listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_SEQPACKET or not listens:
        passed.close()
        raise ConfigError(
            f"descriptor {descriptor} from the service manager is not a listening Unix socket for"
            " packets; its unit needs ListenSequentialPacket="
        )
    return passed


def _send(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.settimeout(PATIENCE)
        try:
            manager.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return  # the manager is gone or stuck; guests' disks matter more than its opinion
