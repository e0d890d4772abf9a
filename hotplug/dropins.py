"""Our scripts in the place of stock ones: one name in the folder that toolstacks run scripts from.

Looks at a name, says what may be done and does it. Decides nothing about the folder as a whole,
and knows no agent. What is true there:

- A toolstack may run a script at any moment, so NAME is only ever the target of rename(2): there
  is no moment without a script. (``dpkg-divert --rename`` leaves one.)
- From stock to ours it is three steps: NAME.stock becomes a second link to the stock script, dpkg
  is told that packages' file is there, ours is renamed over NAME. The way back is the same three.
  So wherever one way was broken off, both can go on, and the stock script stays the same file,
  with its owner and time, without ever being copied.
- For a diverted configuration file, dpkg (1.21) uses NAME.stock for everything: upgrades, its
  question about local changes, the .dpkg-dist beside it, --verify, purge. To add or to remove a
  diversion twice is no error.
- Ours are copies, not links into our package: that folder is not there while an upgrade replaces
  it, or after it was removed, and a copy still reaches the agent then.
- Ours are known by a mark in the program, not byte by byte, so older ones are known too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass

from hotplug.errors import HotplugError

FOLDER = "/etc/xen/scripts"  # libxl has it compiled in, and so has libvirt, through libxl
MARK = b"xen-hotplug drop-in"  # as in client.c
PACKAGE_TAIL = "hotplug/client/scripts"  # how the folder with ours ends
DPKG_SUFFIXES = (".dpkg-dist", ".dpkg-old")  # the package's version, or the administrator's
HEAD = 1 << 16  # bytes to look for the mark in; a drop-in has a tenth of it


@dataclass(frozen=True, slots=True)
class Dpkg:
    """What dpkg has to do with a folder."""

    owns: bool  # packages put files there, or may come to
    diversions: tuple[str, ...]  # as dpkg-divert lists them


@dataclass(frozen=True, slots=True)
class Place:
    """One name in the toolstack's folder, as it was found."""

    path: str
    there: bool
    ours: bool  # a drop-in of whatever version
    current: bool  # a copy of ours as it is now
    kept: bool  # there is a NAME.stock
    linked: bool  # and it is the same file as NAME
    diverted: bool  # dpkg puts packages' NAME there
    leftover: bool  # a run that was killed left its temporary file

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def stock(self) -> str:
        """Where the stock script waits."""
        return f"{self.path}.stock"

    @property
    def has_stock(self) -> bool:
        """Whether there is a stock script, under whichever name."""
        return self.kept or (self.there and not self.ours)

    @property
    def temporary(self) -> str:
        """What is renamed to ``path``; a toolstack never asks for it."""
        return os.path.join(os.path.dirname(self.path), f".{self.name}.xen-hotplug")


def look(path: str, source: str, dpkg: Dpkg) -> Place:
    """What is there; ``source`` is what may be put there."""
    here = Place(path, *(False,) * 7)
    return Place(
        path,
        there=os.path.lexists(path),
        ours=is_ours(path),
        current=is_copy(path, source),
        kept=os.path.lexists(here.stock),
        linked=is_one_file(path, here.stock),
        diverted=f"local diversion of {path} to {here.stock}" in dpkg.diversions,
        leftover=os.path.lexists(here.temporary),
    )


def is_ours(path: str) -> bool:
    """Whether this is one of our programs, or a link to one."""
    tail = f"/{PACKAGE_TAIL}/{os.path.basename(path)}"
    if os.path.islink(path) and os.readlink(path).endswith(tail):
        return True  # also if it leads nowhere by now
    return os.path.isfile(path) and (head := content(path)).startswith(b"\x7fELF") and MARK in head


def is_copy(path: str, source: str) -> bool:
    """Whether a name has what is to be there, and can be executed."""
    if os.path.islink(path) or not os.path.isfile(path) or not os.path.isfile(source):
        return False
    return stat.S_IMODE(os.stat(path).st_mode) == 0o755 and content(path) == content(source)


def content(path: str) -> bytes:
    """The beginning, which of ours is all."""
    with open(path, "rb") as file:
        return file.read(HEAD)


def is_one_file(one: str, other: str) -> bool:
    """Whether two names are links to one file, symbolic links not followed."""
    if not os.path.lexists(one) or not os.path.lexists(other):
        return False
    return os.path.samestat(os.lstat(one), os.lstat(other))


def is_equal(one: str, other: str) -> bool:
    """Whether two scripts have the same content."""
    if not os.path.isfile(one) or not os.path.isfile(other):
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        return first.read() == second.read()


