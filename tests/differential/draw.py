"""Makes scenarios up: disks that want the same few things, plain in most ways and odd in some.

The first choice of every strategy is the plainest, which is what hypothesis shrinks to.
"""

from __future__ import annotations

import dataclasses

from differential import scenario as a
from hypothesis import strategies as st

NAMES = (
    b"a",
    b"b",
    b"c",
    b"d e",
    b"a*",
    b"[a]",
    b"?",
    b"\xc3\xa4",
    b"\xff",
    b"g\\x41",
    b"h\ni",
    b"j\tk",
    b" l",
    b"m ",
    b"$(n)",
    b"'\"`",
    b"-r",
    b"o (deleted)",
    b"p:q",
    b"r" * 200,
)
MODES = (b"w", b"r", b"w!", b"rw", b"ro", b"rw!", b"r!", b"!", b"!w", b"W", b"x", b"", None)
STATES = (b"2", b"1", b"3", b"4", b"5", b"6", b"02", b"", None)
TYPES = (b"phy", b"file", b"", b"odd", None)
VMS = ("/vm/a", "/vm/b", "/vm/a-1", "/vm/b-1", "/vm/a-1-1", "", None)
LITERALS = (
    b"",
    None,
    b"/",
    b"/dev/null",
    b"sda1",
    b"/nowhere/disk",
    b"/dev/\xe9",
    b"/" + b"y" * 300,
)
STATUSES = (b"connected", b"error", b"busy", b"")
WRITES = {
    "state": (b"2", *STATES),
    "mode": MODES,
    "hotplug-status": (None, *STATUSES),
    "physical-device": (None, None, b""),
    "node": (None,),
    "hotplug-error": (b"it went wrong", None),
    "params": (None, b""),
    "frontend-id": (None, b""),
    "type": TYPES,
}


def seldom(common: object, *rare: object, one_in: int) -> st.SearchStrategy:
    """``common``, but in one of so many cases one of ``rare``."""
    return st.integers(0, one_in - 1).flatmap(
        lambda number: st.sampled_from(rare) if number == one_in - 1 else st.just(common)
    )


def mixed(*parts: st.SearchStrategy) -> st.SearchStrategy:
    """One of them, each as likely as it is often named (one_of would look inside)."""
    return st.sampled_from(parts).flatmap(lambda part: part)


# Few indexes, mostly the first: what is interesting happens where several want the same.
indexes = st.sampled_from((0, 0, 0, 1, 1, 2))
names = seldom(b"a", *NAMES, one_in=2)
files = st.builds(
    a.File,
    name=names,
    size=seldom(65536, 0, 1, 511, 512, 4096, one_in=8),
    permissions=seldom(0o644, 0o444, 0o400, 0o020, 0o002, 0o000, one_in=6),
    sealed=seldom(False, True, one_in=16),
)
devices = st.builds(
    a.Device,
    name=names,
    over=st.one_of(st.none(), indexes),
    offset=seldom(0, 4096, one_in=3),
    mounted=seldom("", "ro", "rw", one_in=8),
)
links = st.builds(a.Link, name=names, to=st.one_of(indexes, st.none()), absolute=st.booleans())
hard_links = st.builds(a.HardLink, name=names, to=indexes)
odd = st.builds(a.Odd, name=names, kind=st.sampled_from(("directory", "character", "fifo")))
further = st.lists(mixed(files, devices, files, devices, links, hard_links, odd), max_size=3)


def unique(made: list[a.Entry]) -> list[a.Entry]:
    return list({entry.name: entry for entry in reversed(made)}.values())[::-1]


def guest(index: int) -> st.SearchStrategy[a.Guest]:
    """Mostly a guest of its own, else related to others, or half gone."""
    return st.builds(
        a.Guest,
        vm=seldom(f"/vm/{'abc'[index]}", *VMS, one_in=2),
        target=seldom(None, 1, 2, 3, 4, one_in=5),
    )


