"""Drives a parser of ``hotplug.restore`` over bytes, without a file."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotplug.restore.pieces import Blob, OrEnd, Pages

LONG = 64  # bytes of a wish; it is answered as one


class CutError(Exception):
    """The parser wants more than there is."""


@dataclass
class Parsed:
    pieces: list = field(default_factory=list)
    bulks: list = field(default_factory=list)
    wishes: list = field(default_factory=list)  # (where, how many bytes)
    result: object = None
    left: bytes = b""


def parse(parser, data, *, wishes=None):
    """What it finds in the data. CutError if that ends too early; wishes are noted even then."""
    found = Parsed(wishes=[] if wishes is None else wishes)
    at, sent = 0, None
    while True:
        try:
            wish = parser.send(sent)
        except StopIteration as end:
            found.result, found.left = end.value, data[at:]
            return found
        sent = b""
        if isinstance(wish, int | OrEnd):
            if isinstance(wish, OrEnd) and at == len(data):
                continue
            size = wish if isinstance(wish, int) else wish.size
            assert size > 0, "a wish for nothing"
        else:
            found.pieces.append(wish)
            size = wish.bulk if isinstance(wish, Pages | Blob) else 0
            size = len(data) - at if size is None else size
        found.wishes.append((at, size))
        if at + size > len(data):
            raise CutError
        piece = data[at : at + size]
        at += size
        if isinstance(wish, int | OrEnd):
            sent = piece
        elif size:
            found.bulks.append(piece)


def cuts(wishes):
    """Every byte at which a cut may matter: inside a long wish they are all alike."""
    for at, size in wishes:
        if size <= LONG:
            yield from range(at, at + size)
        else:
            yield from (at, at + 1, at + size // 2, at + size - 1)


def refuses_every_cut(make, data):
    """Whatever is cut off, the parser wants it and finds nothing but what is in front of it."""
    whole = parse(make(), data)
    assert whole.left == b""
    for cut in cuts(whole.wishes):
        try:
            part = parse(make(), data[:cut])
        except CutError:
            continue
        raise AssertionError(f"content with {cut} of {len(data)} bytes: {part.pieces[-1]}")
    return whole
