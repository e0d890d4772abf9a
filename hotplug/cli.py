"""``xen-hotplug``: the commands for people.

What is to be done to a device goes to the agent if there is one, and is done in this process
otherwise, just like for a toolstack. Listings read the store, the journal and the kernel
themselves. The modules for a command are imported by that command.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from hotplug import __version__, image_options
from hotplug.agent.logs import to_stderr
from hotplug.errors import HotplugError, UsageError, error_text

if TYPE_CHECKING:
    from collections.abc import Sequence

WRONG_USAGE = 2  # as argparse has it
INTERRUPTED, NOBODY_READS = 130, 141  # as a shell has it: SIGINT, SIGPIPE
LAST_STANDARD = 2

DESCRIPTION = """\
Does the work of Xen's hotplug scripts: gives the disks of starting guests a device, connects their
network cards, and takes both back. The toolstack (xl, libvirt) calls it by itself; these commands
are for looking and mending.
"""

EPILOG = """\
A BACKEND is a guest's disk, named in one of three ways:
  backend/vbd/5/51712   its directory in xenstore
  5/51712               domain id and device id
  myguest:xvda          guest name and device
If it is left out, the environment variable XENBUS_PATH names it.

Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.
"""


CARDS_EPILOG = """\
ACTION:
  online    the card has come: set up its interface vifDOMID.NUMBER
  offline   the card goes: take back what was set up, by whichever script
  add       the same as online for vifDOMID.NUMBER-emu, the tap that a device model (QEMU) made
  remove    the same as offline for that

A BACKEND is a guest's network card, named in one of three ways:
  backend/vif/5/0   its directory in xenstore
  5/0               domain id and the card's number
  myguest:0         guest name and the card's number
If it is left out, the environment variable XENBUS_PATH names it.

What the guest's configuration says of the card is read from xenstore. KEY=VALUE:
  bridge, ip   count where it says nothing of them
  netdev       wins over its gatewaydev
  dhcp         yes or no; without it, yes if there is a file /etc/dhcpd.conf

Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.
"""

CARD_COMMANDS = {
    "vif-bridge": (
        "connect a guest's network card to a bridge, or release it",
        """\
Makes the interface of a guest's network card a port of a bridge of this host: the one that the
guest's configuration names, or the only one there is.
""",
    ),
    "vif-nat": (
        "give a guest's network card a private network with this host",
        """\
Gives this host an address on the interface of a guest's network card, and routes the guest's
address to it. With dhcp=yes, ISC's DHCP server is told of the guest. The firewall rule that
translates addresses on the way out is not made here.
""",
    ),
    "vif-openvswitch": (
        "connect a guest's network card to Open vSwitch, or release it",
        """\
Makes the interface of a guest's network card a port of a bridge of Open vSwitch. 'bridge' names it,
with the VLANs: ovs0, ovs0.100 (in VLAN 100), or ovs0:200:300 (a trunk of VLANs 200 and 300).
""",
    ),
    "vif-route": (
        "route to a guest's network card, or stop it",
        """\
Routes the addresses of a guest's network card (ip) to its interface. On it this host answers ARP
for everybody, and has the address of eth0, or of the interface that netdev names, or else
gatewaydev in the guest's configuration.
""",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how programs end
    fill_standard_descriptors()
    try:
        status = run(argv)
    except HotplugError as error:
        return failed(error, WRONG_USAGE if isinstance(error, UsageError) else error.exit_code)
    except BrokenPipeError:
        leave_output()
        return NOBODY_READS
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return failed(error, 1)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_output()  # `xen-hotplug scripts-dir | true`: it was done nevertheless
    except OSError as error:
        # Our failure, and not a complaint of Python's at the end.
        return failed(HotplugError(f"the output cannot be written: {error.strerror}"), 1)
    return status


def run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:  # --help was printed, or a wrong call explained
        return int(end.code or 0)
    from hotplug import commands  # noqa: PLC0415 - --help and usage errors need none of it

    return int(getattr(commands, arguments.run)(arguments))


def fill_standard_descriptors() -> None:
    """Where our caller closed one, a file of ours must not get its number.

    A path that is no UTF-8 is printed as it is.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for as long as we are
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - the same
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def leave_output() -> None:
    """Nobody reads it any more, or it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def failed(error: Exception, status: int) -> int:
    """Say why; the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        leave_output()
    to_stderr(f"xen-hotplug: {error_text(error)}")
    return status


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="xen-hotplug",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"xen-hotplug {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _agent(commands)
    _block(commands)
    _cards(commands)
    _mending(commands)
    _installation(commands)
    image_options.add(commands)

    status = commands.add_parser(
        "status",
        help="what the agent is doing",
        description="Shows the agent, its sources, its queue, the loop devices it uses, its memory"
        " and CPU time, and who holds a lock that it waits for.",
    )
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run="status")

    scripts = commands.add_parser(
        "scripts-dir",
        help="print where the scripts for the toolstack are",
        description="Prints the folder with the programs block, block-tap ... that take the place"
        " of those in /etc/xen/scripts. A disk uses one with"
        " script=<that folder>/block in its specification.",
    )
    scripts.set_defaults(run="scripts_dir")
    return top


