"""The conversation with libxl while a guest is saved; see ``helper`` for the rest of it.

What is done here is the plain save: the guest is suspended first and its image has no checkpoints.
SIGTERM, by which libxl ends us, must not leave a guest that is half suspended. So the descriptor
becomes one that cannot be written to, the next write fails, and what was begun is undone; as Xen's
own helper does it. libxl lets the guest go on when it is told that saving failed.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotplug.errors import HotplugError, SaveError, error_text
from hotplug.restore import messages
from hotplug.restore.messages import Level, Number
from hotplug.restore.output import Output
from hotplug.restore.saving import save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.restore.xenlibs import Xen
    from hotplug.restore.xenstate import State

LIVE, DEBUG = 1, 2  # flags; a save that is not live has nothing to verify
NAME = "the image"


@dataclass(frozen=True, slots=True)
class Call:
    """``--save-domain`` and what follows it."""

    fd: int
    domid: int
    flags: int
    callbacks: int  # bit N: message N may be sent
    stream_type: int  # 0: an image without checkpoints

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Call:
        fd, _, *numbers = (int(word) for word in argv[2:])
        domid, flags, callbacks, kind = (number & 0xFFFFFFFF for number in numbers)
        return cls(fd, domid, flags, callbacks, kind)

    @property
    def is_plain(self) -> bool:
        """It can be done here."""
        return not self.stream_type and not self.flags & ~DEBUG and self._allows(Number.SUSPEND)

    def _allows(self, number: Number) -> bool:
        return bool(self.callbacks & 1 << number)

    @property
    def may_log_dirty(self) -> bool:
        return self._allows(Number.SWITCH_QEMU_LOGDIRTY)


class Libxl(Protocol):
    """Who started us."""

    def say(self, message: bytes) -> None: ...

    def answer(self) -> int: ...

    def log(self, level: Level, text: str, *, number: int | None = None) -> None: ...

    def progress(self, done: int, total: int) -> None: ...


class Toolstack:
    """What a saver asks of libxl."""

    def __init__(self, libxl: Libxl, call: Call) -> None:
        self._libxl = libxl
        self._call = call

    def info(self, text: str) -> None:
        self._libxl.log(Level.INFO, text)

    def progress(self, done: int, total: int) -> None:
        self._libxl.progress(done, total)

    def suspend(self) -> None:
        self._libxl.say(messages.message(Number.SUSPEND))
        if not self._libxl.answer():
            raise SaveError(f"domain {self._call.domid} could not be suspended")

    def log_dirty(self, *, enable: bool) -> bool:
        if not self._call.may_log_dirty:
            return True
        self._libxl.say(messages.switch_logdirty(self._call.domid, enable=enable))
        return self._libxl.answer() == 0


class Ending:
    """SIGTERM makes a descriptor one that cannot be written to."""

    def __init__(self, fd: int) -> None:
        self.asked = False
        self._fd = fd
        self._unwritable = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, *_: object) -> None:
        self.asked = True
        os.dup2(self._unwritable, self._fd)


def serve(xen: Xen, state: State, call: Call, libxl: Libxl, release: tuple[int, int]) -> int:
    """Save a guest; the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # who reads the image may go, and the guest stays
    ending = Ending(call.fd)
    toolstack = Toolstack(libxl, call)
    try:
        try:
            save(xen, state, Output(call.fd, NAME, shared=True), call.domid, release, toolstack)
        except EOFError:
            raise
        except (HotplugError, OSError) as error:
            number = getattr(error, "number", None) or getattr(error, "errno", None)
            fail(libxl, ending, error_text(error), number or errno.EINVAL)
        except Exception as error:  # noqa: BLE001 - whatever it is, libxl gets an answer
            fail(libxl, ending, f"{type(error).__name__}: {error}", errno.EINVAL)
        else:
            libxl.say(messages.complete(0, 0))
            libxl.answer()
    except (EOFError, BrokenPipeError):
        return 1
    return 0


def fail(libxl: Libxl, ending: Ending, text: str, number: int) -> None:
    """Say why, and that it is over."""
    if ending.asked:
        text, number = "it was ended by SIGTERM", errno.EINTR
    libxl.log(Level.ERROR, f"saving failed: {text}", number=number)
    libxl.say(messages.complete(-1, number))
    libxl.answer()
