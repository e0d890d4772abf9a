"""Network cards: what all scripts for them have in common.

A card's event is about one link: the vif that the backend driver made (``online``, ``offline``)
or, for a guest with an emulated card, the tap that its device model made (``add``, ``remove``).
Which name it gets, which parameters count, what is remembered of it and how success is told are
here; what is done with it is bridge.py's, route.py's, nat.py's, openvswitch.py's.

The keys: libxl writes ``frontend``, ``frontend-id``, ``handle``, ``mac``, ``bridge``, ``script``
and, where they were given, ``vifname``, ``ip``, ``mtu``, ``vlan``, ``gatewaydev`` (libxl_nic.c).
An existing but empty key wins over the environment and over the script's arguments.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import BackendGoneError, DeadlineError, HotplugError
from hotplug.network import Change
from hotplug.ports import Attachment, Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hotplug.events import Action, Device, Event
    from hotplug.network import Link
    from hotplug.ports import Entry, Host, Snapshot

CONNECTED = b"connected"
NAME_SIZE = 15  # bytes, of a link's name
EMULATED = "-emu"  # behind a tap's name
GATEWAY = "eth0"  # the link to the outside of a host that routes, unless it is told another
KEYS = (
    "",  # the backend itself: whether it is there
    "vifname",
    "ip",
    "bridge",
    "mtu",
    "mac",
    "vlan",
    "frontend",
    "frontend-id",
    "handle",
    "gatewaydev",
)


@dataclass(frozen=True, slots=True)
class Vif:
    """A card of a guest, and the link that an event is about."""

    device: Device
    action: Action
    is_tap: bool
    original: str  # the link's name as the kernel or the device model made it
    name: str  # as it shall be called
    bridge: str
    ip: tuple[str, ...]
    mtu: str
    mac: str
    vlan: str
    frontend: str  # path of the frontend's directory
    frontend_id: int
    handle: int
    gateway: str  # the link to the outside, for scripts that route
    exists: bool  # whether the backend is there
    parameters: Mapping[str, str]  # the script's, from arguments and environment

    @property
    def role(self) -> str:
        """``vif`` or ``tap``: the value of ``type_if``."""
        return "tap" if self.is_tap else "vif"

    @property
    def tells(self) -> bool:
        """Whether success is told: not of a tap, which is an addition to its vif."""
        return not self.is_tap

    @classmethod
    def read(cls, host: Host, event: Event) -> Vif:
        """The keys of a card's backend; absent ones are empty, as a removal may come late."""
        device = event.device
        paths = [f"{device.path}/{key}" if key else device.path for key in KEYS]
        values = dict(zip(KEYS, host.store.read_many(paths), strict=True))
        is_tap = event.parameters.get("type_if", "vif") == "tap"
        original = event.variables.get("INTERFACE" if is_tap else "vif", "")
        vifname = text_of(values, event.parameters, "vifname")
        frontend = f"/local/domain/{device.domid}/device/vif/{device.devid}"
        return cls(
            device=device,
            action=event.action,
            is_tap=is_tap,
            original=original,
            name=f"{vifname}{EMULATED if is_tap else ''}" if vifname else original,
            bridge=text_of(values, event.parameters, "bridge"),
            ip=tuple(text_of(values, event.parameters, "ip").split()),
            mtu=text_of(values, event.parameters, "mtu"),
            mac=os.fsdecode(values["mac"] or b""),
            vlan=os.fsdecode(values["vlan"] or b""),
            frontend=os.fsdecode(values["frontend"] or b"") or frontend,
            frontend_id=number_of(values["frontend-id"], device.domid),
            handle=number_of(values["handle"], device.devid),
            gateway=event.parameters.get("netdev")
            or os.fsdecode(values["gatewaydev"] or b"")
            or GATEWAY,
            exists=values[""] is not None,
            parameters=event.parameters,
        )


def text_of(values: Mapping[str, bytes | None], parameters: Mapping[str, str], key: str) -> str:
    """A value of the store; where there is none, what the script was told."""
    value = values[key]
    return os.fsdecode(value) if value is not None else parameters.get(key, "")


def number_of(value: bytes | None, default: int) -> int:
    return int(value) if value and value.isdigit() else default


def find(host: Host, vif: Vif, entry: Entry) -> Link:
    """The link of a card that arrives, under whichever of its names.

    The first time it has the name that it was made with. A second ``online`` finds it renamed.
    """
    check_name(vif)
    if vif.name == vif.original:
        return wait_for(host, vif)
    renamed = host.links.find(vif.name)
    made = host.links.find(vif.original)
    if renamed is None:
        return made or wait_for(host, vif)
    if made is None and is_same(vif, renamed, entry):
        return renamed
    raise HotplugError(
        f"Cannot rename interface {vif.original}. An interface with name {vif.name} already exists."
    )


def check_name(vif: Vif) -> None:
    if len(os.fsencode(vif.name)) > NAME_SIZE:
        raise HotplugError(
            f"{vif.device}/vifname makes the interface name {vif.name}, which is too long:"
            f" a network interface's name has at most {NAME_SIZE} bytes"
        )
    if vif.name in (".", "..") or re.search(r"[/:\s]", vif.name):
        raise HotplugError(
            f"{vif.device}/vifname makes the interface name '{vif.name}', which Linux does not"
            " allow: no blanks, no '/' and no ':'"
        )


