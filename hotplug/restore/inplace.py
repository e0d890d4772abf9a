"""Zero pages of a file become holes where they are: nothing that can be read changes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.restore import holes, savefile
from hotplug.restore.forms import Rules
from hotplug.restore.pieces import PAGE_SIZE, Pages
from hotplug.restore.zeros import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.restore.image import Image

WITHOUT_HOLES = (errno.EOPNOTSUPP, errno.ENOTTY)


def compact(image: Image, progress: Callable[[int], None] = lambda _: None) -> None:
    """Make holes. The whole file is looked at first, so what is refused is untouched.

    Nobody else may write to it. If somebody does while we look, we refuse; the only moment that
    is left is that between the last look and a hole.
    """
    before = stamp(image.fd)
    found = zero_runs(image, progress)
    if stamp(image.fd) != before:
        raise HotplugError(f"{image.name}: somebody is writing to it")
    for start, length in found:
        try:
            holes.punch(image.fd, start, length)
        except OSError as error:
            if error.errno in WITHOUT_HOLES:
                raise HotplugError(
                    f"{image.name}: its file system cannot make holes in a file that is there"
                ) from error
            raise
    os.fsync(image.fd)


def stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def zero_runs(image: Image, progress: Callable[[int], None]) -> list[tuple[int, int]]:
    """Where pages are zero: start and length in the file."""
    found: list[tuple[int, int]] = []
    rules = Rules()
    scanner = Scanner(image)
    for piece in image.pieces(savefile.parse()):
        with image.place():
            rules.check(piece)
        if isinstance(piece, Pages):
            at = image.offset
            for count, data in scanner.runs(piece.data_pages):
                if data is None:
                    found.append((at, count * PAGE_SIZE))
                at += count * PAGE_SIZE
        progress(image.offset)
    return found
