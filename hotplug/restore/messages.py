"""What a save helper says to libxl, as bytes. No I/O.

A message is ``u16 length, u16 number, arguments``, packed in the machine's byte order
(tools/libs/light/libxl_save_msgs_gen.pl and libxl_save_callout.c); a string is ``u32 size`` with
its NUL, then the bytes. Replies are bare 4-byte integers. Messages 3 to 8 may only be sent if the
toolstack has set their bit in ``cbflags``; the others always.
"""

from __future__ import annotations

import enum
import struct

MAX_BODY = 65535  # bytes; the length is a u16
NO_ERRNO = 0xFFFFFFFF  # in a log message: there is no error number
CONTEXT = "xen-hotplug"  # who logs; libxc itself would be "xc"


class Number(enum.IntEnum):
    """The messages of libxl_save_msgs_gen.pl."""

    LOG = 1
    PROGRESS = 2
    SUSPEND = 3
    POSTCOPY = 4
    CHECKPOINT = 5
    WAIT_CHECKPOINT = 6
    SWITCH_QEMU_LOGDIRTY = 7
    STATIC_DATA_DONE = 8
    RESTORE_RESULTS = 9
    COMPLETE = 10


class Level(enum.IntEnum):
    """xentoollog_level."""

    DEBUG = 1
    DETAIL = 3
    PROGRESS = 4
    INFO = 5
    WARN = 7
    ERROR = 8


def message(number: Number, arguments: bytes = b"") -> bytes:
    body = struct.pack("=H", number) + arguments
    return struct.pack("=H", len(body)) + body


def string(text: str) -> bytes:
    raw = text.encode(errors="surrogateescape").replace(b"\0", b"?") + b"\0"
    return struct.pack("=I", len(raw)) + raw


def log(level: Level, text: str, *, number: int | None = None) -> bytes:
    """A line for xl's output; ``number`` is an errno. Long text is cut."""
    most = MAX_BODY - len(string(CONTEXT)) - 32
    cut = text.encode(errors="surrogateescape")[:most].decode(errors="ignore")
    head = struct.pack("=II", level, NO_ERRNO if number is None else number)
    return message(Number.LOG, head + string(CONTEXT) + string(cut))


def progress(what: str, done: int, total: int) -> bytes:
    numbers = struct.pack("=QQ", done, total)
    return message(Number.PROGRESS, string(CONTEXT) + string(what) + numbers)


def static_data_done(*, cpuid_missing: bool, msrs_missing: bool) -> bytes:
    """The answer is an integer: not zero if the toolstack could not make up for it."""
    return message(Number.STATIC_DATA_DONE, struct.pack("=I", cpuid_missing | msrs_missing << 1))


def switch_logdirty(domid: int, *, enable: bool) -> bytes:
    """The answer is an integer: 0 if the device model did it."""
    return message(Number.SWITCH_QEMU_LOGDIRTY, struct.pack("=II", domid, enable))


def restore_results(store: int, console: int) -> bytes:
    """The frames of the pages that the guest shares with xenstored and xenconsoled."""
    return message(Number.RESTORE_RESULTS, struct.pack("=QQ", store, console))


def complete(status: int, number: int) -> bytes:
    """0, or -1 and an errno. The answer has to be read before the process ends."""
    return message(Number.COMPLETE, struct.pack("=ii", status, number))
