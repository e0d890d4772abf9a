"""Plain, sparse and dense files, into each other and back; and zero pages freed in place."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct

import pytest
import savefiles
from harness.parsing import parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from savefiles import BROKEN, NOTAB, XALLOC, XTAB, Hvm, Legacy, Page, Pv

from hotplug.errors import HotplugError
from hotplug.restore import convert as conversion
from hotplug.restore import forms, holes, inplace, savefile
from hotplug.restore.forms import Form
from hotplug.restore.image import Image
from hotplug.restore.legacy import Choice
from hotplug.restore.output import Output
from hotplug.restore.pieces import Pages, Record, StreamError

FILLER, DENSE = 0xFFFFFF01, 0x7F58485A


def rewritten(folder, content, form, *, keep=None):
    """The content in another form, from a file to a file."""
    source, target = folder / "in", folder / "out"
    source.write_bytes(content)
    fd = os.open(source, os.O_RDONLY)
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        if keep is None:
            keep = forms.named_frames(Image(fd, "in")) if form is Form.DENSE else frozenset()
        output = Output(out, "out")
        forms.rewrite(Image(fd, "in"), output, form, keep=keep)
        output.finish()
    finally:
        os.close(fd)
        os.close(out)
    return target.read_bytes()


@pytest.fixture
def rewrite(tmp_path):
    return lambda content, form, **more: rewritten(tmp_path, content, form, **more)


def refusal(rewrite, content, form):
    with pytest.raises(StreamError) as caught:
        rewrite(content, form)
    return str(caught.value)


def large(*, unlike=()):
    """A guest of 1,500 pages, most of them zero."""
    memory = savefiles.pv_memory()
    memory += [Page(NOTAB, pfn, savefiles.page(pfn) if pfn % 7 == 0 else savefiles.ZERO)
               for pfn in range(16, 1500)]  # fmt: skip
    parts = {"p2m": savefiles.p2m_frames(1500, [2] * 3)}
    return Pv(memory=memory, batch=1024, parts=parts, **dict(unlike)).file()


SAMPLES = {
    "pv": Pv().file(),
    "pv32": Pv(width=4).file(),
    "version 2": Pv(version=2, vcpus=3).file(),
    "hvm": Hvm().file(),
    "pvh": Hvm(emulator=None).file(),
    "no configuration": Pv().file(config=None),
    "bare": Pv().stream(),
    "trailing": Pv().file(tail=b"x" + bytes(9000) + b"x"),
    "large": large(),
}
samples = pytest.mark.parametrize("content", SAMPLES.values(), ids=SAMPLES.keys())


def story(content, *, form=Form.PLAIN):
    """The logical content: records without fillers, and every page."""
    found = parse(savefile.parse(), content)
    records = [
        piece for piece in found.pieces
        if isinstance(piece, Record) and piece.kind not in (FILLER, DENSE)
    ]  # fmt: skip
    pages, data, at = [], b"".join(found.bulks), 0
    for piece in found.pieces:
        for entry in piece.entries if isinstance(piece, Pages) else ():
            size = 4096 if savefiles.has_data(entry >> 60) else 0
            page = data[at : at + size]
            at += size
            if form is Form.DENSE and entry >> 60 == XALLOC:
                entry, page = entry & (1 << 60) - 1, savefiles.ZERO  # noqa: PLW2901
            pages.append((entry, page))
    return records, pages, data[at:], found.left


@samples
def test_sparse_and_back(rewrite, content):
    sparse = rewrite(content, Form.SPARSE)
    assert story(sparse) == story(content)
    assert rewrite(sparse, Form.SPARSE) == sparse
    assert rewrite(sparse, Form.PLAIN) == content
    assert rewrite(content, Form.PLAIN) == content


@samples
def test_dense_and_back(rewrite, content):
    dense = rewrite(content, Form.DENSE)
    assert len(dense) < len(content)
    assert story(dense, form=Form.DENSE) == story(content)
    assert rewrite(dense, Form.DENSE) == dense
    assert rewrite(dense, Form.PLAIN) == content
    assert rewrite(rewrite(dense, Form.SPARSE), Form.PLAIN) == content
    assert rewrite(rewrite(content, Form.SPARSE), Form.DENSE) == dense


@samples
def test_pages_of_sparse_files_are_aligned(rewrite, tmp_path, content):
    rewrite(content, Form.SPARSE)
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    image = Image(fd, "out")
    try:
        for piece in image.pieces(savefile.parse()):
            assert image.offset % 8 == 0 or image.offset == image.size
            if isinstance(piece, Pages) and piece.bulk:
                assert image.offset % 4096 == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", range(8))
def test_any_alignment_of_the_streams(rewrite, size):
    content = Pv().file(config={"x": "y" * size})
    sparse = rewrite(content, Form.SPARSE)
    assert sparse.index(b"LibxlFmt") % 8 == 0
    assert rewrite(sparse, Form.PLAIN) == content


def test_fillers_are_optional_records_of_zeros(rewrite):
    records = story(rewrite(SAMPLES["large"], Form.SPARSE))[0]
    found = parse(savefile.parse(), rewrite(SAMPLES["large"], Form.SPARSE))
    fillers = [p for p in found.pieces if isinstance(p, Record) and p.kind == FILLER]
    assert len(fillers) == 2
    assert not any(any(one.body) for one in fillers)
    assert FILLER >> 31
    assert len(found.pieces) > len(records)


def test_zero_pages_take_no_space(rewrite, tmp_path):
    content = SAMPLES["large"]
    rewrite(content, Form.SPARSE)
    sparse = (tmp_path / "out").stat()
    full = (tmp_path / "in").stat()
    zero = sum(page == savefiles.ZERO for _, page in story(content)[1])
    assert zero > 1200
    assert sparse.st_blocks * 512 <= full.st_blocks * 512 - zero * 4096 + 64 * 1024


def test_stock_refuses_a_dense_file(rewrite):
    """The record is mandatory, unknown to all, and in front of the first page."""
    dense = rewrite(SAMPLES["pv"], Form.DENSE)
    found = parse(savefile.parse(), dense)
    kinds = [getattr(piece, "kind", type(piece)) for piece in found.pieces]
    assert kinds.index(DENSE) < kinds.index(Pages)
    assert kinds.count(DENSE) == 1
    assert not DENSE >> 31


def test_pages_whose_type_is_checked_stay_as_they_are(rewrite):
    dense = rewrite(SAMPLES["pv"], Form.DENSE)
    kinds = {entry & (1 << 52) - 1: entry >> 60 for entry, _ in story(dense)[1]}
    assert kinds[1] == NOTAB  # of the GDT, and zero
    assert kinds[6] == 1  # a page table, and zero
    assert kinds[7] == kinds[10] == kinds[12] == XALLOC
    assert kinds[9] == XTAB
    assert kinds[11] == BROKEN
    free = rewrite(SAMPLES["pv"], Form.DENSE, keep=frozenset())
    assert {entry & (1 << 52) - 1: entry >> 60 for entry, _ in story(free)[1]}[1] == XALLOC


def test_the_frames_that_are_named(tmp_path):
    memory = [Page(NOTAB, pfn) for pfn in range(40)]
    vcpus = b"".join(
        savefiles.vcpu_record(4, n, savefiles.context(8, vcpu=n, start_info=30, gdt=(31 + n,)))
        for n in range(2)
    )
    vcpus += savefiles.vcpu_record(4, 2, b"")
    path = tmp_path / "in"
    path.write_bytes(Pv(memory=memory, parts={"vcpus": vcpus}).file())
    with path.open("rb") as file:
        assert forms.named_frames(Image(file.fileno(), "in")) == {2, 30, 31, 32}


REFUSED = {
    "legacy": (Legacy().xl_file(), "convert the file first"),
    "verify": (Hvm(parts={"tsc": savefiles.record(0xD)}).file(), "VERIFY"),
    "twice": (Hvm(memory=[Page(NOTAB, 5), Page(NOTAB, 6), Page(NOTAB, 5)]).file(), "pfn 0x5"),
    "absent twice": (Hvm(memory=[Page(XTAB, 5), Page(XTAB, 5)], batch=1).file(), "pfn 0x5"),
    "checkpoints": (Hvm(parts={"tsc": savefiles.record(0xE)}).file(), "checkpoints"),
    "libxl's checkpoints": (
        savefiles.xl_header() + savefiles.libxl_header() + savefiles.record(5, bytes(8)),
        "checkpoints",
    ),
    "truncated": (Hvm().file()[:-1], "truncated"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_must_not_be_touched(rewrite, tmp_path, content, words):
    for form in (Form.SPARSE, Form.DENSE):
        assert words in refusal(rewrite, content, form)
    path = tmp_path / "in place"
    path.write_bytes(content)
    with path.open("r+b") as file, pytest.raises(StreamError, match=words):
        inplace.compact(Image(file.fileno(), "in place"))
    assert path.read_bytes() == content


def test_pages_that_are_allocate_only_already(rewrite):
    content = Hvm(memory=[Page(NOTAB, 5), Page(XALLOC, 6)]).file()
    assert "allocate-only already" in refusal(rewrite, content, Form.DENSE)
    assert rewrite(rewrite(content, Form.SPARSE), Form.PLAIN) == content


def test_expanding_a_legacy_file(rewrite):
    assert "convert the file first" in refusal(rewrite, Legacy().xl_file(), Form.PLAIN)


kinds = st.sampled_from([NOTAB] * 6 + [1, 9, BROKEN, XTAB])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_any_memory(tmp_path, drawn, batch):
    memory = [
        Page(kind, pfn, savefiles.ZERO if zero else savefiles.half_zero(pfn))
        for pfn, (kind, zero) in enumerate(drawn)
    ]
    content = Hvm(memory=memory, batch=batch).file()
    for form in (Form.SPARSE, Form.DENSE):
        other = rewritten(tmp_path, content, form)
        assert story(other, form=form) == story(content)
        assert rewritten(tmp_path, other, Form.PLAIN) == content


# In place


class Killed(BaseException):
    """Nothing of ours catches it."""


@pytest.fixture
def large_file(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(SAMPLES["large"])
    return path


def compact_in_place(path):
    with path.open("r+b") as file:
        inplace.compact(Image(file.fileno(), str(path)))


def test_in_place(large_file):
    before = large_file.stat()
    compact_in_place(large_file)
    after = large_file.stat()
    assert large_file.read_bytes() == SAMPLES["large"]
    assert after.st_size == before.st_size
    assert after.st_blocks * 512 < before.st_blocks * 512 - 700 * 4096
    assert after.st_ino == before.st_ino
    blocks = after.st_blocks
    compact_in_place(large_file)
    assert large_file.stat().st_blocks <= blocks


def test_killed_between_any_two_holes(large_file, monkeypatch):
    """It is the same file after each of them, so it does not matter how far it got."""
    whole, done = SAMPLES["large"], []
    punch = holes.punch

    def watched(fd, start, length):
        if len(done) == 40:
            raise Killed
        punch(fd, start, length)
        done.append((start, length))
        assert os.pread(fd, len(whole), 0) == whole

    monkeypatch.setattr(holes, "punch", watched)
    with pytest.raises(Killed):
        compact_in_place(large_file)
    assert large_file.read_bytes() == whole
    monkeypatch.undo()
    compact_in_place(large_file)
    assert large_file.read_bytes() == whole


@pytest.mark.parametrize("holes_made", [1, 2, 30])
def test_killed_for_good(large_file, monkeypatch, holes_made):
    """The kernel's half-done work counts too: the child is killed while it goes on."""
    reading, writing = os.pipe()
    punch = holes.punch

    def telling(*where):
        punch(*where)
        os.write(writing, b"x")

    monkeypatch.setattr(holes, "punch", telling)
    child = os.fork()
    if not child:
        while True:
            compact_in_place(large_file)
    for _ in range(holes_made):
        assert os.read(reading, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reading)
    os.close(writing)
    assert large_file.read_bytes() == SAMPLES["large"]


