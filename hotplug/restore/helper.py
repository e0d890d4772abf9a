"""libxl-save-helper: the program that libxl runs to restore or save a guest's memory.

libxl talks to it over its stdin and stdout (messages.py), and reads on from the same open file
when it has ended. What is not done here is handed to Xen's own helper, with the same arguments
and descriptors, before anything was read or said: saving while the guest runs, images with
checkpoints or of a later format, releases of Xen that we do not know.

libxl takes a non-zero exit status for a failure whatever was said, and a process that ends before
the last answer was read as well. It waits for our end before it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError, RestoreError, error_text
from hotplug.restore import messages
from hotplug.restore.foreign import is_foreign
from hotplug.restore.guest import Request, restore
from hotplug.restore.image import Image
from hotplug.restore.messages import Level, Number
from hotplug.restore.xenlibs import UnavailableError, Xen, release

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

STOCK = "XEN_HOTPLUG_STOCK_SAVE_HELPER"  # names Xen's own helper, where it is elsewhere
HANDED_ON = "XEN_HOTPLUG_HANDED_ON"  # in the environment of what we became: it must not be us again
PLACES = (  # as in installation.py
    "/usr/lib/xen-{}/bin",
    *(f"/usr/{folder}/xen/bin" for folder in ("lib", "libexec", "local/lib", "local/libexec")),
)
NAME = "libxl-save-helper"
RESTORE_WORDS, SAVE_WORDS = 11, 8  # argc
USAGE = 2  # exit status
TENTHS = 10  # progress is told so often; each message wakes libxl up, and Xen's own tells none
PROGRESS_SECONDS = 1.0  # and no more often than this


@dataclass(frozen=True, slots=True)
class Call:
    """``--restore-domain`` and what follows it."""

    fd: int
    request: Request
    callbacks: int  # bit N: message N may be sent
    stream_type: int  # 0: an image without checkpoints

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Call:
        fd, _, domid, store, store_domid, console, console_domid, callbacks, kind = (
            int(word) for word in argv[2:]
        )
        low = 0xFFFFFFFF
        request = Request(
            domid & low, store & low, store_domid & low, console & low, console_domid & low
        )
        return cls(fd, request, callbacks & low, kind & low)


class Libxl:
    """Who started us, at the other end of two pipes."""

    def __init__(
        self, inward: int, outward: int, callbacks: int, doing: str = "restoring memory"
    ) -> None:
        self._in = inward
        self._out = outward
        self._callbacks = callbacks
        self._doing = doing
        self._tenth = 0  # of the guest's memory that progress was told of
        self._told = time.monotonic()

    def say(self, message: bytes) -> None:
        while message:
            message = message[os.write(self._out, message) :]

    def answer(self) -> int:
        """An integer; EOFError if libxl has gone."""
        data = b""
        while len(data) < 4:
            more = os.read(self._in, 4 - len(data))
            if not more:
                raise EOFError("libxl has closed its end")
            data += more
        return int(struct.unpack("=i", data)[0])

    def log(self, level: Level, text: str, *, number: int | None = None) -> None:
        self.say(messages.log(level, text, number=number))

    def info(self, text: str) -> None:
        self.log(Level.INFO, text)

    def progress(self, done: int, total: int) -> None:
        # libxl divides by the total.
        tenth = TENTHS * done // total if total else 0
        if tenth > self._tenth and time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._tenth, self._told = tenth, time.monotonic()
            self.say(messages.progress(self._doing, done, total))

    def static_data_done(self, *, cpuid_missing: bool, msrs_missing: bool) -> None:
        if not self._callbacks & 1 << Number.STATIC_DATA_DONE:
            return
        self.say(messages.static_data_done(cpuid_missing=cpuid_missing, msrs_missing=msrs_missing))
        if self.answer():
            raise RestoreError("the toolstack refuses the image's processor policy")

    def finish(self, store: int, console: int) -> None:
        self.say(messages.restore_results(store, console) + messages.complete(0, 0))
        self.answer()

    def fail(self, text: str, number: int) -> None:
        """Say why, and that it is over."""
        self.log(Level.ERROR, text, number=number)
        self.say(messages.restore_results(0, 0) + messages.complete(-1, number or errno.EINVAL))
        self.answer()


def main(argv: Sequence[str]) -> int:
    """Do what libxl runs a helper for; the exit status. It may become another program instead."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if len(argv) == SAVE_WORDS and argv[1] == "--save-domain":
        return save(argv)
    if len(argv) != RESTORE_WORDS or argv[1] != "--restore-domain":
        stock(argv)
    try:
        call = Call.parse(argv)
    except ValueError:
        return refuse(argv)
    if call.stream_type or is_foreign(call.fd):
        stock(argv)
    try:
        xen = Xen()
        xen.domain(call.request.domid)
    except (UnavailableError, OSError):
        stock(argv)
    return serve(xen, call)