def _agent(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    agent = commands.add_parser(
        "agent",
        help="serve the toolstack, in the foreground",
        description="Serves the toolstack's scripts until it is told to end. SIGHUP reads the"
        " settings anew, SIGTERM lets running work finish. Settings are in /etc/xen-hotplug.toml"
        " (XEN_HOTPLUG_CONFIG names another file), its files in /run/xen-hotplug"
        " (XEN_HOTPLUG_RUNDIR).",
    )
    agent.add_argument(
        "--driver-domain",
        action="store_true",
        help="watch xenstore for disks and network cards to serve, in place of `xl devd`, which"
        " must not run",
    )
    agent.set_defaults(run="agent")


def _block(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    block = commands.add_parser(
        "block",
        help="attach, detach or list disks",
        description="Does by hand what the toolstack's block script does, or lists all disks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = block.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action, words in (
        ("add", "Gives a backend its device: attaches the disk and writes to xenstore where it is"),
        ("remove", "Takes back what was attached for a backend"),
    ):
        command = actions.add_parser(
            action,
            help=f"{words[0].lower()}{words[1:]}",
            description=f"{words}.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "backend", nargs="?", metavar="BACKEND", help="which disk (default: $XENBUS_PATH)"
        )
        command.set_defaults(run="block", action=action)
    listing = actions.add_parser(
        "list",
        help="list the disks of all guests",
        description="Lists every disk: its device, its guest, its file, how it may be used and"
        " how far it got. 'lost' is one whose loop device was unbound under the guest, 'silent' one"
        " whose file system does not answer.",
    )
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run="block_list")


def _cards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser(
        "vif",
        help="list network cards",
        description="Looks at the network cards of all guests.",
    ).add_subparsers(title="actions", metavar="ACTION", required=True)
    command = listing.add_parser(
        "list",
        help="list the network cards of all guests",
        description="Lists every network card: its guest, its interface on this host, the bridge"
        " that this is a port of, and how far it got. 'lost' is one that was set up and whose"
        " interface is not there any more.",
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run="vif_list")
    for script, (short, long) in CARD_COMMANDS.items():
        command = commands.add_parser(
            script,
            help=short,
            description=f"{long}It is what the toolstack's script {script} does, by hand.",
            epilog=CARDS_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"xen-hotplug {script} [-h] ACTION [BACKEND] [KEY=VALUE ...]",
        )
        actions = ("online", "offline", "add", "remove")
        command.add_argument("action", metavar="ACTION", choices=actions, help=", ".join(actions))
        command.add_argument("words", nargs="*", metavar="BACKEND or KEY=VALUE", help="see below")
        command.set_defaults(run="card", script=script)


def _mending(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, short, long in (
        (
            "gc",
            "detach what no guest wants any more",
            (
                "Detaches loop devices (and iSCSI sessions, NBD devices ...) that we attached for"
                " a guest's disk and that no backend wants any more. Loop devices of others are"
                " never touched. Those that do not answer are named."
            ),
        ),
        (
            "reconcile",
            "make the host agree with xenstore",
            (
                "Does what gc does, attaches the disks of backends that still wait for theirs,"
                " and names those whose device has gone."
            ),
        ),
    ):
        command = commands.add_parser(name, help=short, description=long)
        command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        command.set_defaults(run=f"{name}_all" if name == "reconcile" else name)


def _installation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, short, long in (
        (
            "install",
            "put our scripts in place of the stock ones, and start the agent",
            (
                "Starts the agent, now and whenever the host boots, and puts our scripts in the"
                " place of the stock ones, and our libxl-save-helper in that of Xen's. The stock"
                " ones stay beside them as NAME.stock; dpkg is told so."
                " Guests may run and start meanwhile. Run it again after an upgrade."
            ),
        ),
        (
            "uninstall",
            "put the stock scripts back, and stop the agent",
            (
                "Puts the stock scripts and Xen's libxl-save-helper back as they were, removes"
                " ours, and stops the agent."
                " Guests keep running; the stock scripts detach what ours attached. Cards are no"
                " longer held to their addresses, and rules in iptables' FORWARD become those of"
                " the stock scripts."
            ),
        ),
    ):
        command = commands.add_parser(
            name,
            help=short,
            description=f"{long} It can be interrupted: run again, either of install and uninstall"
            " goes on from there.",
        )
        command.add_argument(
            "--scripts",
            metavar="DIR",
            help="the scripts alone, in this folder; by default those in /etc/xen/scripts, which"
            " the toolstack runs, and libxl-save-helper",
        )
        command.add_argument("--no-helper", action="store_true", help="leave libxl-save-helper")
        command.add_argument("--no-unit", action="store_true", help="leave systemd alone")
        command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        command.set_defaults(run="installation", action=name)
