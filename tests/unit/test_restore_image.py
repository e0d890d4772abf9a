"""A save file behind a descriptor: places, pipes, holes, ends."""

from __future__ import annotations

import contextlib
import os
import re
import threading

import pytest
import savefiles
from savefiles import END, Hvm, Legacy, Page, Pv

from hotplug.restore import framing, savefile
from hotplug.restore.image import Image
from hotplug.restore.pieces import Blob, Pages, Record, StreamError
from hotplug.restore.stream import libxc
from hotplug.restore.zeros import Scanner


@contextlib.contextmanager
def opened(path, content=None):
    if content is not None:
        path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Image(fd, "a.save")
    finally:
        os.close(fd)


@contextlib.contextmanager
def piped(content):
    """The reading end of a pipe, and somebody who writes to it."""
    reading, writing = os.pipe()

    def write():
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
            pipe.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield Image(reading, "a pipe")
    finally:
        os.close(reading)
        writer.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.save"


def record_places(content):
    """Where each record of libxc begins, by looking for headers as the writer made them."""
    at = content.index(b"XENF") - 8 + 40
    while True:
        kind, length = framing.RECORD.unpack_from(content, at)
        yield kind, at
        if not kind:
            return
        at += 8 + length + -length % 8


def test_it_knows_where_each_piece_begins(path):
    content = Pv().file()
    with opened(path, content) as image:
        found = [
            (getattr(piece, "kind", 1), image.start)
            for piece in image.pieces(savefile.parse())
            if isinstance(piece, Pages) or getattr(piece, "layer", "") == "libxc"
        ]
        assert image.offset == len(content)
    assert found == list(record_places(content))


def test_the_bulk_of_a_regular_file_can_be_read_by_others(path):
    """As a restorer reads pages straight into a guest: the parser and its driver see none of it."""
    made = Hvm()
    data = b""
    with opened(path, made.file()) as image:
        for piece in image.pieces(savefile.parse()):
            if isinstance(piece, Pages | Blob):
                buffer = bytearray(piece.bulk)
                assert os.preadv(image.fd, [buffer], image.offset) == piece.bulk
                data += buffer
    wanted = b"".join(one.data for one in made.memory if savefiles.has_data(one.kind))
    assert data == wanted + made.emulator


def test_the_bulk_may_be_read_in_part_or_skipped(path):
    content = Hvm().file()
    for take in (0, 1, 4096):
        with opened(path, content) as image:
            for piece in image.pieces(savefile.parse()):
                if isinstance(piece, Pages) and piece.bulk >= take:
                    assert len(image.read(take)) == take
            assert image.offset == len(content)


def test_the_descriptor_goes_on_behind_what_was_consumed(path):
    content = savefiles.LIBXC_CONTEXT + Pv().stream() + END
    with opened(path, content) as image:
        os.lseek(image.fd, 8, os.SEEK_SET)
        inner = Image(image.fd, "inner")
        inner.run(libxc())
        inner.settle()
        assert os.read(image.fd, 100) == END


def test_of_a_pipe_nothing_more_is_read():
    with piped(Pv().stream() + b"libxl's") as image:
        image.run(libxc())
        image.settle()
        assert os.read(image.fd, 100) == b"libxl's"


def test_the_bulk_of_a_pipe_is_whoever_takes_it():
    with piped(Hvm().file()) as image:
        for piece in image.pieces(savefile.parse()):
            if isinstance(piece, Pages) and piece.bulk:
                got = os.read(image.fd, 4096)
                image.consumed(len(got))
                image.read(4096 - len(got))
        with pytest.raises(StreamError):
            image.read(1)


def test_truncated(path):
    content = Pv().file()
    places = [at for _, at in record_places(content)]
    for start, end in ((places[3], places[3] + 3), (places[5], places[5] + 2000), (0, 20)):
        with opened(path, content[:end]) as image, pytest.raises(StreamError) as caught:
            image.run(savefile.parse())
        assert str(caught.value) == (
            f"a.save: truncated: it ends at byte {end}, within what begins at byte {start}"
        )
        with piped(content[:end]) as image, pytest.raises(StreamError, match="a pipe: truncated"):
            image.run(savefile.parse())


def test_a_file_that_shrinks_meanwhile(path):
    with opened(path, Pv().file()) as image:
        driven = image.pieces(savefile.parse())
        while not isinstance(next(driven), Pages):
            pass
        os.truncate(path, image.offset + 10)
        with pytest.raises(StreamError, match="truncated"):
            image.read(20000)
        with pytest.raises(StreamError, match="truncated"):
            image.read_into(memoryview(bytearray(4096)))
        os.truncate(path, 100)
        with pytest.raises(StreamError, match="truncated"):
            list(driven)


