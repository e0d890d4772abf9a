"""Network cards: what all scripts for them have in common.

A card's event is about one link: the vif that the backend driver made (``online``, ``offline``)
or, for a guest with an emulated card, the tap that its device model made (``add``, ``remove``).
Which name it gets, which parameters count, what is remembered of it and how success is told are
here; what is done with it is bridge.py's, route.py's, nat.py's, openvswitch.py's.

The keys: libxl writes ``frontend``, ``frontend-id``, ``handle``, ``mac``, ``bridge``, ``script``
and, where they were given, ``vifname``, ``ip``, ``mtu``, ``vlan``, ``gatewaydev`` (libxl_nic.c).
An existing but empty key wins over the environment and over the script's arguments; these count
for ``bridge`` and ``ip`` only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import DeadlineError, HotplugError
from hotplug.events import Action
from hotplug.network import Change, Flush
from hotplug.ports import Attachment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hotplug.events import Device, Event
    from hotplug.network import Link
    from hotplug.ports import Entry, Host

CONNECTED = b"connected"
NAME_SIZE = 15  # bytes, of a link's name
EMULATED = "-emu"  # behind a tap's name
GATEWAY = "eth0"  # the link to the outside of a host that routes, unless it is told another
FORBIDDEN = re.compile(rb"[\x00-\x20\x7f/:%]")  # in a link's name
ROLES = ("vif", "tap")
UNFINISHED = "unfinished"  # in the journal, of a link that is being set up
BRIDGE_SCRIPT = "vif-bridge"
KEYS = ("vifname", "ip", "bridge", "mac")
OTHERS_KEYS = ("frontend-id", "handle", "gatewaydev")  # that vif-bridge has no use for
# Of a card that arrives. "" is the backend itself: whether it is there.
ARRIVAL_KEYS = ("", "mtu", "vlan", "frontend")
NO_VALUES: Mapping[str, bytes | None] = dict.fromkeys((*OTHERS_KEYS, *ARRIVAL_KEYS))


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
    exists: bool  # whether the backend is there; looked at only for a card that arrives
    parameters: Mapping[str, str]  # the script's, from arguments and environment
    variables: Mapping[str, str]  # the toolstack's, as the script was given them

    @property
    def role(self) -> str:
        """``vif`` or ``tap``: the value of ``type_if``."""
        return "tap" if self.is_tap else "vif"

    @classmethod
    def read(cls, host: Host, event: Event) -> Vif:
        """The keys of a card's backend; absent ones are empty, as a removal may come late."""
        device = event.device
        parameters = event.parameters
        tap = is_told_tap(parameters)
        known = None if tap else host.known
        values = {**NO_VALUES, **(read_keys(host, event) if known is None else known.use())}
        original = event.variables.get("INTERFACE" if tap else "vif", "")
        vifname = text_of(values, {}, "vifname")
        frontend = f"/local/domain/{device.domid}/device/vif/{device.devid}"
        return cls(
            device=device,
            action=event.action,
            is_tap=tap,
            original=original,
            name=f"{vifname}{EMULATED if tap else ''}" if vifname else original,
            bridge=text_of(values, parameters, "bridge"),
            ip=tuple(text_of(values, parameters, "ip").split()),
            mtu=text_of(values, {}, "mtu"),
            mac=os.fsdecode(values["mac"] or b""),
            vlan=os.fsdecode(values["vlan"] or b""),
            frontend=os.fsdecode(values["frontend"] or b"") or frontend,
            frontend_id=number_of(values["frontend-id"], device.domid),
            handle=number_of(values["handle"], device.devid),
            gateway=parameters.get("netdev") or os.fsdecode(values["gatewaydev"] or b"") or GATEWAY,
            exists=values[""] is not None,
            parameters=parameters,
            variables=event.variables,
        )


def read_keys(host: Host, event: Event) -> dict[str, bytes | None]:
    path, keys = event.device.path, keys_of(event)
    values = host.store.read_many([f"{path}/{key}" if key else path for key in keys])
    return dict(zip(keys, values, strict=True))


def keys_of(event: Event) -> tuple[str, ...]:
    """What is read for an event; each key takes xenstored and us some time."""
    keys: tuple[str, ...] = KEYS
    if event.action in (Action.ONLINE, Action.ADD):
        keys += ARRIVAL_KEYS
    return keys if os.path.basename(event.script) == BRIDGE_SCRIPT else keys + OTHERS_KEYS


