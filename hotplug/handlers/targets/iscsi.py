"""Disks on an iSCSI target: ``iqn=<iqn>,portal=<address>[:port][,multipath=y|n]``, LUN 0.

open-iscsi's tools do the work: discovery, login, logout. A target that asks for CHAP finds the
credentials in open-iscsi's own configuration (iscsid.conf, or the node's record): no secret
belongs into xenstore. Discovery is asked to add records only (``-o new``), so that a record which
the administrator has edited survives; stock's overwrites it.

Facts (github.com/open-iscsi/open-iscsi, include/iscsi_err.h and usr/):

- ``iscsiadm -m session`` prints ``tcp: [7] 192.0.2.1:3260,1 iqn.2003-01.org.x:disk (non-flash)``
  and exits 21 if there is no session. Session numbers only grow, until the next boot.
- Discovery prints ``192.0.2.1:3260,1 iqn.2003-01.org.x:disk``; an IPv6 address is in brackets.
- Logging in to what is logged in already is exit status 15, logging out of nothing is 21.
- iscsid goes on with a login when iscsiadm is killed: hence the look at the sessions on the way
  back, even if the login is not known to have succeeded.
- udev names the disk by the session's address without brackets (persistent_address in sysfs).

Whoever is logged in to the target, with whatever portal, makes ours fail: one kernel would have
the disk twice.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.sharing import refuse_device
from hotplug.handlers.targets import Attached, tool, users
from hotplug.handlers.targets.phy import device_keys
from hotplug.ports import Attachment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from hotplug.events import Device, Event
    from hotplug.handlers.disk import Disk
    from hotplug.handlers.targets import Attach
    from hotplug.ports import Deadline, Entry, Finished, Host, Located

DEFAULT_PORT = 3260
SESSION_EXISTS = 15  # ISCSI_ERR_SESS_EXISTS
NOTHING_FOUND = 21  # ISCSI_ERR_NO_OBJS_FOUND
BY_PATH = "/dev/disk/by-path"
POLL = 0.05  # seconds between two looks for the disk
MULTIPATH_POLL = 0.5  # a look is a process
MULTIPATH_WAIT = 10.0  # seconds; multipathd is told of the disk when we are, and is not us


@dataclass(frozen=True, slots=True)
class Portal:
    """Where a target is."""

    address: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Portal:
        """Read an address with or without port, the IPv6 one with or without brackets."""
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif text.count(":") > 1:
            address, port = text, ""
        else:
            address, _, port = text.partition(":")
        if not address or (port and not (port.isascii() and port.isdigit())):
            raise HotplugError(f"portal={text} is not an address with an optional port")
        return cls(address, int(port) if port else DEFAULT_PORT)

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """What a backend asks for."""

    iqn: str
    portal: Portal
    multipath: bool = False

    @classmethod
    def parse(cls, params: str) -> Target:
        words = dict(item.partition("=")[::2] for item in params.split(","))
        iqn, portal = words.get("iqn"), words.get("portal")
        if not iqn or not portal:
            raise HotplugError("iqn= and portal= are required parameters")
        multipath = words.get("multipath", "n")
        if multipath not in ("y", "n"):
            raise HotplugError(f"multipath valid values are y and n, {multipath} not a valid value")
        return cls(iqn, Portal.parse(portal), multipath == "y")

    @property
    def lock(self) -> str:
        """Held while it is found out whether somebody is logged in, and while we log in or out."""
        return tool.lock_name("iscsi", self.iqn)

    @property
    def node(self) -> tuple[str, ...]:
        """The words by which iscsiadm knows it."""
        return ("-m", "node", "--targetname", self.iqn, "-p", str(self.portal))

    def is_it(self, params: bytes) -> bool:
        words = [item.partition(b"=")[::2] for item in params.split(b",")]
        return (b"iqn", os.fsencode(self.iqn)) in words


@dataclass(frozen=True, slots=True)
class Session:
    """A login that this host has."""

    number: int
    portal: Portal
    iqn: str

    @classmethod
    def parse(cls, line: str) -> Session:
        _, number, place, iqn = line.split()[:4]
        return cls(int(number.strip("[]")), Portal.parse(place.rpartition(",")[0]), iqn)


def iscsiadm(host: Host, deadline: Deadline, *arguments: str) -> Finished:
    argv = ("iscsiadm", *arguments)
    return tool.run(host, deadline, argv, missing="Unable to find iscsiadm tool")


def sessions(host: Host, deadline: Deadline, iqn: str) -> list[Session]:
    """The logins to a target."""
    finished = iscsiadm(host, deadline, "-m", "session")
    if finished.status == NOTHING_FOUND:
        return []
    if finished.status:
        raise tool.failed(("iscsiadm", "-m", "session"), finished)
    try:
        found = [Session.parse(line) for line in lines(finished)]
    except (ValueError, HotplugError) as error:
        raise HotplugError(f"the sessions that iscsiadm lists make no sense: {error}") from error
    return [session for session in found if session.iqn == iqn]


def lines(finished: Finished) -> list[str]:
    return [line for line in os.fsdecode(finished.stdout).split("\n") if line.strip()]


def prepare(host: Host, disk: Disk, event: Event, resources: ExitStack) -> Attach:  # noqa: ARG001 - the table's shape
    """Ask the portal whether it has the target."""
    target = Target.parse(disk.params)
    words = ("-m", "discovery", "-t", "st", "-p", str(target.portal), "-o", "new")
    finished = iscsiadm(host, host.deadline, *words)
    if target.iqn not in (line.split()[-1] for line in lines(finished)):
        if finished.status:
            raise tool.failure(f"No matching target iqn found at {target.portal}", finished)
        raise HotplugError(f"No matching target iqn found: {target.portal} has no {target.iqn}")

    def attach(entry: Entry, undo: ExitStack) -> Attached:
        grace = tool.Grace(host.deadline)
        undo.callback(tool.undo_quietly, lambda: give_up(host, disk.device, entry, grace))
        with host.locks.hold(target.lock, host.deadline):
            session = login(host, target, entry)
        located = wait_for_disk(host, session, resources)
        if not located.is_block_device:
            raise HotplugError(f"Unable to find attached device path: {located.path} is not one")
        path = located.real_path
        if target.multipath:
            path = wait_for_map(host, path)
            located = resources.enter_context(host.paths.locate(path))
        return offer(host, disk, located, path)

    return attach


def offer(host: Host, disk: Disk, located: Located, path: str) -> Attached:
    number = located.number

    def refuse_sharing() -> None:
        refuse_device(host, disk.device, disk.frontend, path, number, disk.mode)

    def verify() -> None:
        if not located.still_there():
            raise HotplugError(f"{located.path} was replaced while it was being attached")

    return Attached(device_keys(path, str(number)), refuse_sharing, verify)


def login(host: Host, target: Target, entry: Entry) -> Session:
    """Log in, if nobody on this host is; the journal knows first."""
    before = sessions(host, host.deadline, target.iqn)
    if before:
        raise already_open(target, f"session {before[0].number} at {before[0].portal}")
    facts: dict[str, str | int] = {
        "path": target.iqn,
        "iqn": target.iqn,
        "portal": str(target.portal),
    }
    entry.record(Attachment("iscsi", facts))
    finished = iscsiadm(host, host.deadline, *target.node, "--login")
    if finished.status == SESSION_EXISTS:
        entry.clear()  # whose session that is, he may keep
        raise already_open(target, "somebody else was faster")
    if finished.status:
        raise tool.failed(("iscsiadm", *target.node, "--login"), finished)
    after = sessions(host, host.deadline, target.iqn)
    if not after:
        raise HotplugError(f"{target.iqn}: the session was lost as soon as it had been logged in")
    entry.record(Attachment("iscsi", {**facts, "session": after[0].number}))
    return after[0]


def already_open(target: Target, how: str) -> HotplugError:
    return HotplugError(f"Device already opened: {target.iqn}, {how}")


def wait_for_disk(host: Host, session: Session, resources: ExitStack) -> Located:
    """LUN 0 of a session, as soon as udev has named it."""
    address, port, iqn = session.portal.address, session.portal.port, session.iqn
    spellings = (address, f"[{address}]") if ":" in address else (address,)
    links = [f"{BY_PATH}/ip-{name}:{port}-iscsi-{iqn}-lun-0" for name in spellings]
    host.deadline.stage(f"waiting for {links[0]}")
    while True:
        for link in links:
            try:
                return resources.enter_context(host.paths.locate(link))
            except OSError:
                continue
        host.deadline.check()
        time.sleep(min(POLL, host.deadline.remaining()))


def wait_for_map(host: Host, disk: str) -> str:
    """The multipath device over a disk."""
    end = time.monotonic() + MULTIPATH_WAIT
    while True:
        path = map_over(host, disk)
        if path is not None:
            return path
        host.deadline.check()
        if time.monotonic() > end:
            raise HotplugError(f"Unable to find attached device multipath: none is over {disk}")
        time.sleep(min(MULTIPATH_POLL, host.deadline.remaining()))


def map_over(host: Host, disk: str) -> str | None:
    """The first line is ``NAME [(WWID)] dm-N VENDOR,PRODUCT``."""
    argv = ("multipath", "-ll", disk)
    finished = tool.run(host, host.deadline, argv, missing="Unable to find multipath")
    for line in lines(finished):
        words = line.split()
        if any(word.startswith("dm-") for word in words[1:3]):
            return f"/dev/mapper/{words[0]}"
    return None


def give_up(host: Host, device: Device, entry: Entry, deadline: Deadline) -> None:
    """Undo a login."""
    if entry.attachment is not None:
        logout(host, device, entry.attachment.facts, deadline)
        entry.clear()


def detach(host: Host, device: Device, attachment: Attachment) -> None:
    """Log out; whether the disk or its names are still there does not matter."""
    logout(host, device, attachment.facts, host.deadline)


def logout(host: Host, device: Device, facts: Mapping[str, str | int], deadline: Deadline) -> None:
    """End our session. Done if it is gone, or if it is another's by now."""
    target = Target(str(facts["iqn"]), Portal.parse(str(facts["portal"])))
    with host.locks.hold(target.lock, deadline):
        found = sessions(host, deadline, target.iqn)
        if "session" in facts:
            ours = any(session.number == facts["session"] for session in found)
        else:
            # A run died around its login. The session is ours unless another backend has it.
            host.holders.refresh()
            ours = bool(found) and not users.is_needed(host, device, target.iqn, target.is_it)
        if ours:
            end_session(host, deadline, target)


def end_session(host: Host, deadline: Deadline, target: Target) -> None:
    finished = iscsiadm(host, deadline, *target.node, "--logout")
    if finished.status not in (0, NOTHING_FOUND):
        raise tool.failed(("iscsiadm", *target.node, "--logout"), finished)


def detach_unrecorded(host: Host, disk: Disk, event: Event) -> None:  # noqa: ARG001 - the table's shape
    """Log out of what the stock script logged in to. Without a device it did not come so far."""
    if disk.physical_device is not None:
        target = Target.parse(disk.params)
        with host.locks.hold(target.lock, host.deadline):
            end_session(host, host.deadline, target)