def save(argv: Sequence[str]) -> int:
    """``--save-domain``. A restore, which shall begin at once, has no use for all that it needs."""
    from hotplug.restore import saver  # noqa: PLC0415
    from hotplug.restore.xenstate import State  # noqa: PLC0415

    try:
        call = saver.Call.parse(argv)
    except ValueError:
        return refuse(argv)
    if not call.is_plain:
        stock(argv)
    try:
        xen = Xen()
        state = State(xen)
        xen.domain(call.domid)
    except (UnavailableError, OSError):
        stock(argv)
    major, _, minor = release().partition(".")
    libxl = Libxl(0, apart(), call.callbacks, "saving memory")
    return saver.serve(xen, state, call, libxl, (int(major), int(minor)))


def refuse(argv: Sequence[str]) -> int:
    print(f"{argv[0]}: arguments must be numbers: {' '.join(argv[2:])}", file=sys.stderr)
    return USAGE


def apart() -> int:
    """A descriptor for our messages, so that nothing that a library prints gets between them."""
    outward = os.dup(1)
    os.dup2(2, 1)
    return outward


def serve(xen: Xen, call: Call) -> int:
    """The conversation with libxl."""
    libxl = Libxl(0, apart(), call.callbacks)
    try:
        try:
            results = restore(xen, Image(call.fd, "the image"), call.request, libxl)
        except HotplugError as error:
            libxl.fail(str(error), getattr(error, "number", errno.EINVAL))
        except OSError as error:
            libxl.fail(error_text(error), error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - whatever it is, libxl gets an answer
            libxl.fail(f"restoring failed: {type(error).__name__}: {error}", errno.EINVAL)
        else:
            libxl.finish(*results)
    except (EOFError, BrokenPipeError):
        return 1
    return 0


def stock(argv: Sequence[str]) -> NoReturn:
    """Become Xen's own helper."""
    problem = "was not found"
    if HANDED_ON in os.environ:
        problem = "is this program again"
    else:
        with contextlib.suppress(OSError):
            path = stock_helper(argv[0])
            environ = {**os.environ, HANDED_ON: "1"}
            os.execve(path, [path, *argv[1:]], environ)  # noqa: S606 - its arguments are ours
    print(f"{argv[0]}: Xen's own {NAME} {problem}; set {STOCK} to its path", file=sys.stderr)
    raise SystemExit(USAGE)


def stock_helper(name: str) -> str:
    """The path of Xen's own helper, ours being ``name``; OSError if there is none."""
    named = os.environ.get(STOCK)
    if named:
        return named
    paths = [name] if "/" in name else []  # beside ours, if ours is in its place
    with contextlib.suppress(UnavailableError):
        paths += [os.path.join(place.format(release()), NAME) for place in PLACES]
    paths += sorted(glob.glob(f"/usr/lib/xen-*/bin/{NAME}"))
    for path in paths:
        for found in (f"{path}.stock", path):
            if found != name and os.access(found, os.X_OK):
                return found
    raise FileNotFoundError(errno.ENOENT, "no such program", NAME)


def run(argv: Sequence[str]) -> NoReturn:
    """The whole program. What the process's end tears down is left to it; no thread is awaited."""
    os._exit(main(argv))


if __name__ == "__main__":
    run(sys.argv)
