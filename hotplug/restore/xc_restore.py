"""xc_restore: the program that xend runs to restore a guest's memory.

xend, the toolstack of Xen up to 4.4, has read its own header and hands over a descriptor and seven
arguments, since 4.0 eight. It wants two lines on stdout, wherever they stand in the output: the
frames of xenstore's page and, for PV guests, of the console's. Nothing but these goes there. Lines
on stderr that begin with ``ERROR: `` become errors of its log.

Of a stream nothing is read but what belongs to it. Xen 4.0's own program went on to look for
another checkpoint behind every image, took what it found there, and called the usual end an error.
With eight arguments it did read the device model's state of an HVM guest, which xend expects in a
file by then; with seven, xend reads that itself.

Where there are checkpoints (Remus), whoever runs us has to say so. All of the stream is read then,
to its end, and the guest is what the last complete checkpoint says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError, error_text
from hotplug.restore import framing, legacy
from hotplug.restore.guest import Request, restore
from hotplug.restore.helper import apart
from hotplug.restore.image import Image
from hotplug.restore.pieces import Guest, Record, StreamError
from hotplug.restore.records import Libxc, Libxl
from hotplug.restore.stream import libxc
from hotplug.restore.xenlibs import UnavailableError, Xen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from hotplug.restore.pieces import Parser

USAGE = "usage: %s iofd domid store_evtchn console_evtchn hvm pae apic [superpages]"
ARGUMENTS = (7, 8)
ERA = "XEN_HOTPLUG_XEND"  # "3.4" or "4.0", where the number of arguments misleads
CHECKPOINTS = "XEN_HOTPLUG_CHECKPOINTS"  # not empty: the stream has several
STOCK = "XEN_HOTPLUG_STOCK_XC_RESTORE"  # names Xen's own program, where it is elsewhere
HANDED_ON = "XEN_HOTPLUG_HANDED_ON"  # in the environment of what we became
DEVICE_MODEL = "/var/lib/xen/qemu-save.{}"
SPOOL = "/var/tmp"  # noqa: S108 - a file there has no name, and may be as large as a guest
AT_ONCE = 1 << 20  # bytes
NAME = "the image"


@dataclass(frozen=True, slots=True)
class Call:
    """xend's arguments, as far as they say anything."""

    fd: int
    request: Request
    guest: Guest
    takes_device_model: bool
    checkpoints: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Call:
        """ValueError for arguments that cannot be."""
        era = environment.get(ERA, "")
        if len(arguments) not in ARGUMENTS:
            raise ValueError("wrong number of arguments")
        fd, domid, store, console, hvm, *_ = (int(word) for word in arguments)
        guest = Guest.HVM if hvm else Guest.PV
        takes = era == "4.0" or (era != "3.4" and len(arguments) == ARGUMENTS[1])
        request = Request(domid, store, 0, console, 0)
        return cls(fd, request, guest, takes, bool(environment.get(CHECKPOINTS)))


class Incoming:
    """A stream of whatever age. ``is_legacy`` is known when it has been parsed."""

    def __init__(self, guest: Guest, rounds: int = 1) -> None:
        self._guest = guest
        self._rounds = rounds
        self.is_legacy = False

    def pieces(self) -> Parser[None]:
        head = yield framing.MAGIC_SIZE
        if head == framing.LIBXC_MARKER:
            yield from libxc(head)
        elif head == framing.LIBXL_MAGIC:
            yield from framing.libxl_header(head)
            kind, length = yield from framing.record_header()
            if kind != Libxl.LIBXC_CONTEXT or length:
                raise StreamError("libxl's stream does not begin with that of libxc")
            yield from libxc()
        else:
            self.is_legacy = True
            header, marker = yield from legacy.begin(legacy.Choice(guest=self._guest), head)
            yield from legacy.stream(header, marker, self._rounds)


class Xend:
    """Who started us: it logs what we print."""

    def info(self, text: str) -> None:
        print(text, file=sys.stderr)

    def progress(self, done: int, total: int) -> None:
        """It has no use for that."""

    def static_data_done(self, *, cpuid_missing: bool, msrs_missing: bool) -> None:
        """It sets the processor policy itself."""


