"""A xenstored socket in front of the real one, which counts, stops and cuts connections."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Proxy:
    """Listens on ``path`` and hands every connection on to ``target``."""

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        self.accepted = 0  # connections so far
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._mute = False
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.up()

    def pause(self) -> None:
        """Hold back every request from now on."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def mute(self) -> None:
        """Lose every answer from now on."""
        self._mute = True

    def cut(self) -> None:
        """Break every connection there is."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def down(self) -> None:
        """Be a store that has died: no connection lives, none can be made."""
        os.unlink(self.path)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def up(self) -> None:
        """Be a store that has been started (again)."""
        self._mute = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._start(self._accept, self._listener)

    def close(self) -> None:
        self.down()
        self.resume()
        for thread in self._threads:
            thread.join()

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._target)
                except OSError:
                    client.close()
                    continue
                self._ends += [client, server]
                self._start(self._copy, client, server, self._open.wait)
                self._start(self._copy, server, client, lambda: not self._mute)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, gate: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if gate():
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
