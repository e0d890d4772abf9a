"""Which function does what: the whole dispatch, as a literal.

The key is the family of the script that was asked for (``block`` of ``block-iscsi``) and the
action; for a script of network cards it is its own name. What is not in here is an unknown action.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from hotplug.errors import HotplugError, UsageError
from hotplug.events import Action, Event
from hotplug.handlers import block, foreign
from hotplug.ports import Host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hotplug.handlers import bridge, nat, openvswitch, route
    from hotplug.handlers.vif import Vif
    from hotplug.ports import Attachment, Entry

Handler: TypeAlias = Callable[[Host, Event], None]

HANDLERS: Mapping[tuple[str, Action], Handler] = {
    ("block", Action.ADD): block.add,
    ("block", Action.REMOVE): block.remove,
}

# Scripts that we stand in for; block.py and its targets know the suffixes.
DISK_SCRIPTS = frozenset(
    {
        "block",
        "block-dummy",
        "block-enbd",
        "block-iscsi",
        "block-nbd",
        "block-tap",
    }
)

# Scripts for network cards, and the module for each.
CARD_SCRIPTS = {
    "vif-bridge": "bridge",
    "vif-nat": "nat",
    "vif-openvswitch": "openvswitch",
    "vif-route": "route",
}

SCSI_SCRIPT = "vscsi"
CLEANUP = "xen-hotplug-cleanup"

SCRIPTS = DISK_SCRIPTS | CARD_SCRIPTS.keys() | {SCSI_SCRIPT, CLEANUP}
STOCK_FOLDER = "/etc/xen/scripts"
OUR_FOLDER = "/hotplug/client/scripts"  # wherever our package is


class CardScript(Protocol):
    """What a module for network cards offers."""

    def online(self, host: Host, event: Event, /) -> None:
        """A vif, or the tap beside it, arrived."""
        ...

    def offline(self, host: Host, card: Vif, entry: Entry, problems: list[str], /) -> None:
        """It leaves: best effort; what cannot be done goes to the problems."""
        ...

    def clean(self, host: Host, entry: Entry, role: str, problems: list[str], /) -> None:
        """Take back what outlives the link of this role (vif, tap), by what the journal has."""
        ...


if TYPE_CHECKING:
    CHECKED: tuple[CardScript, ...] = (bridge, nat, openvswitch, route)


def card_script(name: str) -> CardScript:
    """The module of a script; who has no network cards of ours shall not pay for them."""
    return cast("CardScript", importlib.import_module(f"hotplug.handlers.{CARD_SCRIPTS[name]}"))


def handler(event: Event) -> Handler:
    """The function for an event; UsageError if the script does not know the action."""
    if event.action.is_ours:
        return own_handler(event)
    name = os.path.basename(event.script)
    if name == CLEANUP:
        from hotplug.handlers import cleanup  # noqa: PLC0415 - few hosts need it

        return cleanup.run
    if name not in SCRIPTS:
        raise HotplugError(f"{event.script}: xen-hotplug stands in for no script of this name")
    if name in CARD_SCRIPTS:
        known = {Action.ADD: add_tap, Action.ONLINE: arrive}
        return functools.partial(known.get(event.action, leave), name)
    if name == SCSI_SCRIPT:
        from hotplug.handlers import vscsi  # noqa: PLC0415 - few hosts have one

        return vscsi.add
    found = HANDLERS.get((name.partition("-")[0], event.action))
    if found is None:
        raise UsageError(f"{event.script} does not know '{event.action}'")
    return found


def own_handler(event: Event) -> Handler:
    """The function for what no script is asked to do."""
    if event.action is Action.GUARD:
        return guard_again
    return reclaim_card if event.device.kind == "vif" else block.reclaim


def arrive(name: str, host: Host, event: Event) -> None:
    """A card's link arrived; what another script once made of it is undone first."""
    module = card_script(name)
    former = former_script(host, event)
    if former not in ("", name):
        from hotplug.handlers import vif  # noqa: PLC0415 - as for card_script

        role = vif.role_of(event)
        with host.journal.claim(event.device, host.deadline) as entry:
            if vif.script_of(entry.attachment, role) == former:
                take_back(host, entry, role, former)
    module.online(host, event)


