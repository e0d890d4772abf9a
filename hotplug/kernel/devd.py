"""Whether libxl's own daemon for driver domains, ``xl devd``, runs here.

It has no lock and need not have a pid file (only with ``--pidfile``; the init scripts choose
where). So it is known by its command line: it forks, and keeps the words it was started with.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from collections.abc import Sequence


class DevdRunsError(HotplugError):
    """Every device would be served twice."""


def refuse() -> None:
    """DevdRunsError if there is one."""
    pid = find()
    if pid is not None:
        raise DevdRunsError(
            f"`xl devd` (pid {pid}) already serves this domain's devices; stop it and keep it from"
            " starting (systemctl disable --now xendriverdomain), then start the agent again"
        )


def find() -> int | None:
    """The pid of an ``xl devd``."""
    import psutil  # noqa: PLC0415 - 20 ms, and only a driver domain wants it

    for process in psutil.process_iter(["cmdline"]):
        if is_devd(process.info["cmdline"] or ()):  # a zombie has none
            return int(process.pid)
    return None


def is_devd(words: Sequence[str]) -> bool:
    """``xl [OPTIONS] devd [OPTIONS]``: xl's own options have no arguments of their own."""
    if not words or os.path.basename(words[0]) != "xl":
        return False
    command = next((word for word in words[1:] if not word.startswith("-")), "")
    return command == "devd"
