"""Builds a Host from the real parts.

Used at start-up only: by the agent, the one-shot path and the commands for people.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hotplug import xenstore
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.holders import StoreHolders
from hotplug.agent.journal import FileJournal
from hotplug.config import DEFAULT_RUNDIR
from hotplug.handlers import table
from hotplug.kernel.blockdev import LocalPaths
from hotplug.kernel.lockfile import LockFiles
from hotplug.kernel.loop import KernelLoops
from hotplug.kernel.mounts import KernelMounts
from hotplug.kernel.nbd import KernelNbd
from hotplug.kernel.programs import HostPrograms
from hotplug.ports import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.config import Config
    from hotplug.network import Firewall, Links, Switch
    from hotplug.ports import Locks, Programs
    from hotplug.xenstore import Client

INSTANCE = "xen-hotplug"
WARM_UP = 1.0  # seconds after the agent's start, at which guests may be started too


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


class Late:
    """A part of a Host that disks do not need: made when the first network card comes.

    Its modules take 20 ms to import, which every disk of a host without an agent would pay. An
    agent makes it when it has nothing to do.
    """

    __slots__ = ("_make", "_mutex", "_part")

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make
        self._mutex = threading.Lock()
        self._part: object = None

    def make(self) -> None:
        with self._mutex:
            if self._part is None:
                self._part = self._make()

    def __getattr__(self, name: str) -> Any:
        self.make()
        return getattr(self._part, name)


def links() -> Links:
    from hotplug.kernel.links import KernelLinks  # noqa: PLC0415 - see Late

    return KernelLinks()


def switch() -> Switch:
    from hotplug.kernel.openvswitch import OpenVSwitch  # noqa: PLC0415 - see Late

    return OpenVSwitch()


def firewall(programs: Programs, locks: Locks) -> Firewall:
    from hotplug.kernel.firewall import KernelFirewall  # noqa: PLC0415 - see Late

    return KernelFirewall(programs, locks)


@dataclass(frozen=True, slots=True)
class Parts:
    """A Host, and those of its parts that the agent feeds, or makes before they are needed."""

    host: Host
    store: Client
    holders: StoreHolders
    late: Sequence[Late]


def build(config: Config) -> Host:
    """A Host for a process that does one thing."""
    return assemble(config, watch=False).host


def assemble(config: Config, *, watch: bool) -> Parts:
    """Connect to the store and look at the kernel.

    ``watch`` keeps indexes up to date by events, for a process that lives long.
    """
    os.makedirs(config.rundir, mode=0o755, exist_ok=True)
    store = xenstore.connect()
    locks, programs = LockFiles(config.rundir), HostPrograms()
    holders = StoreHolders(store)
    kernel, filters = Late(links), Late(lambda: firewall(programs, locks))
    host = Host(
        store=store,
        loops=KernelLoops(watch=watch),
        paths=LocalPaths(),
        mounts=KernelMounts(),
        holders=holders,
        journal=FileJournal(config.rundir),
        locks=locks,
        programs=programs,
        nbd=KernelNbd(),
        links=cast("Links", kernel),
        switch=cast("Switch", Late(switch)),
        firewall=cast("Firewall", filters),
        config=config,
        deadline=EventDeadline(config.deadline),
        instance=instance(config.rundir),
        note=nothing,
    )
    return Parts(host, store, holders, (kernel, filters))


def warm_up(host: Host, late: Sequence[Late]) -> None:
    """Load what the first network card would wait for, which may be some guest's start."""
    time.sleep(WARM_UP)
    with contextlib.suppress(Exception):  # then it is for the card to say
        table.card_script("vif-bridge")
        for part in late:
            part.make()
        host.links.find("lo")