def main(argv: Sequence[str]) -> int:
    """The exit status. It may become another program instead."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        call = Call.parse(argv[1:], os.environ)
    except ValueError:
        print(USAGE % argv[0], file=sys.stderr)
        return 1
    try:
        xen = Xen()
    except UnavailableError as error:
        become_stock(argv)
        print(f"ERROR: {argv[0]}: {error}; set {STOCK} to Xen's own program", file=sys.stderr)
        return 1
    try:
        xen.domain(call.request.domid)
    except OSError:  # a hypervisor with other calls than the libraries say
        become_stock(argv)
    return serve(xen, call, apart())


def become_stock(argv: Sequence[str]) -> None:
    """Become Xen's own program, if there is one."""
    if HANDED_ON in os.environ:
        return
    path = os.environ.get(STOCK) or f"{argv[0]}.stock"
    with contextlib.suppress(OSError):
        os.execve(path, [path, *argv[1:]], {**os.environ, HANDED_ON: "1"})  # noqa: S606 - as given


def serve(xen: Xen, call: Call, outward: int) -> int:
    """Restore a guest and say where its pages are; the exit status."""
    try:
        image, rounds = opened(call)
        incoming = Incoming(call.guest, rounds)
        store, console = restore(xen, image, call.request, Xend(), incoming.pieces())
        if call.guest is Guest.HVM and call.takes_device_model and incoming.is_legacy:
            keep_device_model(image, call.request.domid)
            image.settle()
    except (HotplugError, OSError) as error:
        print(f"ERROR: restoring domain {call.request.domid}: {error_text(error)}", file=sys.stderr)
        return 1
    lines = f"store-mfn {store}\n"
    if call.guest is Guest.PV:
        lines += f"console-mfn {console}\n"
    os.write(outward, lines.encode())
    return 0


def opened(call: Call) -> tuple[Image, int]:
    """The image, and how many checkpoints of it there are."""
    image = Image(call.fd, NAME)
    if not call.checkpoints:
        return image, 1
    if image.size is None:
        image = Image(spooled(image), NAME)
    rounds = count_checkpoints(Image(image.fd, NAME), call.guest)
    return image, rounds


def spooled(image: Image) -> int:
    """All that comes through a pipe, in a file that has no name."""
    with tempfile.TemporaryFile(dir=SPOOL) as file:
        while part := os.read(image.fd, AT_ONCE):
            file.write(part)
        file.seek(0)
        return os.dup(file.fileno())


def count_checkpoints(image: Image, guest: Guest) -> int:
    """How many are complete; what follows the last of them is nothing. 1 for a stream of today."""
    rounds = 0
    try:
        for piece in image.pieces(checkpoints(guest)):
            rounds += isinstance(piece, Record) and piece.kind == Libxc.END
    except StreamError:
        if not rounds:
            raise
    return rounds or 1


def checkpoints(guest: Guest) -> Parser[None]:
    head = yield framing.MAGIC_SIZE
    if head not in (framing.LIBXC_MARKER, framing.LIBXL_MAGIC):
        header, marker = yield from legacy.begin(legacy.Choice(guest=guest), head)
        yield from legacy.checkpoints(header, marker)


def keep_device_model(image: Image, domid: int) -> None:
    """Write the device model's state, which comes next, to where xend's QEMU looks for it."""
    image.start = image.offset
    state = device_model(image)
    path = DEVICE_MODEL.format(domid)
    temporary = f"{path}.new"
    with contextlib.ExitStack() as undo:
        with open(temporary, "wb", opener=private) as file:
            undo.callback(os.unlink, temporary)
            file.write(state)
        os.rename(temporary, path)
        undo.pop_all()


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def device_model(image: Image) -> bytes:
    signature = image.read(len(legacy.TO_THE_END))
    if signature == legacy.TO_THE_END:
        return image.read_rest(framing.MAX_BODY)
    if signature not in legacy.WITH_LENGTH:
        raise image.error(f"the state of an unknown device model: {signature!r}")
    (size,) = legacy.NUMBER.unpack(image.read(legacy.NUMBER.size))
    if size > framing.MAX_BODY:
        raise image.error(
            f"a device model's state of {size} bytes, the limit is {framing.MAX_BODY}"
        )
    return image.read(size)


def run(argv: Sequence[str]) -> NoReturn:
    """The whole program. What the process's end tears down is left to it; no thread is awaited."""
    sys.stderr.flush()
    os._exit(main(argv))


if __name__ == "__main__":
    run(sys.argv)