def refuse(place: Place, dpkg: Dpkg, *, installing: bool) -> None:
    """HotplugError where nobody can tell which file is the stock script."""
    for path in (place.path, place.stock):
        if os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
            raise HotplugError(f"{path} is no file; move it away")
    if place.kept and is_ours(place.stock):
        raise HotplugError(
            f"{place.stock} is a drop-in of xen-hotplug and no stock script; put the stock script"
            " there, or remove it"
        )
    foreign = foreign_diversion(place, dpkg)
    if foreign and (installing or place.ours):
        raise HotplugError(f"dpkg has a {foreign}; remove that diversion first")
    unclear = place.there and not place.ours and place.kept and not place.linked
    if unclear and place.diverted:
        unclear = not is_equal(place.path, place.stock)  # if so, somebody has copied it back
    if unclear and (installing or place.diverted):
        raise HotplugError(
            f"{place.path} is no drop-in of xen-hotplug, and {place.name}.stock is there too: move"
            " away the one that is not the stock script"
        )


def foreign_diversion(place: Place, dpkg: Dpkg) -> str:
    """A diversion of this name by somebody else."""
    beginnings = (f"local diversion of {place.path} to ", f"diversion of {place.path} to ")
    if place.diverted:
        return ""
    return next((line for line in dpkg.diversions if line.startswith(beginnings)), "")


def is_installed(place: Place, dpkg: Dpkg) -> bool:
    """Whether nothing is left to do for ``put``."""
    return place.current and (place.diverted or not dpkg.owns) and not place.leftover


def is_stock(place: Place) -> bool:
    """Whether nothing is left to do for ``take_back``; a NAME.stock of others is none of ours."""
    return not (place.ours or place.diverted or place.linked or place.leftover)


def put(place: Place, source: str, dpkg: Dpkg) -> None:
    """Put a copy of ours in place, from wherever the last run got to."""
    tidy(place)
    if place.there and not place.ours and not place.kept:
        os.link(place.path, place.stock, follow_symlinks=False)
        sync(place)  # before dpkg writes down that it is there
    if dpkg.owns and not place.diverted:
        divert(place, "--add")
    if not place.current:
        copy(source, place.temporary)
        os.rename(place.temporary, place.path)
        sync(place)


def take_back(place: Place) -> None:
    """Put the stock script back, from wherever the last run got to."""
    tidy(place)
    if place.kept and not place.linked and (place.ours or place.diverted):
        os.link(place.stock, place.temporary, follow_symlinks=False)
        os.rename(place.temporary, place.path)
        sync(place)
    elif place.ours:
        os.unlink(place.path)  # there never was a stock script of that name
    if place.diverted:
        divert(place, "--remove")
    if place.kept and (place.ours or place.diverted or place.linked):
        for suffix in DPKG_SUFFIXES:  # dpkg would have put them beside NAME
            with contextlib.suppress(FileNotFoundError):
                os.rename(place.stock + suffix, place.path + suffix)
        os.unlink(place.stock)
        sync(place)


def tidy(place: Place) -> None:
    """Remove the temporary file of a run that was killed. It is never the only link to a script."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.temporary)


def copy(source: str, target: str) -> None:
    """A file that can be executed as soon as it has its name, also after a power cut."""
    with open(source, "rb") as ours, open(target, "xb") as file:
        shutil.copyfileobj(ours, file)
        os.fchmod(file.fileno(), 0o755)
        file.flush()
        os.fsync(file.fileno())


def sync(place: Place) -> None:
    """Have the names on the disk."""
    folder = os.open(os.path.dirname(place.path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find_dpkg(folder: str) -> Dpkg:
    """Ask dpkg about a folder; most systems have none."""
    if shutil.which("dpkg-divert") is None or shutil.which("dpkg-query") is None:
        return Dpkg(owns=False, diversions=())
    # A dpkg that is no package itself (Fedora has it) manages nothing here.
    owns = ask("dpkg-query", "-S", folder).returncode == 0 or (
        folder == FOLDER and ask("dpkg-query", "-W", "dpkg").returncode == 0
    )
    listing = ask("dpkg-divert", "--list")
    if listing.returncode:
        raise HotplugError(f"dpkg-divert cannot list its diversions: {listing.stderr.strip()}")
    return Dpkg(owns, tuple(listing.stdout.splitlines()))


def divert(place: Place, action: str) -> None:
    """Tell dpkg where packages' file is, or is again, without that dpkg moves it."""
    arguments = ("--quiet", "--local", "--no-rename", "--divert", place.stock, action, place.path)
    finished = ask("dpkg-divert", *arguments)
    if finished.returncode:
        raise HotplugError(f"{place.path} cannot be diverted: {finished.stderr.strip()}")


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of dpkg; it says the same in every locale."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
