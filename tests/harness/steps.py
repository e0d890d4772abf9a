"""Walk through an event step by step: ``tests/fault/faulty.py`` asks here before each.

A step is a call to a port; in between nothing happens that anybody outside could see. The test
lets the event go on step by step, and at one of them kills somebody, cuts the store's connection
or has the call fail.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTY = str(Path(__file__).parent.parent / "fault" / "faulty.py")
SECONDS = 15.0  # until an event that asks nothing more is a failed test


class Steps:
    """A listening socket, and the process that asks."""

    def __init__(self, directory: Path) -> None:
        self._armed = directory / "armed"
        self._path = directory / "steps"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        self._listener.listen(4)
        self._listener.settimeout(SECONDS)
        self._asker: socket.socket | None = None
        self._waits = False  # whether it was asked and has not answered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        self._listener.close()
        self._path.unlink()
        self._armed.unlink(missing_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of the process that is to ask."""
        return {"STEPS_SOCKET": str(self._path)}

    @staticmethod
    def launcher(kind: str) -> tuple[str, ...]:
        """A command to be put before the agent's, or before a script's."""
        return (sys.executable, FAULTY, kind)

    def meet(self) -> None:
        """Wait for the process that will ask."""
        self.forget()
        self._asker, _ = self._listener.accept()
        self._asker.settimeout(SECONDS)

    def forget(self) -> None:
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    @contextlib.contextmanager
    def armed(self, *, ahead: bool = False) -> Iterator[None]:
        """Events that begin now ask; those that begin later do not.

        ``ahead``: the agent waits until it has read the backend's keys ahead, or else goes without.
        """
        self._armed.write_text("ahead" if ahead else "")
        try:
            yield
        finally:
            self._armed.unlink()

    def step(self) -> str | None:
        """What is about to happen; None if the event is over or the process has died."""
        try:
            said = self._asker.recv(1000).decode()
        except ConnectionResetError:
            said = ""
        self._waits = said not in ("", "over")
        return said if self._waits else None

    def go(self) -> None:
        """Let it happen."""
        self._answer(b"go")

    def refuse(self, number: int) -> None:
        """Have it fail with an errno."""
        self._answer(b"%d" % number)

    def _answer(self, word: bytes) -> None:
        self._waits = False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed
            self._asker.send(word)

    def walk(self, number: int) -> str | None:
        """Go on to a step, the first is number 0; None if the event is over before."""
        for _ in range(number):
            if self.step() is None:
                return None
            self.go()
        return self.step()

    def finish(self) -> None:
        """Let what waits happen, and everything else until the event is over."""
        if self._waits:
            self.go()
        while self.step() is not None:
            self.go()
