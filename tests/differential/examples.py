"""For every rule a scenario that cannot do without it."""

from __future__ import annotations

from differential import scenario as a

TWO = (a.Guest("/vm/a"), a.Guest("/vm/b"))
FILE = (a.File(b"disk"),)
DEVICE = (a.Device(b"disk"),)
ADD, AGAIN, REMOVE = a.Add(0), a.Add(1), a.Remove(0)


def one(entries: tuple[a.Entry, ...], disk: a.Disk, *operations: a.Operation) -> a.Scenario:
    return a.Scenario(entries, TWO, (disk,), operations)


def two(
    entries: tuple[a.Entry, ...],
    first: a.Disk,
    second: a.Disk,
    *operations: a.Operation,
    guests: tuple[a.Guest, ...] = TWO,
) -> a.Scenario:
    return a.Scenario(entries, guests, (first, second), operations)


EXAMPLES = {
    "D26": one(FILE, a.Disk(), REMOVE),
    "D21": one(FILE, a.Disk(error=b"it went wrong earlier"), ADD),
    "D18": one(FILE, a.Disk(), a.Delete(0), ADD, REMOVE),
    "D04": one(FILE, a.Disk(mode=None), ADD),
    "D20": one(DEVICE, a.Disk(holding=a.Holding(0)), ADD),
    "D17": one(DEVICE, a.Disk(state=b"5"), ADD),
    "D01": one((a.Link(b"disk"),), a.Disk(), ADD),
    "F34": one(DEVICE, a.Disk(a.Named(0, "dev")), ADD),
    "D30": one((a.File(b"\xff"),), a.Disk(), ADD, REMOVE),
    "D28": one((a.Device(b"my disk"),), a.Disk(), ADD),
    "D55": one((a.File(b"disk", sealed=True),), a.Disk(), ADD),
    "D07": one(FILE, a.Disk(), ADD, a.Write(0, "physical-device", None), ADD),
    "D02": two(FILE, a.Disk(), a.Disk(guest=1), ADD, AGAIN),
    "D03": two(
        (a.File(b"disk"), a.Device(b"part", over=0, offset=4096)),
        a.Disk(a.Named(1)),
        a.Disk(guest=1),
        ADD,
        AGAIN,
    ),
    "D10": two(
        DEVICE, a.Disk(), a.Disk(guest=1), ADD, AGAIN, guests=(a.Guest(None), a.Guest(None))
    ),
    "D11": two(DEVICE, a.Disk(mode=b"w!"), a.Disk(mode=b"r", guest=1), ADD, AGAIN),
    "D12": two(
        DEVICE,
        a.Disk(),
        a.Disk(guest=1),
        ADD,
        AGAIN,
        guests=(a.Guest("/vm/a-1"), a.Guest("/vm/a")),
    ),
    "D13": two(DEVICE, a.Disk(), a.Disk(guest=1), ADD, a.Add(1, bare="XENBUS_TYPE")),
    "3.4 kinds": two(DEVICE, a.Disk(kind="tap"), a.Disk(guest=1), ADD, AGAIN),
    "3.4 beneath": two(
        (a.File(b"disk"), a.Device(b"part", over=0), a.Device(b"home", over=0, offset=4096)),
        a.Disk(a.Named(1)),
        a.Disk(a.Named(2), guest=1),
        ADD,
        AGAIN,
    ),
    "D06": one(FILE, a.Disk(), ADD, a.Unlink(0), REMOVE),
    "F63": one(FILE, a.Disk(), REMOVE),
    "D09": one(FILE, a.Disk(), ADD, REMOVE, a.Reuse(0), REMOVE),
    "D56": one(FILE, a.Disk(), ADD, a.Delete(0)),
}

# What the search has found once, and stays found.
TWO_PARTS = (a.File(b"disk"), a.Device(b"part", over=0), a.Device(b"home", over=0, mounted="rw"))
FOUND = {
    "a second add does not ask for frontend-id": one(
        FILE, a.Disk(), ADD, a.Write(0, "frontend-id", None), ADD
    ),
    "a relative device is one of /dev": one(
        DEVICE, a.Disk(a.Named(0, "relative")), a.Add(0, inside=True)
    ),
    "a relative file is in the working directory": one(
        FILE, a.Disk(a.Named(0, "relative")), a.Add(0, inside=True), REMOVE
    ),
    "mounts come first, whichever loop device they are of": two(
        TWO_PARTS, a.Disk(a.Named(1)), a.Disk(guest=1), ADD, AGAIN
    ),
    "only one -1 is a suffix": two(
        DEVICE,
        a.Disk(),
        a.Disk(guest=1),
        ADD,
        AGAIN,
        guests=(a.Guest("/vm/a"), a.Guest("/vm/a-1-1")),
    ),
    "an empty vm is one that several may have": two(
        DEVICE, a.Disk(), a.Disk(guest=1), ADD, AGAIN, guests=(a.Guest(""), a.Guest(""))
    ),
    "no name is an option": one(
        (a.File(b"-r"),), a.Disk(a.Named(0, "relative")), a.Add(0, inside=True), REMOVE
    ),
    "what a pattern matches is another device": one(
        (a.Device(b"[a]"), a.Device(b"a")), a.Disk(), ADD
    ),
    "what stock attached is taken back": one(FILE, a.Disk(), a.Inherit(0), REMOVE),
    "what stock attached to a file that is gone": one(
        FILE, a.Disk(), a.Inherit(0), a.Unlink(0), REMOVE
    ),
    "what stock attached is left alone once it is another file's": one(
        FILE, a.Disk(), a.Inherit(0), REMOVE, a.Reuse(0), REMOVE
    ),
    "a backend is made anew": one(FILE, a.Disk(), ADD, a.Create(0), ADD, REMOVE),
}