params = st.builds(a.Named, entry=indexes, spelling=seldom("plain", *a.SPELLINGS, one_in=4))
oddities = mixed(
    *(st.just({}) for _ in range(12)),
    st.fixed_dictionaries({"mode": st.sampled_from(MODES)}),
    st.fixed_dictionaries({"mode": st.sampled_from(MODES)}),
    st.fixed_dictionaries({"params": st.builds(a.Literal, st.sampled_from(LITERALS))}),
    st.fixed_dictionaries({"type": st.sampled_from(TYPES)}),
    st.fixed_dictionaries({"state": st.sampled_from(STATES)}),
    st.fixed_dictionaries({"kind": st.just("tap")}),
    st.fixed_dictionaries({"frontend": st.just(value=False)}),
    st.fixed_dictionaries({"error": st.just(b"it went wrong earlier")}),
    st.fixed_dictionaries(
        {
            "holding": st.builds(
                a.Holding,
                entry=indexes,
                prefix=seldom(b"", b"0", b"1", one_in=4),
                suffix=seldom(b"", b":0", b" ", one_in=4),
            ),
            "status": st.sampled_from((b"connected", None, *STATUSES)),
        }
    ),
)


def disk(index: int) -> st.SearchStrategy[a.Disk]:
    plain = st.builds(
        a.Disk,
        params=params,
        mode=st.sampled_from((b"w", b"r", b"w", b"r", b"w!")),
        guest=seldom(index, 0, 1, one_in=4),
    )
    return st.builds(
        lambda made, first, second: dataclasses.replace(made, **{**first, **second}),
        plain,
        oddities,
        oddities,
    )


adds = st.builds(
    a.Add,
    disk=indexes,
    inside=seldom(False, True, one_in=4),
    bare=seldom("", "XENBUS_TYPE", "XENBUS_BASE_PATH", one_in=16),
)
removes = st.builds(a.Remove, disk=indexes)
writes = st.sampled_from(tuple(WRITES)).flatmap(
    lambda key: st.builds(a.Write, indexes, st.just(key), st.sampled_from(WRITES[key]))
)
changes = mixed(
    writes,
    writes,
    st.builds(a.Inherit, indexes),
    st.builds(a.Delete, indexes),
    st.builds(a.Create, indexes),
    st.builds(a.Unlink, indexes),
    st.builds(a.Replace, indexes, st.sampled_from(("file", "directory", "link", "device"))),
    st.builds(a.Reuse, indexes),
    st.builds(a.SetVm, indexes, st.sampled_from(VMS)),
)
operations = st.lists(mixed(adds, adds, removes, changes), max_size=5)


def opening(index: int) -> st.SearchStrategy[tuple[a.Operation, ...]]:
    """How a disk comes into use, before all that may happen to it."""
    return mixed(
        *(st.just((a.Add(index),)) for _ in range(7)),
        st.just((a.Inherit(index),)),
        adds.map(lambda operation: (operation,)),
        st.just(()),
    )


def plausible(made: list[a.Entry]) -> tuple[a.Entry, ...]:
    """At most one mount a scenario: each costs as much as an event. None on a sealed file."""
    sealed = [entry.sealed for entry in made if isinstance(entry, a.File)]
    kept: list[a.Entry] = []
    is_mounted = False
    for entry in made:
        if isinstance(entry, a.Device) and entry.mounted:
            refused = is_mounted or bool(
                entry.over is not None and sealed and sealed[entry.over % len(sealed)]
            )
            kept.append(dataclasses.replace(entry, mounted="") if refused else entry)
            is_mounted |= not refused
        else:
            kept.append(entry)
    return tuple(kept)


@st.composite
def scenarios(draw: st.DrawFn) -> a.Scenario:
    made = plausible(unique([draw(st.one_of(files, devices)), *draw(further)]))
    guests = tuple(draw(guest(index)) for index in range(draw(st.sampled_from((2, 3, 1)))))
    count = draw(st.sampled_from((2, 2, 3, 1)))
    disks = tuple(draw(disk(index)) for index in range(count))
    openings = [operation for index in range(count) for operation in draw(opening(index))]
    return a.Scenario(made, guests, disks, (*openings, *draw(operations)))
