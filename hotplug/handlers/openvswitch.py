"""vif-openvswitch: a card becomes a port of an Open vSwitch bridge.

The key ``bridge`` says which, and in which VLANs: ``NAME[.TAG][:VLAN[:VLAN...]]``. With a tag it is
an access port; without, a trunk port of these VLANs, or of all. What the switch itself is told of
the guest (``xen-vm-name``, ``xen-vm-uuid``, ``attached-mac``) is for its controllers.

Frames in the switch pass neither a bridge of the kernel nor its routing, where our filters are.
``ip`` limits nothing here, as it never did, which is noted; where the configuration wants every
guest held to its addresses, a card on the switch is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers import arrival, filters, names, vif
from hotplug.handlers.disk import missing
from hotplug.network import PORT_MAC, Change, SwitchPort

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hotplug.events import Event
    from hotplug.handlers.vif import Vif
    from hotplug.network import Link
    from hotplug.ports import Entry, Host

SCRIPT = "vif-openvswitch"
SPEC = re.compile(
    r"(?P<name>[^.:]+)(?:\.(?P<tag>[0-9]+))?(?::(?P<trunks>[0-9]+(?::[0-9]+)*))?", re.DOTALL
)
MAX_VLAN = 4095  # Open vSwitch's own limit, for tags and for trunks


@dataclass(frozen=True, slots=True)
class Spec:
    """The value of ``bridge``, parsed."""

    bridge: str
    tag: int | None
    trunks: tuple[int, ...]

    @classmethod
    def parse(cls, path: str, text: str) -> Spec:
        match = SPEC.fullmatch(text)
        if match is None:
            raise HotplugError(
                f"No valid bridge was specified: {path} is '{text}'; it should look like ovs0,"
                " ovs0.100 (in VLAN 100) or ovs0:200:300 (a trunk of VLANs 200 and 300)"
            )
        numbers = [int(digits) for digits in re.findall(r"[0-9]+", text[match.end("name") :])]
        for number in numbers:
            if number > MAX_VLAN:
                raise HotplugError(f"{path} is '{text}'; VLANs are 0 to {MAX_VLAN}")
        tags = numbers[:1] if match["tag"] else []
        return cls(match["name"], tags[0] if tags else None, tuple(numbers[len(tags) :]))


def online(host: Host, event: Event) -> None:
    """Make a card's link a port of its bridge, and tell the guest."""
    with arrival.of(host, event, takes_time=True) as new:  # the switch answers when it is done
        card = new.card
        spec = Spec.parse(f"{card.device}/bridge", card.bridge)
        refuse_without_effect(host, card, spec)
        entry = new.claim()
        port = SwitchPort(card.name, spec.bridge, spec.tag, spec.trunks, identity(host, card))
        link = vif.find(host, card, entry, vif.look(host, card)[0])
        set_up(host, card, link, port, entry, new.undo)
        new.tell()
    if card.ip:
        host.note("'ip' limits nothing on Open vSwitch; its own flows can")


def refuse_without_effect(host: Host, card: Vif, spec: Spec) -> None:
    """What is wanted, and would silently not be done."""
    if card.vlan:
        raise HotplugError(
            f"{card.device}/vlan is for Linux bridges; Open vSwitch has the VLANs of a port in"
            f" 'bridge', as in {spec.bridge}.100 or {spec.bridge}:200:300"
        )
    if host.config.antispoof == "always":
        raise HotplugError(
            f"{card.name} cannot be kept from forging addresses on Open vSwitch, and the setting"
            " antispoof is 'always'; use a Linux bridge for it, or set antispoof to 'auto'"
        )


def offline(host: Host, card: Vif, entry: Entry, problems: list[str]) -> None:
    """Take a card's port from the switch."""
    with vif.best_effort(problems):
        if not vif.remembered(entry, card.role) and not names.is_taken(host, card, entry):
            host.switch.delete_port(card.name, card.mac)  # it was stock's script that added it
    clean(host, entry, card.role, problems)
    filters.remove_stocks(host, card, entry, problems)
    with vif.best_effort(problems):
        vif.release(host, vif.present(host, card, entry))
    if not problems:  # or else it is tried again when the backend is deleted
        vif.forget(entry, card.role)


def clean(host: Host, entry: Entry, role: str, problems: list[str]) -> None:
    """The switch keeps a port whose link is gone, even over a restart of the host."""
    with vif.best_effort(problems):
        name = names.own(host, entry, role)
        if name:
            host.switch.delete_port(name, vif.remembered(entry, role, "mac"))


def identity(host: Host, card: Vif) -> dict[str, str]:
    """What the switch is told of the guest; a driver domain may not read whose card it is."""
    if not card.mac:
        raise missing(f"{card.device}/mac", None)
    mac = {"attached-mac": card.mac}
    where = f"/local/domain/{card.frontend_id}/vm"
    try:
        vm = os.fsdecode(required(where, host.store.read(where)))
        paths = (f"{vm}/name", f"{vm}/uuid")
        name, uuid = map(required, paths, host.store.read_many(paths))
    except PermissionError:
        return mac
    return {"xen-vm-name": os.fsdecode(name), "xen-vm-uuid": os.fsdecode(uuid), **mac}


def required(path: str, value: bytes | None) -> bytes:
    if value is None:
        raise missing(path, value)
    return value


def set_up(
    host: Host, card: Vif, link: Link, port: SwitchPort, entry: Entry, undo: ExitStack
) -> None:
    """Everything but the news of success."""
    if link.up:  # it may be renamed only while it is down
        host.links.change(link, Change(up=False))
    vif.remember(entry, card, link, SCRIPT, **{vif.UNFINISHED: 1}, mac=card.mac)
    undo.callback(take_back, host, card.role, entry)
    wish = Change(
        name=card.name if card.name != link.name else None,
        mac=PORT_MAC if link.mac != PORT_MAC else None,
    )
    try:
        vif.change(host, link, wish, optional=("mac",))
        host.switch.add_port(port, host.deadline)
        host.links.change(link, Change(up=True))
    except OSError as error:
        about = "" if error.filename in (None, port.name) else f"{os.fsdecode(error.filename)}: "
        raise HotplugError(
            f"{port.name} cannot be made a port of {port.bridge}: {about}{error.strerror}"
        ) from error


def take_back(host: Host, role: str, entry: Entry) -> None:
    """The way back of ``set_up``; the first error is to be told, so this one is silent.

    What the switch does not let go now is tried again once the backend is deleted.
    """
    problems: list[str] = []
    clean(host, entry, role, problems)
    with vif.best_effort(problems):
        vif.restore(host, entry, role)
    if not problems:
        vif.forget(entry, role)