def wait_for(host: Host, vif: Vif) -> Link:
    """The link under its first name. In a driver domain the event may come before it does."""
    if vif.is_tap:  # its device model made it before anybody is told
        found = host.links.find(vif.original)
        if found is None:
            raise HotplugError(f"there is no network interface {vif.original}")
        return found
    try:
        return host.links.wait_for(vif.original, host.deadline)
    except OSError as error:
        raise HotplugError(
            f"there is no network interface {vif.original}: {error.strerror}"
        ) from error


def is_same(vif: Vif, link: Link, entry: Entry) -> bool:
    """Whether a link that has our name already is the one that we renamed."""
    attachment = entry.attachment
    if attachment is not None and attachment.facts.get(f"{vif.role}_index") == link.index:
        return True
    if vif.is_tap:
        return False
    try:  # the backend driver's own word: its device is vif-DOMID-HANDLE
        of = os.path.basename(os.readlink(f"/sys/class/net/{link.name}/device"))
    except OSError:
        return False
    return of == f"vif-{vif.device.domid}-{vif.device.devid}"


def present(host: Host, vif: Vif) -> Link | None:
    """The link of a card that leaves; it may be gone already, or never have been renamed."""
    return host.links.find(vif.name) or host.links.find(vif.original)


def refuse_gone(vif: Vif) -> None:
    if not vif.exists:
        raise BackendGoneError(f"there is no backend {vif.device}; was the device removed?")


# What is remembered of a card, so that what outlives its link is taken back.


def remember(entry: Entry, vif: Vif, link: Link, script: str, **facts: str | int) -> None:
    """Note a link before anything is done for it. A card may have two: the vif and its tap."""
    former = entry.attachment.facts if entry.attachment is not None else {}
    own = {f"{vif.role}_{key}": value for key, value in facts.items()}
    entry.record(
        Attachment(script, {**former, vif.role: vif.name, f"{vif.role}_index": link.index, **own})
    )


def forget(entry: Entry, role: str) -> None:
    """One of a card's links is taken back."""
    attachment = entry.attachment
    if attachment is None:
        return
    left = {
        key: value
        for key, value in attachment.facts.items()
        if key != role and not key.startswith(f"{role}_")
    }
    if left:
        entry.record(Attachment(attachment.target, left))
    else:
        entry.clear()


def remembered(entry: Entry, role: str, key: str = "") -> str:
    """What the journal has of one of a card's links: its name, or another fact."""
    facts = entry.attachment.facts if entry.attachment is not None else {}
    return str(facts.get(f"{role}_{key}" if key else role, ""))


# Success


def connected(host: Host, vif: Vif, mtu: int | None = None) -> None:
    """Tell the guest's driver that its card is ready; ``mtu`` goes to the guest itself.

    Once the backend driver has seen ``connected`` it goes on at once. So it is the last thing that
    is done, and all keys are in one transaction.
    """
    host.deadline.stage("writing to xenstore")
    changes = [
        Write(f"{vif.device}/hotplug-status", CONNECTED),
        Write(f"{vif.device}/hotplug-error", None),
    ]

    def body(store: Snapshot, own: list[Write]) -> None:
        backend, frontend = store.read_many([vif.device.path, vif.frontend])
        if backend is None:
            raise BackendGoneError(f"{vif.device} was removed while its card was being set up")
        store.apply((own if frontend is not None else []) + changes)

    tell = [Write(f"{vif.frontend}/mtu", b"%d" % mtu)] if mtu is not None else []
    with host.deadline.committing():
        try:
            host.store.transaction(lambda store: body(store, tell))
        except PermissionError:
            # A driver domain may write it only where the toolstack made it for us (Xen 4.17).
            if not tell:
                raise
            host.store.transaction(lambda store: body(store, []))


# Steps


def change(host: Host, link: Link, wish: Change, *, optional: tuple[str, ...] = ()) -> Link:
    """Change a link, in one request if nothing is refused; what is optional may be.

    Returns the link as it is then.
    """
    try:
        host.links.change(link, wish)
    except OSError:
        for name in optional:
            value = getattr(wish, name)
            if value is not None:
                wish = without(wish, name)
                with contextlib.suppress(OSError):
                    host.links.change(link, Change(**{name: value}))
        host.links.change(link, wish)
        return host.links.get(link.index) or link
    return link


def without(wish: Change, name: str) -> Change:
    values = {key: getattr(wish, key) for key in ("name", "mac", "mtu", "master", "up")}
    return Change(**{**values, name: None})


@contextlib.contextmanager
def best_effort(problems: list[str]) -> Iterator[None]:
    """A step of a removal: what fails is noted, and the next one is taken all the same."""
    try:
        yield
    except DeadlineError:
        raise
    except HotplugError as error:
        problems.append(str(error))
    except OSError as error:
        if isinstance(error, ConnectionError) and error.filename is None:
            raise  # the store is lost, and with it all we know
        problems.append(f"{os.fsdecode(error.filename or '')}: {error.strerror or error}")
