"""What the commands of ``cli.py`` do. Imported only when one runs.

Prints to stdout what was asked for; problems are HotplugError, which ``cli.main`` prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from hotplug import aside, config, disks
from hotplug.agent import host, reconcile
from hotplug.agent.deadline import EventDeadline
from hotplug.agent.logs import Logs, to_stderr
from hotplug.client import ask, oneshot
from hotplug.errors import HotplugError, UsageError, error_text
from hotplug.events import PARAMETERS, Action, Device, Event
from hotplug.handlers import table
from hotplug.invocation import Invocation
from hotplug.kernel import loop_sysfs
from hotplug.kernel.loop import KernelLoops

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hotplug.config import Config
    from hotplug.ports import Host


def agent(arguments: argparse.Namespace) -> int:
    from hotplug.agent import main  # noqa: PLC0415 - the agent's modules are the agent's

    return main.run(config.load(), driver_domain=arguments.driver_domain)


def scripts_dir(_: argparse.Namespace) -> int:
    print(our_scripts())
    return 0


def our_scripts() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "client", "scripts")


def installation(arguments: argparse.Namespace) -> int:
    """Put our scripts in place of the stock ones, or take them back."""
    from hotplug import dropins  # noqa: PLC0415 - run once in a host's life
    from hotplug import installation as module  # noqa: PLC0415

    folder = os.path.abspath(arguments.scripts or dropins.FOLDER)
    ours = our_scripts()
    helper = os.path.join(os.path.dirname(ours), module.HELPER)
    helpers = [] if arguments.scripts or arguments.no_helper else module.save_helpers(helper)
    change = module.install if arguments.action == "install" else uninstall(arguments)
    for line in change(
        folder, ours, helpers, dry_run=arguments.dry_run, unit=not arguments.no_unit
    ):
        print(line)
    return 0


def uninstall(arguments: argparse.Namespace) -> Callable[..., Iterator[str]]:
    """With what ours has set for cards, unless it is to be the scripts alone."""
    from hotplug import cardfilters, installation  # noqa: PLC0415 - run once in a host's life

    if arguments.scripts:
        return installation.uninstall
    found = partial(cardfilters.leavings, cardfilters.rundir(), dry_run=arguments.dry_run)
    return partial(installation.uninstall, leavings=found)


def savefile(arguments: argparse.Namespace) -> int:
    from hotplug import images  # noqa: PLC0415 - no other command wants save files

    return images.run(arguments)


def block(arguments: argparse.Namespace) -> int:
    """Add or remove one disk, through the agent if there is one."""
    path = arguments.backend or os.environ.get("XENBUS_PATH")
    if not path:
        raise UsageError("which disk? name a BACKEND, for example 5/51712, or set XENBUS_PATH")
    device = find_backend(path)
    return act(arguments.action, device)


def act(action: str, device: Device) -> int:
    variables = {
        "XENBUS_PATH": device.path,
        "XENBUS_TYPE": device.kind,
        "XENBUS_BASE_PATH": device.base,
    }
    settings = config.load()
    script = os.path.join(settings.scripts, script_name(device))
    invocation = Invocation((script, action), variables, os.fsdecode(oneshot.working_directory()))
    return carry_out(settings, device, invocation)


def carry_out(settings: Config, device: Device, invocation: Invocation) -> int:
    """Do what a script would have been run for; through the agent if there is one."""
    try:
        status, text = ask.run(settings.rundir, invocation) or oneshot.invoke(invocation)
    except HotplugError as error:
        logs = Logs(settings, stderr=False)
        status, text = oneshot.leave_word(logs, invocation, error)
    if text:
        to_stderr(f"xen-hotplug: {device}: {text}")
    return status


def card(arguments: argparse.Namespace) -> int:
    """Do what a script for network cards does."""
    from hotplug import cards  # noqa: PLC0415 - see cli.py

    names = [word for word in arguments.words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"one BACKEND at a time: {' '.join(names)}")
    path = names[0] if names else os.environ.get("XENBUS_PATH")
    if not path:
        raise UsageError("which card? name a BACKEND, for example 5/0, or set XENBUS_PATH")
    parameters = [word for word in arguments.words if "=" in word]
    unknown = [word for word in parameters if word.partition("=")[0] not in PARAMETERS]
    if unknown:
        known = ", ".join(sorted(PARAMETERS))
        raise UsageError(f"{unknown[0]}: there is no such parameter; there are {known}")
    settings = config.load()
    device = cards.find(path)
    script = os.path.join(settings.scripts, arguments.script)
    cwd = os.fsdecode(oneshot.working_directory())
    return carry_out(
        settings, device, cards.invocation(script, arguments.action, device, parameters, cwd)
    )


def vif_list(arguments: argparse.Namespace) -> int:
    from hotplug import cards  # noqa: PLC0415 - see cli.py

    rows = cards.all_cards()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif not rows:
        print("No guest has a network card here.")
    else:
        print_table(cards.table(rows))
    return 0


def script_name(device: Device) -> str:
    """The script that the toolstack would run for a backend: the one it wrote there."""
    from hotplug import xenstore  # noqa: PLC0415 - see cli.py

    with xenstore.connect() as store:
        script = os.path.basename(os.fsdecode(store.read(f"{device.path}/script") or b"block"))
    return script if script in table.DISK_SCRIPTS else "block"


def find_backend(name: str) -> Device:
    """Turn what an administrator types into a device."""
    by_number = re.fullmatch(r"([0-9]{1,5})[/:]([0-9]{1,10})", name)
    if by_number is not None:
        return Device("vbd", int(by_number[1]), int(by_number[2]))
    if name.count("/") >= 2:
        return Device.parse(name)
    guest, found, vdev = name.rpartition(":")
    if not found or not guest or not vdev:
        raise UsageError(
            f"'{name}' names no disk; say backend/vbd/5/51712, 5/51712 or myguest:xvda"
        )
    return disks.find(guest, vdev)


def block_list(arguments: argparse.Namespace) -> int:
    return aside.run(lambda: list_disks(json_wanted=arguments.json))


def list_disks(*, json_wanted: bool) -> int:
    rows = disks.all_disks()
    if json_wanted:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    if not rows:
        print("No guest has a disk here.")
        return 0
    table = [("DEVICE", "GUEST", "VDEV", "MODE", "STATE", "ON", "FILE")]
    table += [
        (f"{r.domid}/{r.devid}", r.guest, r.vdev, r.mode, r.state, r.device or "-", r.file)
        for r in rows
    ]
    print_table(table)
    return 0


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last one is left ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).encode(errors="replace").decode())


def gc(arguments: argparse.Namespace) -> int:
    """Detach what nobody wants."""
    return aside.run(lambda: sweep(host.build(config.load()), dry_run=arguments.dry_run))


def sweep(built: Host, *, dry_run: bool) -> int:
    refused: list[Device] = []

    def complain(device: Device, error: PermissionError) -> None:
        refused.append(device)
        to_stderr(f"xen-hotplug: {device}: {error_text(error)}")

    entries = list(reconcile.unwanted_entries(built, complain))
    loops = list(reconcile.unknown_loops(built, complain))
    result = warn_of_silent(disks.bound_loops(built.loops)) or int(bool(refused))
    for leak in [*entries, *loops]:
        what = f"{leak.what}, which was attached for {leak.device}"
        if dry_run:
            print(f"would detach {what}")
            continue
        try:
            if release(built, leak):
                print(f"detached {what}")
        except (HotplugError, OSError) as error:
            to_stderr(f"xen-hotplug: {leak.device}: {error_text(error)}")
            result = 1
    if not entries and not loops and not result:
        print("Nothing is attached that no backend wants.")
    return result


def warn_of_silent(loops: Mapping[int, object]) -> int:
    """Name the loop devices that do not answer; 1 if there are any."""
    silent = [number for number, loop in sorted(loops.items()) if loop is None]
    for number in silent:
        to_stderr(
            f"xen-hotplug: /dev/loop{number} does not answer, so nobody knows whose it is; the"
            f" file system of {loop_sysfs.backing_name(number) or 'its file'} hangs"
        )
    return 1 if silent else 0


def release(built: Host, leak: reconcile.Leak) -> bool:
    """Detach one leak; False if somebody else did, or wants it after all."""
    own = dataclasses.replace(built, deadline=EventDeadline(built.config.deadline))
    if leak.loop is not None:
        return reconcile.unbind(own, leak)
    event = Event(Action.RECLAIM, leak.device)
    table.handler(event)(own, event)
    return not built.journal.knows(leak.device)


def reconcile_all(arguments: argparse.Namespace) -> int:
    """Make the host agree with the store."""
    result = gc(arguments)
    for device in reconcile.waiting(host.build(config.load())):
        if arguments.dry_run:
            print(f"would attach {device}, which waits for its disk")
            continue
        print(f"attaching {device}, which waits for its disk")
        status = act("add", device)
        if status > oneshot.BY_SIGNAL:
            return status
        result |= status
    return result | aside.run(name_lost)


def name_lost() -> int:
    """Name the disks that were unbound under their guests; 1 if there are any."""
    result = 0
    for row in disks.all_disks():
        if row.state == "lost":
            print(
                f"{row.domid}/{row.devid} of {row.guest}: {row.device} is no longer bound to"
                f" {row.file}; detach the disk in the guest and attach it again"
            )
            result = 1
    return result


def status(arguments: argparse.Namespace) -> int:
    """What the agent is doing."""
    settings = config.load()
    problem = None
    try:
        told = ask.status(settings.rundir)
    except ask.SilentAgentError as error:
        told, problem = None, error

    def show() -> int:
        facts = describe(settings, told)
        if arguments.json:
            print(json.dumps(facts, indent=2))
        elif told is not None:
            print_status(facts)
        else:
            if problem is None:
                print(f"No agent serves {settings.rundir}; each script does its work itself.")
            print_loops(facts)
            print_locks(facts)
        return 0

    aside.run(show)
    if problem is not None:
        raise problem
    return 0


def describe(settings: config.Config, told: Mapping[str, object] | None) -> dict[str, object]:
    """The agent's own words, and what is seen from outside."""
    import psutil  # noqa: PLC0415 - 20 ms, and only this command wants it

    facts: dict[str, object] = {"agent": told}
    if told is not None:
        facts["memory_mib"] = facts["cpu_s"] = None
        # It may be in another PID namespace, or have ended since.
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(str(told["pid"])))
            with process.oneshot():
                times = process.cpu_times()
                facts["memory_mib"] = round(process.memory_info().rss / 2**20, 1)
                facts["cpu_s"] = round(times.user + times.system, 2)
    mark = host.instance(settings.rundir).encode() + b":"
    loops = disks.bound_loops(KernelLoops())
    facts["loops"] = {
        "bound": len(loops),
        "ours": sum(
            loop is not None and loop.reference.startswith(mark) for loop in loops.values()
        ),
        "silent": sum(loop is None for loop in loops.values()),
    }
    facts["locks"] = [
        {"lock": path, "pid": pid, "process": name_of(pid)}
        for path, pid in disks.lock_holders(settings.rundir)
    ]
    return facts


