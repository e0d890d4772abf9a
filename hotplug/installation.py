"""``xen-hotplug install`` and ``uninstall``: the order of things, the agent's units, the words.

Besides the scripts there is one program that libxl runs, ``libxl-save-helper``, in a folder of each
release of Xen that is installed. It is treated as they are.

Every change is worked out, and refused where that must be, before the first one is made. Then
each is made and told, one line each. The agent comes first and goes last, for our scripts are
slower without it. What is done to one script is in ``dropins.py``.

What guests have attached stays: the service has KillMode=process, the stock ``block remove``
detaches the device that ours wrote to ``node``, and ours takes back what stock attached. What no
stock script would ever take back goes at the very end, when no agent is left to set it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hotplug import dropins
from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    Leavings: TypeAlias = "Callable[[], tuple[list[Change], list[str]]]"  # to undo, and to say
    Helpers: TypeAlias = Sequence[tuple[str, str]]  # where each belongs, and ours

SYSTEMD = "/run/systemd/system"  # there if systemd is process 1: sd_booted(3)
XEN = "/dev/xen/xenbus"  # the units' condition
UNITS = ("xen-hotplug.socket", "xen-hotplug.service")
NO_STOCK = "there is no stock script of that name"
HELPER = "libxl-save-helper"
HELPER_FOLDERS = (  # Debian's, and those of Xen's own Makefile and of other distributions
    "/usr/lib/xen-*/bin",
    *(f"/usr/{folder}/xen/bin" for folder in ("lib", "libexec", "local/lib", "local/libexec")),
)
PROPERTIES = "LoadState,UnitFileState,ActiveState"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is not yet as it shall be."""

    what: str
    state: str  # what it is afterwards
    make: Callable[[], object]
    stock: str = ""  # where the stock one is then
    noun: str = "script"

    def line(self, *, dry_run: bool) -> str:
        now, is_ = ("would be", "would be") if dry_run else ("now", "is")
        where = f"; the stock {self.noun} {is_} {self.stock}" if self.stock else ""
        return f"{self.what}: {now} {self.state}{where}"


@dataclass(frozen=True, slots=True)
class Units:
    """The agent's units, as systemd knows them: how many of them."""

    found: int
    enabled: int
    active: int


def install(
    folder: str, ours: str, helpers: Helpers = (), *, dry_run: bool = False, unit: bool = True
) -> Iterator[str]:
    """Put the scripts of the folder ``ours`` in place; the lines that tell what changed."""
    with locked(folder, dry_run=dry_run):
        scripts = script_changes(folder, ours)
        for path, source in helpers:
            scripts += helper_changes(path, source)
        agent, remark = agent_changes() if unit else ([], "")
        yield from perform([*agent, *scripts], dry_run=dry_run)
        if remark:
            yield remark
        if not agent and not scripts:
            yield "already installed"


def nothing() -> tuple[list[Change], list[str]]:
    return [], []


def uninstall(
    folder: str,
    ours: str,
    helpers: Helpers = (),
    *,
    dry_run: bool = False,
    unit: bool = True,
    leavings: Leavings = nothing,
) -> Iterator[str]:
    """Put the stock scripts back; the lines that tell what changed."""
    with locked(folder, dry_run=dry_run):
        changes = stock_changes(folder, ours)
        for path, source in helpers:
            changes += stock_helper_changes(path, source)
        if unit and os.path.isdir(SYSTEMD):
            changes += stop_changes(find_units())
        yield from perform(changes, dry_run=dry_run)
        left, remarks = leavings()
        yield from perform(left, dry_run=dry_run)
        yield from remarks
        if not changes and not left:
            yield "not installed"


def perform(changes: list[Change], *, dry_run: bool) -> Iterator[str]:
    for change in changes:
        if not dry_run:
            change.make()
        yield change.line(dry_run=dry_run)


@contextlib.contextmanager
def locked(folder: str, *, dry_run: bool) -> Iterator[None]:
    """One run at a time. The lock is the folder's own, so none is left behind."""
    if not dry_run and os.geteuid() != 0:
        raise HotplugError(f"only root can change {folder}; --dry-run shows what would change")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise HotplugError(
            f"{folder} is no folder: install Xen's tools first, or name with --scripts the folder"
            " that the toolstack runs scripts from"
        ) from None
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HotplugError(f"another xen-hotplug is changing {folder}; wait for it") from None


# The scripts.


def script_changes(folder: str, ours: str) -> list[Change]:
    """What is to be done so that all our scripts are in place."""
    names = sorted(os.listdir(ours))
    if os.path.samefile(folder, ours):
        raise HotplugError(f"{folder} is where our scripts come from")
    dpkg = dropins.find_dpkg(folder)
    changes = []
    for place, source in look_at(folder, ours, names, dpkg, installing=True):
        if not dropins.is_installed(place, dpkg):
            make = partial(dropins.put, place, source, dpkg)
            stock = f"{place.name}.stock" if place.has_stock else ""
            changes.append(Change(place.path, our_state(place, dpkg), make, stock))
    return changes


# The program for guests' memory.


def save_helpers(source: str) -> list[tuple[str, str]]:
    """Wherever Xen has one, or had one before; with ours, which is put there."""
    found = {}
    for pattern in HELPER_FOLDERS:
        for folder in sorted(glob.glob(pattern)):
            path = os.path.join(os.path.realpath(folder), HELPER)
            if os.path.lexists(path) or os.path.lexists(f"{path}.stock"):
                found[path] = source
    return list(found.items())


