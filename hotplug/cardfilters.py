"""What ours has in the packet filters for cards, and what becomes of it at an uninstall.

The stock scripts know nothing of the tables in nf_tables. Left there, they would silence the next
guest whose card gets the same name. So they go, and with them antispoofing. The rules in FORWARD
become the stock script's, so that running guests are heard on, and that it finds them later.

Each change is one transaction of the kernel's, and what is not there needs none: an uninstall can
be interrupted and repeated.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hotplug.agent.deadline import EventDeadline
from hotplug.client import ask
from hotplug.config import DEFAULT_RUNDIR, MAX_DEADLINE
from hotplug.errors import HotplugError
from hotplug.installation import Change
from hotplug.kernel.guards import TABLE, Guards
from hotplug.kernel.iptables import Forward
from hotplug.kernel.lockfile import LockFiles
from hotplug.kernel.nfnetlink import Channel
from hotplug.kernel.programs import HostPrograms

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.kernel.iptables import Handover

T = TypeVar("T")

UNSEEN = "only root can see whether cards are held to their addresses"
STILL_SERVED = (
    "an agent still runs, so its packet filters for cards stay; end it, and uninstall again"
)


def leavings(rundir: str, *, dry_run: bool) -> tuple[list[Change], list[str]]:
    """What is to be undone, and what is to be said of the rest."""
    try:
        families = of_tables(Guards.tables)
    except PermissionError:
        return [], [UNSEEN]
    forward = Forward(HostPrograms(), LockFiles(rundir))
    handovers = list(forward.handing_over(EventDeadline(MAX_DEADLINE)))
    changes = [tables_change(families)] if families else []
    changes += [rules_change(forward, handover) for handover in handovers if handover.changes]
    if changes and not dry_run and ask.status(rundir) is not None:
        return [], [STILL_SERVED]  # it would set them again, and serves these cards
    return changes, [remark(handover) for handover in handovers if handover.kept]


def tables_change(families: list[str]) -> Change:
    names = " and ".join(f"{family} {TABLE}" for family in families)
    state = "deleted; the stock scripts hold no card to its addresses"
    return Change(f"nftables' {names}", state, partial(of_tables, Guards.clear))


def of_tables(wish: Callable[[Guards], T]) -> T:
    """Of this network namespace; PermissionError, or HotplugError for whatever else."""
    with contextlib.closing(Channel()) as channel:
        try:
            return wish(Guards(channel))
        except PermissionError:
            raise
        except OSError as error:
            raise failed(f"nftables' tables {TABLE}", error) from error


def rules_change(forward: Forward, handover: Handover) -> Change:
    tool = handover.tool.name
    make = partial(hand_over, forward, handover)
    if handover.tool.colon:
        return Change(f"{tool}' rules of cards that have gone", "deleted", make)
    return Change(f"{tool}' rules of cards", "the stock scripts'", make)


def hand_over(forward: Forward, handover: Handover) -> None:
    try:
        forward.hand_over(handover.tool, EventDeadline(MAX_DEADLINE))
    except OSError as error:
        raise failed(f"{handover.tool.name}' rules of cards", error) from error


def failed(what: str, error: OSError) -> HotplugError:
    return HotplugError(
        f"the stock scripts are back, but {what} cannot be changed: {error.strerror or error};"
        " mend that, and uninstall again"
    )


def remark(handover: Handover) -> str:
    return (
        f"{handover.tool.name}' rules of {', '.join(handover.kept)} stay, as the stock scripts have"
        " none of IPv6; uninstall again once these cards have gone, to delete them"
    )


def rundir() -> str:
    """Without the settings: they may be why this is an uninstall."""
    return os.environ.get("XEN_HOTPLUG_RUNDIR") or DEFAULT_RUNDIR
