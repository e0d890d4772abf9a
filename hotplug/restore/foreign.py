"""Whether Xen's own helper may know more of an image than we do; asked before it is consumed.

What later releases have added stands before the guest's memory (the processor's policies and the
end of static data, in 4.14). So far is looked, and no further: to go from record to record through
a whole file on a disk would take as long as many a restore. What comes behind is refused where it
is met, as Xen's own helper refuses what it does not know.

Of a pipe nothing can be looked at.
"""

from __future__ import annotations

import os

from hotplug.restore import framing
from hotplug.restore.records import LIBXC_KINDS, OPTIONAL, Libxc

HEADERS = len(framing.LIBXC_MARKER) + framing.LIBXC_HEADER.size + framing.LIBXC_DOMAIN.size
MOST = 64  # records; there are four or five


def is_foreign(fd: int) -> bool:
    """Whether the image at this place of a file is of a later format, or has a record of one.

    What is no image at all is not foreign: we can say that ourselves.
    """
    try:
        place = os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    headers = os.pread(fd, HEADERS, place)
    if len(headers) < HEADERS or not headers.startswith(framing.LIBXC_MARKER):
        return False
    ident, version, *_ = framing.LIBXC_HEADER.unpack_from(headers, len(framing.LIBXC_MARKER))
    if ident != framing.LIBXC_IDENT:
        return False
    return version not in framing.LIBXC_VERSIONS or has_unknown(fd, place + HEADERS)


def has_unknown(fd: int, place: int) -> bool:
    """Whether a record that must be understood is not, of those before the memory."""
    for _ in range(MOST):
        header = os.pread(fd, framing.RECORD.size, place)
        if len(header) < framing.RECORD.size:
            return False
        kind, length = framing.RECORD.unpack(header)
        if kind in (Libxc.PAGE_DATA, Libxc.END):
            return False
        if kind not in LIBXC_KINDS and not kind & OPTIONAL:
            return True
        place += framing.RECORD.size + length + -length % 8
    return False