def test_only_whole_blocks_of_what_is_zero(tmp_path):
    path = tmp_path / "file"
    content = b"\xff" * 100_000
    path.write_bytes(content)
    block = path.stat().st_blksize
    with path.open("r+b") as file:
        holes.punch(file.fileno(), 1, block)  # no whole block in it
        assert path.read_bytes() == content
        holes.punch(file.fileno(), 1, 3 * block)
    assert path.read_bytes() == content[:block] + bytes(2 * block) + content[3 * block :]
    assert struct.calcsize(holes.SPACE_RESV.format) == 48


def test_a_file_that_somebody_writes_to(large_file, monkeypatch):
    scan = inplace.zero_runs

    def disturbed(*args):
        found = scan(*args)
        with large_file.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(inplace, "zero_runs", disturbed)
    monkeypatch.setattr(holes, "punch", None)
    with pytest.raises(HotplugError, match="somebody is writing to it"):
        compact_in_place(large_file)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_file_systems_without_holes(large_file, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(HotplugError, match="cannot make holes"):
        compact_in_place(large_file)


# Conversion


def converted(folder, content, choice=None):
    source, target = folder / "old", folder / "new"
    source.write_bytes(content)
    with source.open("rb") as file, target.open("w+b") as new:
        output = Output(new.fileno(), "new")
        has_config = conversion.convert(Image(file.fileno(), "old"), output, choice or Choice())
        output.finish()
    return target.read_bytes(), has_config


@pytest.mark.parametrize("guest", ["pv", "hvm"])
@pytest.mark.parametrize("word", [4, 8])
def test_converted_files_tell_the_same(tmp_path, guest, word):
    made = Legacy(guest=guest, word=word, width=word)
    for content, front, config in (
        (made.xl_file(), len(savefiles.xl_header()), True),
        (made.xend_file(), None, False),
    ):
        new, has_config = converted(tmp_path, content)
        assert has_config is config
        expected = savefiles.xl_header() if front else savefiles.xl_header(None, flags=2)
        assert new.startswith(expected + savefiles.libxl_header(2))
        assert story(new) == story(content)


def test_a_file_of_today_is_not_converted(tmp_path):
    for content in (Pv().file(), Pv().stream()):
        with pytest.raises(StreamError, match="today's format already"):
            converted(tmp_path, content)
