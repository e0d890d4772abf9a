"""A socket that only root can connect to."""

from __future__ import annotations

import contextlib
import os
import socket

BACKLOG = 4096  # clients that wait for us to accept; net.core.somaxconn cuts it


def listen(path: str) -> socket.socket:
    """Make it, in the place of one that nobody listens on any more.

    The caller sees to it that nobody does. OSError names the path.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener
