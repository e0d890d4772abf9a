"""Builds a Host from the real parts.

Used at start-up only: by the agent, the one-shot path and the commands for people.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug import xenstore
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.holders import StoreHolders
from hotplug.agent.journal import FileJournal
from hotplug.config import DEFAULT_RUNDIR
from hotplug.kernel.blockdev import LocalPaths
from hotplug.kernel.links import KernelLinks
from hotplug.kernel.lockfile import LockFiles
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.mounts import KernelMounts
from hotplug.kernel.nbd import KernelNbd
from hotplug.kernel.openvswitch import OpenVSwitch
from hotplug.kernel.programs import HostPrograms
from hotplug.ports import Host

if TYPE_CHECKING:
    from hotplug.config import Config
    from hotplug.xenstore import Client

INSTANCE = "xen-hotplug"


def instance(rundir: str) -> str:
    """The mark of our loop devices.

    Whoever runs a second agent with a runtime directory of its own (and then with a store of its
    own: a test) must not take the first one's loop devices for leaks.
    """
    path = os.path.realpath(rundir)
    if path == os.path.realpath(DEFAULT_RUNDIR):
        return INSTANCE
    return f"{INSTANCE}-{zlib.crc32(os.fsencode(path)):08x}"


def nothing(_: str) -> None:
    """Nobody keeps notes until an event is handled."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A Host, and those of its parts that the agent feeds."""

    host: Host
    store: Client
    holders: StoreHolders


def build(config: Config) -> Host:
    """A Host for a process that does one thing."""
    return assemble(config, watch=False).host


def assemble(config: Config, *, watch: bool) -> Parts:
    """Connect to the store and look at the kernel.

    ``watch`` keeps indexes up to date by events, for a process that lives long.
    """
    os.makedirs(config.rundir, mode=0o755, exist_ok=True)
    store = xenstore.connect()
    holders = StoreHolders(store)
    host = Host(
        store=store,
        loops=KernelLoops(watch=watch),
        paths=LocalPaths(),
        mounts=KernelMounts(),
        holders=holders,
        journal=FileJournal(config.rundir),
        locks=LockFiles(config.rundir),
        programs=HostPrograms(),
        nbd=KernelNbd(),
        links=KernelLinks(),
        switch=OpenVSwitch(),
        config=config,
        deadline=EventDeadline(config.deadline),
        instance=instance(config.rundir),
        note=nothing,
    )
    return Parts(host, store, holders)