def leave(name: str, host: Host, event: Event) -> None:
    """A card's link leaves as it came: by the script that set it up, whichever is asked.

    What cannot be done is noted, and no failure.
    """
    from hotplug.handlers.vif import Vif  # noqa: PLC0415 - as for card_script

    card = Vif.read(host, event)
    problems: list[str] = []
    with host.journal.claim(card.device, host.deadline) as entry:
        former = known_script(entry.attachment, card.role)
        card_script(former or name).offline(host, card, entry, problems)
    for problem in problems:
        host.note(problem)


def former_script(host: Host, event: Event) -> str:
    """The script that the journal has for a card's link; "" for one that nobody knows."""
    if not host.journal.knows(event.device):
        return ""
    from hotplug.handlers.vif import role_of  # noqa: PLC0415 - as for card_script

    return known_script(host.journal.peek(event.device), role_of(event))


def known_script(attachment: Attachment | None, role: str) -> str:
    from hotplug.handlers.vif import script_of  # noqa: PLC0415 - as for card_script

    script = script_of(attachment, role)
    return script if script in CARD_SCRIPTS else ""


def add_tap(name: str, host: Host, event: Event) -> None:
    """A tap arrived; in a driver domain it did not, as device models are elsewhere.

    There libxl's devd runs the scripts for it nevertheless.
    """
    if not is_elsewhere(host, event):
        arrive(name, host, event)


def is_elsewhere(host: Host, event: Event) -> bool:
    """Whether a tap is none of ours. Not asked of the store where it is found at once."""
    if host.links.find(event.variables.get("INTERFACE", "")) is not None:
        return False
    if (host.store.read("domid") or b"0") == b"0":
        return False
    from hotplug.handlers import vif  # noqa: PLC0415 - who has no network cards shall not pay

    return vif.present(host, vif.Vif.read(host, event)) is None


def any_script(event: Event, folder: str) -> Handler:
    """For hosts where no toolstack runs the scripts that are not ours."""
    return handler(event) if is_ours(event, folder) else foreign.run


def is_ours(event: Event, folder: str) -> bool:
    """Whether the script is known by its name in the scripts' folder, ours put there or not.

    A program of that name elsewhere is somebody's own.
    """
    where, name = os.path.split(event.script)
    return name in SCRIPTS and (where in (folder, STOCK_FOLDER) or where.endswith(OUR_FOLDER))


def turn(event: Event, folder: str) -> str:
    """The queue of an event for ``any_script``.

    Somebody's own script may run ours for the same device, which would wait for its end.
    """
    key = event.device.key
    return key if is_ours(event, folder) else f"script {key}"


def guard_again(host: Host, event: Event) -> None:
    """Hold a card's guest to its addresses as before, if others have put an end to that."""
    from hotplug.handlers import filters, vif  # noqa: PLC0415 - as for card_script

    with host.journal.claim(event.device, host.deadline) as entry:
        for role in vif.ROLES:
            filters.renew(host, entry, role)


def reclaim_card(host: Host, event: Event) -> None:
    """Take back what a network card left behind.

    Its backend went without ``offline``, or its run was killed.
    """
    from hotplug.handlers import vif  # noqa: PLC0415 - as for card_script

    with host.journal.claim(event.device, host.deadline) as entry:
        if entry.attachment is None:
            return
        for role in vif.unwanted(host, event.device, entry):
            take_back(host, entry, role, vif.script_of(entry.attachment, role))


def take_back(host: Host, entry: Entry, role: str, script: str) -> None:
    """Undo what a script did for a card's link; HotplugError if that is not possible."""
    from hotplug.handlers import vif  # noqa: PLC0415 - as for card_script

    problems: list[str] = []
    with vif.best_effort(problems):
        vif.restore(host, entry, role)
    card_script(script).clean(host, entry, role, problems)
    if problems:
        raise HotplugError("; ".join(problems))
    vif.forget(entry, role)
