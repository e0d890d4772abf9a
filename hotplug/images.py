"""The commands ``xen-hotplug savefile``: opens the files, shows how far it got, prints results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from hotplug.errors import HotplugError, UsageError
from hotplug.restore import convert as conversion
from hotplug.restore import forms, inplace, strict, summary
from hotplug.restore.forms import Form
from hotplug.restore.image import Image
from hotplug.restore.legacy import Choice
from hotplug.restore.output import Output, replacing
from hotplug.restore.pieces import Guest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import NoReturn

MIB = 1 << 20
STANDARD = "-"
ENDED = 128  # exit status, and the signal's number: as a shell has it
EVERY = 0.1  # seconds between two looks of the bar
WIDTH = 40  # characters of the bar
GUESTS = {"pv": Guest.PV, "hvm": Guest.HVM}


def run(arguments: argparse.Namespace) -> int:
    actions = {
        "info": info,
        "verify": verify,
        "compact": compact,
        "expand": expand,
        "convert": convert,
    }
    with undone_when_ended():
        return actions[arguments.action](arguments)


@contextlib.contextmanager
def undone_when_ended() -> Iterator[None]:
    """Let what is half done be undone if somebody ends us, or our terminal goes.

    A file that has no name yet vanishes by itself, but NFS and others have no such files.
    """
    ending = [n for n in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def leave(number: int, _: object) -> NoReturn:
    raise SystemExit(ENDED + number)


def info(arguments: argparse.Namespace) -> int:
    with reading(arguments.file) as image, Bar(image) as bar:
        found = summary.summarise(
            image, choice(arguments), quick=arguments.quick, progress=bar.show
        )
        bar.clear()
        facts = summary.facts(found, image, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print_facts(facts)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    with reading(arguments.file) as image, Bar(image) as bar:
        notes = strict.verify(image, choice(arguments), bar.show)
    for text, times in notes.items():
        print(f"note: {text}" + (f" ({times} times)" if times > 1 else ""))
    print(f"{arguments.file}: no rule of the format is broken")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    if arguments.in_place == (arguments.output is not None):
        raise UsageError("name IN and OUT, or --in-place and one FILE")
    if arguments.in_place and arguments.dense:
        raise UsageError("--dense moves what is in the file, so it needs another file OUT")
    if arguments.in_place and arguments.input == STANDARD:
        raise UsageError("--in-place changes a file, so name it; - is standard input")
    if arguments.in_place:
        return compact_in_place(arguments.input)
    if arguments.dense:
        with reading(arguments.input, regular=True) as image:
            keep = forms.named_frames(image)
        return rewrite(arguments, Form.DENSE, keep=keep)
    if arguments.output == STANDARD:
        raise UsageError("a pipe cannot have holes; --dense leaves the zero pages out")
    return rewrite(arguments, Form.SPARSE)


def compact_in_place(path: str) -> int:
    with reading(path, os.O_RDWR, regular=True) as image, Bar(image) as bar:
        before = os.fstat(image.fd)
        inplace.compact(image, bar.show)
        bar.clear()
        print_result(path, os.fstat(image.fd), before)
    return 0


def expand(arguments: argparse.Namespace) -> int:
    return rewrite(arguments, Form.PLAIN)


def rewrite(
    arguments: argparse.Namespace, form: Form, *, keep: frozenset[int] = frozenset()
) -> int:
    source, target = arguments.input, arguments.output
    regular = form is not Form.PLAIN
    with reading(source, regular=regular) as image, Bar(image) as bar:
        before = os.fstat(image.fd)
        with writing(target, image.fd) as output:
            forms.rewrite(image, output, form, keep=keep, progress=bar.show)
        bar.clear()
        if target != STANDARD:
            print_result(target, os.stat(target), before)
    return 0


def convert(arguments: argparse.Namespace) -> int:
    with reading(arguments.input, regular=True) as image, Bar(image) as bar:
        with writing(arguments.output, image.fd) as output:
            has_config = conversion.convert(image, output, choice(arguments), bar.show)
        bar.clear()
    if not has_config:
        words = f"It has no configuration: xl restore CONFIG {arguments.output}"
        print(words, file=sys.stderr if arguments.output == STANDARD else sys.stdout)
    return 0


def choice(arguments: argparse.Namespace) -> Choice:
    """What a legacy stream does not tell."""
    word = arguments.width and int(arguments.width) // 8
    return Choice(word, arguments.guest and GUESTS[arguments.guest])


# Files


@contextlib.contextmanager
def reading(path: str, flags: int = os.O_RDONLY, *, regular: bool = False) -> Iterator[Image]:
    """An open save file; standard input for ``-``."""
    if path == STANDARD:
        fd, name = os.dup(0), "standard input"
    else:
        fd, name = os.open(path, flags), path
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode) or (regular and not stat.S_ISREG(mode)):
            raise HotplugError(f"{name}: not a regular file")
        yield Image(fd, name)
    except OSError as error:
        error.filename = error.filename or name
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing(path: str, source: int) -> Iterator[Output]:
    """What is written to: standard output for ``-``."""
    if path == STANDARD:
        output = Output(1, "standard output", shared=True)
        yield output
        output.finish()
        output.settle()
        return
    with replacing(path, source) as output:
        yield output


# For people


class Bar:
    """How far it got, on a terminal."""

    def __init__(self, image: Image) -> None:
        self._total = image.size if sys.stderr.isatty() else None
        self._next = time.monotonic() + EVERY
        self._shown = False

    def show(self, offset: int) -> None:
        if not self._total or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        self._shown = True
        done = min(offset / self._total, 1.0)
        bar = "#" * round(done * WIDTH)
        sys.stderr.write(f"\r[{bar.ljust(WIDTH)}] {done:4.0%}")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{' ' * (WIDTH + 8)}\r")
            sys.stderr.flush()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def print_result(path: str, after: os.stat_result, before: os.stat_result) -> None:
    print(f"{path}: {on_disk(after)}, was {on_disk(before)}")


def on_disk(status: os.stat_result) -> str:
    size, allocated = status.st_size / MIB, status.st_blocks * summary.BLOCK / MIB
    return f"{size:.1f} MiB, {allocated:.1f} MiB on the disk"


def print_facts(facts: dict[str, Any]) -> None:
    guest, pages = facts["guest"], facts["pages"]
    size = "" if facts["size"] is None else f"{facts['size'] / MIB:.1f} MiB, "
    print(f"file      {size}{facts['allocated'] / MIB:.1f} MiB on the disk, {facts['form']}")
    print(f"layers    {', '.join(facts['layers'])}")
    bits = f", {guest['bits']} bits" if guest["bits"] else ""
    vcpus = f", vcpus: {guest['vcpus']}" if guest["vcpus"] else ""
    saved = f", saved by Xen {facts['saved_by_xen']}" if facts["saved_by_xen"] else ""
    name = f"{facts['name']}: " if facts["name"] else ""
    print(f"guest     {name}{guest['type']}{bits}, {guest['bytes'] / MIB:.1f} MiB{vcpus}{saved}")
    zero = "not counted" if pages["zero"] is None else f"{pages['zero']}"
    print(
        f"pages     {pages['with_data']} with data; zero: {zero}, in holes: {pages['in_holes']},"
        f" page tables: {pages['page_tables']}"
    )
    for name, count in pages["by_type"].items():
        print(f"          {count:>10}  {name}")
    print("records")
    for one in facts["records"]:
        print(f"          {one['count']:>10}  {one['layer']} {one['name']}, {one['bytes']} bytes")
    if facts["trailing_bytes"]:
        print(f"end       {facts['trailing_bytes']} bytes follow it")
