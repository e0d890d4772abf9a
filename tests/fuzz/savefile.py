"""Feeds broken save files to everything that reads them: `make fuzz`.

A save file may be refused, by a sentence. It may not end in another exception, take more memory
than its size justifies, or be changed in meaning by a tool that accepts it.

    .venv/bin/python tests/fuzz/savefile.py [--seconds N] [--corpus DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

import savefiles
from savefiles import Hvm, Legacy, Page, Pv

with atheris.instrument_imports(include=["hotplug.restore"]):
    from hotplug.errors import HotplugError
    from hotplug.restore import convert, forms, framing, savefile, strict, summary
    from hotplug.restore.forms import Form
    from hotplug.restore.image import Image
    from hotplug.restore.legacy import Choice
    from hotplug.restore.output import Output
    from hotplug.restore.pieces import Guest, XlHeader

MAX_INPUT = 1 << 16  # bytes
# A pfn of 8 bytes may cost a chunk of 4 KiB in a set of pfns; three such sets are kept at most.
MAX_MEMORY = (8 << 20) + 3 * 520 * MAX_INPUT

MORE_MEMORY = 100 << 20  # less than the largest body, 128 MiB; what is measured is less again
STATM = open("/proc/self/statm", encoding="ascii")  # noqa: SIM115 - as long as we run

CHOICES = [
    Choice(),
    Choice(4, Guest.PV),
    Choice(8, Guest.PV),
    Choice(4, Guest.HVM),
    Choice(8, Guest.HVM),
]


class File:
    """A file in memory, used again and again."""

    def __init__(self, name):
        self.fd = os.memfd_create(name)
        self.name = name

    def fill(self, data):
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        return self

    def image(self):
        os.lseek(self.fd, 0, os.SEEK_SET)
        return Image(self.fd, self.name)

    def content(self):
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)


SOURCE, OTHER, BACK = File("source"), File("other"), File("back")


def rewritten(source, target, form, **options):
    output = Output(target.fill(b"").fd, target.name)
    forms.rewrite(source.image(), output, form, **options)
    output.finish()
    return target


def one_input(data):
    """Every eighth is measured to the byte; all are under the limit of the process."""
    if zlib.crc32(data) % 8:
        with limited_memory():
            read_all(data)
        return
    tracemalloc.start()
    try:
        read_all(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > MAX_MEMORY:
        raise MemoryError(f"{peak} bytes for a file of {len(data)}")


def read_all(data):
    SOURCE.fill(data)
    choice = CHOICES[len(data) % len(CHOICES)]
    for read in (
        lambda: SOURCE.image().run(savefile.parse(choice)),
        lambda: strict.verify(SOURCE.image(), choice),
        lambda: summary.facts(
            summary.summarise(SOURCE.image(), choice), SOURCE.image(), quick=False
        ),
        rewrite_and_back,
        lambda: convert_and_verify(choice),
    ):
        with contextlib.suppress(HotplugError):
            read()


def has_tail():
    """Something without meaning follows the configuration, so zeros after that are lost in it."""
    header = next(SOURCE.image().pieces(savefile.parse()))
    data = header.optional_data if isinstance(header, XlHeader) else b""
    return len(data) > 4 + len(framing.config(data))


def rewrite_and_back():
    """What a tool accepts, it has to give back, and to accept again."""
    plain = rewritten(SOURCE, OTHER, Form.PLAIN).content()
    if has_tail():
        return
    for form in (Form.SPARSE, Form.DENSE):
        try:
            keep = forms.named_frames(SOURCE.image())
            small = rewritten(SOURCE, OTHER, form, keep=keep)
        except HotplugError:
            continue
        if rewritten(small, BACK, Form.PLAIN).content() != plain:
            raise AssertionError(f"{form} changed the file")


def convert_and_verify(choice):
    output = Output(OTHER.fill(b"").fd, "other")
    convert.convert(SOURCE.image(), output, choice)
    output.finish()
    OTHER.image().run(savefile.parse())


def seeds():
    """Small files of every kind."""
    pv = [
        Page(0, 0, savefiles.start_info(store=0, console=2)),
        Page(0xF, 1),
        Page(0, 2),
        Page(9, 3),
    ]
    hvm = [Page(0, 1, savefiles.page(1)), Page(0, 2), Page(0xF, 3)]
    yield Pv().file()
    yield Pv(memory=pv, version=2).file()
    yield Hvm(memory=hvm).file()
    yield Hvm(memory=hvm[1:], version=2).file()
    yield Pv(width=4, memory=pv).stream()
    yield Hvm(memory=hvm, parts={"tsc": savefiles.record(0x80000005, b"abc")}).file(tail=b"tail")
    marked = savefiles.STATIC_DATA_END + savefiles.record(0x7F58485A, b"\1" + bytes(7))
    yield Hvm(memory=[Page(0xE, 1), *hvm[1:]], parts={"static": marked}).file()
    none = [Page(0xF, 4)]
    yield Hvm(memory=none, parts={"context": savefiles.record(9, b"x")}).stream()
    yield Hvm(memory=none, parts={"context": savefiles.record(9, b"x")}).file()
    yield Legacy(guest="hvm", memory=none).xend_file()
    for word in (4, 8):
        old = {"word": word, "width": word, "memory": pv}
        yield Legacy(**old, extv=True, xsave=600, vcpus=2, unmapped=(1,)).xl_file()
        yield Legacy(**old).stream()
        yield Legacy(word=word, guest="hvm", memory=hvm).xend_file()
        yield Legacy(word=word, guest="hvm", memory=hvm).xl_file()


@contextlib.contextmanager
def limited_memory():
    """No single wish of a parser's may be granted if the file does not have it.

    For one input at a time: the fuzzer itself grows with each.
    """
    STATM.seek(0)
    limit = int(STATM.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=600)
    arguments.add_argument("--corpus", help="a folder that is kept (default: a temporary one)")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(chosen.corpus or temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(content)
        options = [
            f"-max_total_time={chosen.seconds}",
            f"-max_len={MAX_INPUT}",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