def look_at_helper(
    path: str, source: str, *, installing: bool
) -> tuple[dropins.Place, dropins.Dpkg]:
    dpkg = dropins.find_dpkg(os.path.dirname(path))
    place = dropins.look(path, source, dpkg)
    dropins.refuse(place, dpkg, installing=installing)
    return place, dpkg


def helper_changes(path: str, source: str) -> list[Change]:
    """What is to be done so that ours is in place."""
    place, dpkg = look_at_helper(path, source, installing=True)
    if dropins.is_installed(place, dpkg) or not place.has_stock:
        return []
    make = partial(dropins.put, place, source, dpkg)
    return [Change(path, our_state(place, dpkg), make, f"{place.name}.stock", "program")]


def stock_helper_changes(path: str, source: str) -> list[Change]:
    """What is to be done so that Xen's own is in place."""
    place, _ = look_at_helper(path, source, installing=False)
    if dropins.is_stock(place):
        return []
    state = "the stock program" if place.has_stock else "gone; there is no stock program"
    return [Change(path, state, partial(dropins.take_back, place))]


def our_state(place: dropins.Place, dpkg: dropins.Dpkg) -> str:
    """The words for what ``put`` does."""
    if not place.ours:
        return "ours" if place.has_stock else f"ours; {NO_STOCK}"
    if not place.current:
        return "that of this version"
    if dpkg.owns and not place.diverted:
        return "diverted for dpkg"
    return "tidied up after an interrupted run"


def stock_changes(folder: str, ours: str) -> list[Change]:
    """What is to be done so that no script of ours is in place."""
    dpkg = dropins.find_dpkg(folder)
    # Also those that a later version brought.
    found = {name for name in os.listdir(folder) if dropins.is_ours(os.path.join(folder, name))}
    found = {name for name in found if not name.endswith((".stock", ".xen-hotplug"))}
    names = sorted(found.union(os.listdir(ours)))
    changes = []
    for place, _ in look_at(folder, ours, names, dpkg, installing=False):
        if not dropins.is_stock(place):
            state = "the stock script" if place.has_stock else f"gone; {NO_STOCK}"
            changes.append(Change(place.path, state, partial(dropins.take_back, place)))
    return changes


def look_at(
    folder: str, ours: str, names: list[str], dpkg: dropins.Dpkg, *, installing: bool
) -> list[tuple[dropins.Place, str]]:
    """Every name with what is there, and where ours is; HotplugError if one cannot be told."""
    pairs = []
    for name in names:
        source = os.path.join(ours, name)
        place = dropins.look(os.path.join(folder, name), source, dpkg)
        dropins.refuse(place, dpkg, installing=installing)
        pairs.append((place, source))
    return pairs


# The agent.


def agent_changes() -> tuple[list[Change], str]:
    """What is to be done so that the agent runs; or a line that says how to start it."""
    how = "start `xen-hotplug agent` whenever the host boots"
    if not os.path.isdir(SYSTEMD):
        return [], f"no systemd runs here: {how}"
    units = find_units()
    if units.found < len(UNITS):
        return [], f"systemd does not know {UNITS[-1]}: {how}, or install the unit"
    on_xen = os.path.exists(XEN)
    if units.enabled == len(UNITS) and (units.active == len(UNITS) or not on_xen):
        return [], ""
    state = "enabled and running" if on_xen else "enabled, to run when Xen does"
    return [Change(" and ".join(UNITS), state, lambda: start(units))], ""


def start(before: Units) -> None:
    """Enable and start the units; if that fails, as it was before."""
    systemctl("daemon-reload")  # they may have been put there a moment ago
    finished = systemctl("enable", "--now", *UNITS)
    if finished.returncode:
        if not before.enabled:
            systemctl("disable", "--now", *UNITS)
        raise HotplugError(
            f"{' and '.join(UNITS)} cannot be started, so no script was changed: {said(finished)}"
        )


def stop_changes(units: Units) -> list[Change]:
    """What is to be done so that the agent does not run."""
    if not units.enabled and not units.active:
        return []
    return [Change(" and ".join(UNITS), "stopped and disabled", stop)]


def stop() -> None:
    finished = systemctl("disable", "--now", *UNITS)
    if finished.returncode:
        raise HotplugError(
            f"the stock scripts are back, but {' and '.join(UNITS)} cannot be stopped:"
            f" {said(finished)}"
        )


def find_units() -> Units:
    shown = systemctl("show", f"--property={PROPERTIES}", *UNITS)
    if shown.returncode:
        raise HotplugError(f"systemctl cannot show {UNITS[-1]}: {said(shown)}")
    lines = shown.stdout.split()
    return Units(
        found=len(UNITS) - lines.count("LoadState=not-found"),
        enabled=sum(line.startswith("UnitFileState=enabled") for line in lines),
        active=sum(line.startswith("ActiveState=") for line in lines)
        - lines.count("ActiveState=inactive")
        - lines.count("ActiveState=failed"),
    )


def said(finished: subprocess.CompletedProcess[str]) -> str:
    """A program's last word."""
    lines = finished.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with status {finished.returncode}"


def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemctl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