def is_tap(event: Event) -> bool:
    return is_told_tap(event.parameters)


def is_told_tap(parameters: Mapping[str, str]) -> bool:
    return parameters.get("type_if", "vif") == "tap"


def role_of(event: Event) -> str:
    return "tap" if is_tap(event) else "vif"


def text_of(values: Mapping[str, bytes | None], parameters: Mapping[str, str], key: str) -> str:
    """A value of the store; where there is none, what the script was told.

    Names of links and variables of programs end at a NUL; a shell leaves them out.
    """
    value = values[key]
    if value is None:
        return parameters.get(key, "")
    return os.fsdecode(value.replace(b"\0", b""))


def number_of(value: bytes | None, default: int) -> int:
    return int(value) if value and value.isdigit() else default


@dataclass(frozen=True, slots=True)
class Seen:
    """The links that had a card's names when the kernel was asked."""

    made: Link | None  # under the name that it was made with
    renamed: Link | None  # under the other one that it shall have, if it shall


def look(host: Host, vif: Vif, other: str = "") -> tuple[Seen, Link | None]:
    """A card's own links, and one more: all that an event asks for, with one request."""
    names = (other, vif.original) if vif.name == vif.original else (other, vif.original, vif.name)
    found, made, *renamed = host.links.find_all(names)
    return Seen(made, *(renamed or (None,))), found


def find(host: Host, vif: Vif, entry: Entry, seen: Seen) -> Link:
    """The link of a card that arrives, under whichever of its names.

    The first time it has the name that it was made with. A second ``online`` finds it renamed.
    """
    check_name(vif.original, "that it was made with")
    if vif.name != vif.original:
        check_name(vif.name, f"that {vif.device}/vifname makes for it")
    if seen.renamed is None:
        return seen.made or wait_for(host, vif)
    if seen.made is None and is_same(vif, seen.renamed, entry):
        return seen.renamed
    raise HotplugError(
        f"Cannot rename interface {vif.original}. An interface with name {vif.name} already exists."
    )


def check_name(name: str, whose: str) -> None:
    """Refuse what can be no link's name: see dev_valid_name() in the kernel's net/core/dev.c.

    It takes a '%' for a pattern, and gives the link a name that nobody asked for. What is set for a
    link ``all`` or ``default`` is set for every link: see below /proc/sys/net/ipv4/conf.
    """
    if len(os.fsencode(name)) > NAME_SIZE:
        raise HotplugError(
            f"the interface name {name}, {whose}, is too long:"
            f" a network interface's name has at most {NAME_SIZE} bytes"
        )
    if name in (".", "..", "all", "default") or FORBIDDEN.search(os.fsencode(name)):
        raise HotplugError(
            f"the interface name '{name}', {whose}, is not allowed:"
            " no blanks, no control characters, no '/', no ':', no '%', and not 'all' or 'default'"
        )


def wait_for(host: Host, vif: Vif) -> Link:
    """The link under its first name. In a driver domain the event may come before it does."""
    if vif.is_tap:  # its device model made it before anybody is told
        raise HotplugError(f"there is no network interface {vif.original}")
    try:
        return host.links.wait_for(vif.original, host.deadline)
    except OSError as error:
        raise HotplugError(
            f"there is no network interface {vif.original}: {error.strerror}"
        ) from error


def is_same(vif: Vif, link: Link, entry: Entry | None) -> bool:
    """Whether a link that has our name already is the one that we renamed."""
    if remembered(entry, vif.role, "index") == str(link.index):
        return True
    if vif.is_tap:
        return False
    try:  # the backend driver's own word: its device is vif-DOMID-HANDLE
        of = os.path.basename(os.readlink(f"/sys/class/net/{link.name}/device"))
    except OSError:
        return False
    return of == f"vif-{vif.device.domid}-{vif.device.devid}"


def present(host: Host, vif: Vif, entry: Entry | None = None) -> Link | None:
    """The link of a card that leaves; it may be gone already, or never have been renamed.

    Then the name that it should have had may be another card's, which is left alone.
    """
    link = noted(host, entry, vif.role) or host.links.find(vif.original)
    if link is None and vif.name != vif.original:
        link = host.links.find(vif.name)
        if link is not None and not is_same(vif, link, entry):
            return None
    return link


def noted(host: Host, entry: Entry | None, role: str) -> Link | None:
    """The link that the journal has for a card, under whatever name; an index is used once."""
    index = remembered(entry, role, "index")
    return host.links.get(int(index)) if index else None


