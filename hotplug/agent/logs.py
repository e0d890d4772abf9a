"""Where failures are written: the hotplug log file, syslog, and stderr for the journal.

Same places as the stock scripts: a line in /var/log/xen/xen-hotplug.log and one daemon.err
message that starts with the script's path. Neither may fail an event: a log that cannot be
written is passed over.
"""

from __future__ import annotations

import contextlib
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hotplug.config import Config

DAEMON_ERR = 3 << 3 | 3  # syslog(3): facility LOG_DAEMON, priority LOG_ERR


class Logs:
    """The places of one configuration."""

    def __init__(self, config: Config, *, stderr: bool) -> None:
        self._file = config.log_file
        self._syslog = config.syslog
        self._stderr = stderr  # a one-shot run prints the text itself

    def failure(self, script: str, text: str) -> None:
        """A failure: one line everywhere."""
        line = f"{script}: {' '.join(text.split())}"
        self.note(line)
        self._to_syslog(line)

    def note(self, line: str) -> None:
        """Something worth keeping that nobody must be told of."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError), open(self._file, "ab", buffering=0) as file:
            file.write(os.fsencode(f"{stamp} {line}\n"))
        if self._stderr:
            with contextlib.suppress(OSError):
                os.write(2, os.fsencode(line) + b"\n")

    def traceback(self, script: str) -> None:
        """The exception being handled: a bug of ours."""
        import traceback  # noqa: PLC0415 - only for bugs

        self.note(f"{script}: {traceback.format_exc()}")

    def _to_syslog(self, line: str) -> None:
        message = f"<{DAEMON_ERR}>{time.strftime('%b %e %H:%M:%S')} {line}"
        try:
            import socket  # noqa: PLC0415 - a one-shot run that succeeds needs none
        except (ImportError, OSError):
            return  # no descriptor is free
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.setblocking(False)
            log.sendto(os.fsencode(message)[:8000], self._syslog)


def to_stderr(text: str) -> None:
    """A sentence for whoever ran us."""
    if text:
        with contextlib.suppress(OSError):
            os.write(2, os.fsencode(text) + b"\n")
