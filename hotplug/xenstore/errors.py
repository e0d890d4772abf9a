"""What can go wrong with the store, as exceptions; imports nothing of ours.

Refused requests are plain ``OSError`` (so ``PermissionError`` for EACCES and EPERM) whose
``filename`` is the path. A store that does not answer is ``TimeoutError``. Everything after which
the connection cannot be used any more is ``StoreConnectionError``.
"""

from __future__ import annotations

import errno
import os


class StoreConnectionError(ConnectionError):
    """There is no connection to xenstore, or no longer; a new one must be made."""


class ProtocolError(ValueError):
    """The other side sent what the protocol does not allow."""


def refused(number: int, doing: str, path: str) -> OSError:
    """The error for a request that xenstored answered with an errno."""
    return OSError(number, f"xenstore refused to {doing}: {os.strerror(number)}", path)


def timed_out(seconds: float, doing: str, path: str) -> OSError:
    """The error for a request that xenstored has not answered; it may still be carried out."""
    text = f"xenstore did not answer within {seconds:g} s when asked to {doing}"
    return TimeoutError(errno.ETIMEDOUT, text, path)