# What is remembered of a card, so that what outlives its link is taken back.


def remember(entry: Entry, vif: Vif, link: Link, script: str, **facts: str | int) -> None:
    """Note a link before anything is done for it. A card may have two, each with its script.

    Who can be killed half-way says so, as the fact UNFINISHED, and ``finished`` in the end.
    """
    former = entry.attachment.facts if entry.attachment is not None else {}
    own = {f"{vif.role}_{key}": value for key, value in {"script": script, **facts}.items()}
    if vif.name != vif.original:
        own[f"{vif.role}_original"] = vif.original
    entry.record(
        Attachment(script, {**former, vif.role: vif.name, f"{vif.role}_index": link.index, **own})
    )


def finished(entry: Entry, role: str) -> None:
    """A link is set up and that was told: from now on it is kept as long as its backend is there.

    What kept us from noting it is no reason to fail; ``connected`` says the same to most.
    """
    attachment = entry.attachment
    if attachment is not None:
        facts = {key: attachment.facts[key] for key in attachment.facts if key != unfinished(role)}
        with contextlib.suppress(OSError):
            entry.record(Attachment(attachment.target, facts))


def unfinished(role: str) -> str:
    return f"{role}_{UNFINISHED}"


def forget(entry: Entry, role: str) -> None:
    """One of a card's links is taken back."""
    left = without_role(entry, role)
    if left and entry.attachment is not None:
        entry.record(Attachment(entry.attachment.target, left))
    elif entry.attachment is not None:
        entry.clear()


def without_role(entry: Entry, role: str) -> dict[str, str | int]:
    """What the journal has of a card's other link."""
    facts = entry.attachment.facts if entry.attachment is not None else {}
    return {
        key: value for key, value in facts.items() if key != role and not key.startswith(f"{role}_")
    }


def unwanted(host: Host, device: Device, entry: Entry) -> list[str]:
    """Those of a card's links that are to be taken back: vif, tap.

    All of them once the backend is gone, and before that what a run left half done that was
    killed. That a card has no ``hotplug-status`` says nothing: Linux 5.5 to 5.16 removes it once
    seen (commit 1f2565780e9b), and every one removes it with the driver.
    """
    facts = entry.attachment.facts if entry.attachment is not None else {}
    roles = [role for role in ROLES if role in facts]
    backend, status = host.store.read_many([device.path, f"{device.path}/hotplug-status"])
    if backend is None:
        return roles
    return [
        role
        for role in roles
        if unfinished(role) in facts and not (role == "vif" and status == CONNECTED)
    ]


def remembered(entry: Entry | None, role: str, key: str = "") -> str:
    """What the journal has of one of a card's links: its name, or another fact."""
    attachment = entry.attachment if entry is not None else None
    facts = attachment.facts if attachment is not None else {}
    return str(facts.get(f"{role}_{key}" if key else role, ""))


def script_of(attachment: Attachment | None, role: str) -> str:
    """The script that set up one of a card's links; "" if the journal does not have it."""
    if attachment is None or role not in attachment.facts:
        return ""
    return str(attachment.facts.get(f"{role}_script", attachment.target))


# Steps


def change(host: Host, link: Link, wish: Change, *, optional: tuple[str, ...] = ()) -> Link:
    """Change a link, in one request if nothing is refused; what is optional may be.

    The addresses that it has go. Returns the link as it is then.
    """
    try:
        host.links.change(link, Flush(), wish)
    except OSError:
        for name in optional:
            value = getattr(wish, name)
            if value is not None:
                wish = dataclasses.replace(wish, **{name: None})
                with contextlib.suppress(OSError):
                    host.links.change(link, Change(**{name: value}))
        host.links.change(link, Flush(), wish)
        return host.links.get(link.index) or link
    return link


def release(host: Host, link: Link | None) -> None:
    """Down, and out of whichever bridge it is in, unless it goes just now.

    A port of Open vSwitch is released by its database alone: the kernel says EOPNOTSUPP.
    """
    if link is None:
        return
    leaves = link.master and link.master_kind != "openvswitch"
    try:
        host.links.change(link, Change(up=False, master=0 if leaves else None))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def restore(host: Host, entry: Entry, role: str) -> None:
    """What was done to a link that the journal has, its new name included, is undone."""
    link = noted(host, entry, role)
    release(host, link)
    original = remembered(entry, role, "original")
    if link is not None and original and link.name != original:
        host.links.change(link, Change(name=original))


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
