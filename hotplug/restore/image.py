"""A save file behind a descriptor: drives a parser over it, and knows where it is.

A regular file is read by pread, small wishes from a window that is read ahead. Its bulks can be
read from ``fd`` at ``offset`` by whatever way is best. Of a pipe not a byte is taken that was not
wished for: what follows may belong to somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from hotplug.restore.framing import IDS, MAX_BODY
from hotplug.restore.pieces import Blob, OrEnd, Pages, StreamError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from hotplug.restore.pieces import Parser, Piece, T

WINDOW = 16384  # bytes; header and entries of a batch of 1,024 pages are 8,208
AT_ONCE = 1 << 20  # bytes asked of a pipe, or of a body, in one read


class Image:
    """An open save file; the descriptor stays its owner's."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        with self.named():
            status = os.fstat(fd)
        self.size: int | None = None  # of what can be read at any offset
        self.offset = 0  # of the next byte that nobody has consumed
        if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
            self.offset = os.lseek(fd, 0, os.SEEK_CUR)
            self.size = os.lseek(fd, 0, os.SEEK_END)
            os.lseek(fd, self.offset, os.SEEK_SET)
        self.start = self.offset  # of the piece that is being read, or was handed over
        self._window = b""
        self._window_at = 0
        self._hole = (0, 0)  # where the hole begins that follows the data at ..., see ``hole``

    def error(self, text: object) -> StreamError:
        return StreamError(f"{self.name}: at byte {self.start}: {text}")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Adds the place of the piece at hand to what is wrong with it."""
        try:
            yield
        except StreamError as error:
            raise self.error(error) from error

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Adds the name to what the system says of reading it."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or self.name
            raise

    # Driving

    def pieces(self, parser: Parser[T]) -> Generator[Piece, None, T]:
        """What a parser finds. What its user leaves of a piece's bulk is skipped."""
        sent = b""
        begun = False
        while True:
            try:
                wish = parser.send(sent) if begun else next(parser)
            except StopIteration as end:
                result: T = end.value
                return result
            except StreamError as error:
                raise self.error(error) from error
            begun = True
            sent = b""
            if isinstance(wish, int):
                sent = self.read(wish)
            elif isinstance(wish, OrEnd):
                sent = b"" if self.at_end() else self.read(wish.size)
            else:
                yield from self._hand_over(wish)

    def _hand_over(self, piece: Piece) -> Iterator[Piece]:
        if isinstance(piece, Blob) and piece.bulk is None:
            piece = replace(piece, bulk=self._rest())
        bulk = piece.bulk if isinstance(piece, Pages | Blob) else 0
        end = self.offset + (bulk or 0)
        self._require(end)
        yield piece
        self.skip(end - self.offset)
        self.start = self.offset

    def run(self, parser: Parser[T]) -> T:
        """The result of a parser, whatever pieces it finds on its way."""
        driven = self.pieces(parser)
        while True:
            try:
                next(driven)
            except StopIteration as end:
                result: T = end.value
                return result

    def settle(self) -> None:
        """Let the descriptor's own offset be behind what was consumed: somebody else goes on."""
        if self.size is not None:
            os.lseek(self.fd, self.offset, os.SEEK_SET)

    # Consuming

    def read(self, size: int) -> bytes:
        """The next bytes, exactly so many. Memory is taken only for what is there."""
        self._require(self.offset + size)
        if self.size is None or size > WINDOW:
            parts = []
            left = size
            while left:
                part = self._some(min(left, AT_ONCE))
                parts.append(part)
                left -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        at = self.offset - self._window_at
        if at < 0 or at + size > len(self._window):
            self._window = os.pread(self.fd, WINDOW, self.offset)
            self._window_at, at = self.offset, 0
            if size > len(self._window):
                raise self._truncated(self.offset + len(self._window))
        self.offset += size
        return self._window[at : at + size]

    def _some(self, size: int) -> bytes:
        part = self._next(size)
        if not part:
            raise self._truncated(self.offset)
        return part

    def _next(self, size: int) -> bytes:
        at = self.offset
        part = os.read(self.fd, size) if self.size is None else os.pread(self.fd, size, at)
        self.offset += len(part)
        return part

    def read_into(self, view: memoryview) -> None:
        """The next bytes, as many as there is room for."""
        self._require(self.offset + len(view))
        while view:
            if self.size is None:
                done = os.readv(self.fd, [view])
            else:
                done = os.preadv(self.fd, [view], self.offset)
            if not done:
                raise self._truncated(self.offset)
            self.offset += done
            view = view[done:]

    def read_rest(self, limit: int) -> bytes:
        """All that follows, if that is not more than the limit."""
        parts = []
        while part := self._next(AT_ONCE):
            parts.append(part)
            limit -= len(part)
            if limit < 0:
                raise self.error("more follows than there may be")
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over bytes. Those that somebody took from a pipe himself are ``consumed``."""
        if self.size is not None:
            self._require(self.offset + size)
            self.offset += size
            return
        while size:
            size -= len(self._some(min(size, AT_ONCE)))

    def consumed(self, size: int) -> None:
        """Somebody read so many bytes from the descriptor, or at ``offset`` of a regular file."""
        self.offset += size

    def at_end(self) -> bool:
        """Whether nothing follows; known of what can be read at any offset."""
        if self.size is None:
            raise self.error("a pipe may end here or not; give a regular file")
        return self.offset >= self.size

    def hole(self, limit: int) -> int:
        """How many of the next bytes are in a hole of the file, so zero without being read."""
        if self.size is None:
            return 0
        end = self.offset + limit
        data, hole = self._hole
        if not data <= self.offset < hole:
            self._hole = data, hole = self._next_data()
        return max(min(data, end) - self.offset, 0)

    def _next_data(self) -> tuple[int, int]:
        """Where data begins and where it ends."""
        size = self.size or 0
        try:
            data = os.lseek(self.fd, self.offset, os.SEEK_DATA)
            return data, os.lseek(self.fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return size, size  # a hole up to the end
            return self.offset, size  # it has no such call, so it has no holes

    def data_ahead(self, limit: int) -> int:
        """How many of the next bytes have to be read before the next hole; the limit if all."""
        if self.size is None:
            return limit
        return min(max(self._hole[1] - self.offset, 1), limit)

    # Ends

    def _rest(self) -> int:
        if self.size is None:
            raise self.error("the device model's state ends with the file, which cannot be a pipe")
        rest = self.size - self.offset
        if rest > MAX_BODY - IDS.size:
            raise self.error(f"a device model's state of {rest} bytes, the limit is {MAX_BODY}")
        return rest

    def _require(self, end: int) -> None:
        if self.size is not None and end > self.size:
            raise self._truncated(self.size)

    def _truncated(self, end: int) -> StreamError:
        return StreamError(
            f"{self.name}: truncated: it ends at byte {end}, within what begins at byte"
            f" {self.start}"
        )