def name_of(pid: int) -> str:
    """What a process was started as, for people."""
    import psutil  # noqa: PLC0415 - see describe

    try:
        return " ".join(psutil.Process(pid).cmdline()) or psutil.Process(pid).name()
    except psutil.Error:
        return "it has ended since"


def print_status(facts: Mapping[str, object]) -> None:
    told = facts["agent"]
    if not isinstance(told, dict):
        return
    events = told["events"]
    print(f"agent     pid {told['pid']}, version {told['version']}, up {told['uptime_s']} s")
    print(f"sources   {', '.join(told['sources'])}")
    print(f"events    {events['finished']} done, {events['failed']} of them failed")
    print(f"attached  {told['attached']} devices")
    print_loops(facts)
    if facts["memory_mib"] is not None:
        print(f"memory    {facts['memory_mib']} MiB, CPU {facts['cpu_s']} s")
    print(f"workers   {told['workers']}")
    if not told["queue"]:
        print("queue     empty")
    for job in told["queue"]:
        state = "given up, hangs" if job["given_up"] else job["doing"]
        print(f"queue     {job['event']}: {state}, {job['age_s']} s")
    print_locks(facts)


def print_loops(facts: Mapping[str, object]) -> None:
    loops = facts["loops"]
    if isinstance(loops, dict):
        silent = f", {loops['silent']} of them silent" if loops["silent"] else ""
        print(
            f"loops     {loops['ours']} of the {loops['bound']} bound loop devices are ours{silent}"
        )


def print_locks(facts: Mapping[str, object]) -> None:
    locks = facts["locks"]
    if isinstance(locks, list):
        for lock in locks:
            print(f"lock      {lock['lock']} is held by pid {lock['pid']}: {lock['process']}")