def test_errors_have_a_place(path):
    content = Hvm(parts={"tsc": savefiles.record(0xB)}).file()
    place = dict(record_places(content))[0xB]
    with opened(path, content) as image, pytest.raises(StreamError) as caught:
        image.run(savefile.parse())
    assert str(caught.value).startswith(f"a.save: at byte {place}: a TOOLSTACK record")
    with opened(path) as image, pytest.raises(StreamError, match="at byte 0: mine"), image.place():
        raise StreamError("mine")


def test_memory_is_taken_only_for_what_is_there(path):
    """The limit of a record is 128 MiB, and a file may say so without having them."""
    content = savefiles.libxc_header(2) + framing.RECORD.pack(0x80000001, 128 << 20)
    before = peak()
    with opened(path, content) as image, pytest.raises(StreamError, match="truncated"):
        image.run(libxc())
    with piped(content) as image, pytest.raises(StreamError, match="truncated"):
        image.run(libxc())
    assert peak() - before < 32 << 10  # KiB


def peak():
    """KiB of address space that this process ever had."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(re.search(r"VmPeak:\s+(\d+)", status.read())[1])


def test_what_ends_with_the_file(path):
    made = Legacy(guest="hvm")
    with opened(path, made.xend_file()) as image:
        (blob,) = (piece for piece in image.pieces(savefile.parse()) if isinstance(piece, Blob))
        assert blob.bulk == 54
    with piped(made.xend_file()) as image, pytest.raises(StreamError, match="cannot be a pipe"):
        image.run(savefile.parse())
    with piped(made.stream()) as image, pytest.raises(StreamError, match="give a regular file"):
        image.run(savefile.parse())
    os.truncate(path, len(made.xend_file()) + (128 << 20))
    with opened(path) as image, pytest.raises(StreamError, match="the limit is 134217728"):
        image.run(savefile.parse())


# Zero pages


def sparse(path, parts):
    """A file of holes and data: (size, content or None)."""
    with path.open("wb") as file:
        for size, content in parts:
            if content is None:
                file.seek(size, os.SEEK_CUR)
            else:
                file.write(content)
        file.truncate()


def zero_map(image, pages):
    """Each page: whether it is zero; and what is not, is what the file holds."""
    found = []
    for count, data in Scanner(image).runs(pages):
        end = image.offset
        found += [data is None] * count
        if data is not None:
            assert len(data) == count * 4096
            assert bytes(data) in os.pread(image.fd, 2 << 20, max(end - (1 << 20), 0))
    return found


@pytest.mark.parametrize("shift", [0, 1, 520, 4095])
def test_zero_pages_with_and_without_holes(path, shift):
    """Whatever the alignment of the pages to the file's blocks."""
    kinds = [0, 0, 1, 2, 0, 2, 2, 2, 1, 0, 0, 0] * 40 + [2] * 600 + [1]
    page = {0: savefiles.ZERO, 1: savefiles.page(5), 2: savefiles.half_zero(6)}
    path.write_bytes(bytes(shift) + b"".join(page[kind] for kind in kinds))
    with opened(path) as image:
        image.skip(shift)
        assert zero_map(image, len(kinds)) == [kind == 0 for kind in kinds]
        assert image.offset == image.size


@pytest.mark.parametrize("shift", [0, 7, 4088])
def test_pages_in_holes(path, shift):
    page = savefiles.page(1)
    sparse(path, [(shift, bytes(shift)), (0, page), (9 * 4096, None), (0, page), (1 << 20, None)])
    with opened(path) as image:
        image.skip(shift)
        assert zero_map(image, 267) == [False, *[True] * 9, False, *[True] * 256]
    with opened(path) as image:
        image.skip(shift + 4096 + (4096 - shift if shift else 0))
        assert image.hole(1 << 30) >= 8 * 4096 if not shift else image.hole(1 << 30) >= 7 * 4096
        assert image.hole(100) == 100


def test_holes_up_to_the_end(path):
    sparse(path, [(8 * 4096, None)])
    with opened(path) as image:
        assert image.hole(1 << 40) == 8 * 4096
        assert image.hole(4096) == 4096


def test_pipes_have_no_holes():
    content = savefiles.page(1) + bytes(3 * 4096)
    with piped(content) as image:
        assert image.hole(4096) == 0
        assert [(n, d is None) for n, d in Scanner(image).runs(4)] == [(1, False), (3, True)]


def test_records_larger_than_what_is_read_ahead(path):
    body = bytes(range(256)) * 200
    content = Hvm(parts={"context": savefiles.record(9, body)}, memory=[Page(0, 1)]).stream()
    for source in (opened(path, content), piped(content)):
        with source as image:
            bodies = [p.body for p in image.pieces(libxc()) if isinstance(p, Record)]
            assert body in bodies
