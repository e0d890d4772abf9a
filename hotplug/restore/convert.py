"""Files of Xen 4.5 and older, written as those of today."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hotplug.restore import savefile
from hotplug.restore.forms import Form, Job, write
from hotplug.restore.framing import XL_STREAM_V2
from hotplug.restore.pieces import (
    LegacyHeader,
    LibxcHeader,
    LibxlHeader,
    XendHeader,
    XlHeader,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.restore.image import Image
    from hotplug.restore.legacy import Choice
    from hotplug.restore.output import Output


def convert(
    image: Image, output: Output, choice: Choice, progress: Callable[[int], None] = lambda _: None
) -> bool:
    """Convert a file; whether the result has a configuration, which those of xend have not."""
    job = Job(image, output, Form.PLAIN)
    header = XlHeader(XL_STREAM_V2, 0, b"")
    legacy = False
    for piece in image.pieces(savefile.parse(choice)):
        match piece:
            case XlHeader():
                flags = piece.mandatory_flags | XL_STREAM_V2
                header = replace(piece, mandatory_flags=flags)
            case XendHeader():
                pass  # xl cannot read it
            case LegacyHeader():
                legacy = True
                write(job, header)
            case LibxlHeader() | LibxcHeader() if not legacy:
                raise image.error("the stream is in today's format already")
            case _:
                with image.place():
                    write(job, piece)
        progress(image.offset)
    return bool(header.optional_data)
