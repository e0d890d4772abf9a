"""Which pages are zero. What is in a hole of the file needs not be read to know.

To compare a page with zeros in a buffer takes 0.1 us, whether it is zero or not; slicing the buffer
first would cost as much again, and comparing memoryviews a hundred times as much.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hotplug.restore.pieces import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hotplug.restore.image import Image

ZERO_PAGE = bytes(PAGE_SIZE)
BUFFER = 256 * PAGE_SIZE  # 1 MiB stays in a processor's cache


class Scanner:
    """Reads pages of an image and tells zero ones from others."""

    __slots__ = ("_buffer", "_image", "_view")

    def __init__(self, image: Image) -> None:
        self._image = image
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)

    def runs(self, pages: int) -> Iterator[tuple[int, memoryview | None]]:
        """The next pages: how many are alike, and their bytes if they are not zero.

        The bytes are good until the next one is asked for.
        """
        while pages:
            hole = self._image.hole(pages * PAGE_SIZE) // PAGE_SIZE
            if hole:
                self._image.skip(hole * PAGE_SIZE)
                pages -= hole
                yield hole, None
                continue
            ahead = self._image.data_ahead(pages * PAGE_SIZE)
            size = min(-(-ahead // PAGE_SIZE) * PAGE_SIZE, BUFFER)
            self._image.read_into(self._view[:size])
            pages -= size // PAGE_SIZE
            yield from self._split(size)

    def _split(self, size: int) -> Iterator[tuple[int, memoryview | None]]:
        starts_with = self._buffer.startswith
        zero = [starts_with(ZERO_PAGE, at) for at in range(0, size, PAGE_SIZE)]
        at = 0
        for is_zero, group in itertools.groupby(zero):
            count = len(list(group))
            end = at + count * PAGE_SIZE
            yield count, None if is_zero else self._view[at:end]
            at = end
