"""The arguments of ``xen-hotplug savefile``, whose actions are in ``images``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    savefile = commands.add_parser(
        "savefile",
        help="look at, check, shrink and convert saved guests",
        description="Works on files that `xl save` wrote, or xend. Needs no Xen.",
    )
    actions = savefile.add_subparsers(title="actions", metavar="ACTION", required=True)
    info = _action(
        actions,
        "info",
        "Shows what a file holds: its layers and records, the guest's type and size, how many of"
        " its pages are zero, in holes of the file, or page tables",
    )
    info.add_argument("file", metavar="FILE")
    info.add_argument("--json", action="store_true", help="for programs")
    info.add_argument("--quick", action="store_true", help="do not read pages to count zero ones")
    verify = _action(
        actions,
        "verify",
        "Checks every rule of the format and names the first violation with its place; what is"
        " only unusual is noted",
    )
    verify.add_argument("file", metavar="FILE")
    convert = _action(
        actions,
        "convert",
        "Makes a file of today's format from one of Xen 4.5 or older, of xl or xend. OUT may be -"
        " for standard output",
    )
    for command in (info, verify, convert):
        command.add_argument(
            "--guest", choices=("pv", "hvm"), help="type of a guest that an old file does not tell"
        )
        command.add_argument(
            "--width", choices=("32", "64"), help="bits of the tools that wrote an old file"
        )
    convert.add_argument("input", metavar="IN")
    convert.add_argument("output", metavar="OUT")
    _forms(actions)


def _forms(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compact = _action(
        actions,
        "compact",
        "Frees what zero pages take on the disk: they become holes of the file. Every xl restores"
        " the result, which holds the same; copies of it want `cp --sparse` or the like. OUT"
        " appears when it is complete, and may be IN",
    )
    compact.add_argument("input", metavar="IN")
    compact.add_argument("output", metavar="OUT", nargs="?")
    compact.add_argument(
        "--in-place",
        action="store_true",
        help="make holes in IN itself, where whole blocks are zero; it is valid at any moment",
    )
    compact.add_argument(
        "--dense",
        action="store_true",
        help="leave zero pages out altogether, for copying; xl refuses such a file until it is"
        " expanded. OUT may be - for standard output",
    )
    expand = _action(
        actions,
        "expand",
        "Makes of a compacted file, of either kind, what `xl save` wrote. IN and OUT may be - for"
        " standard input and output",
    )
    expand.add_argument("input", metavar="IN")
    expand.add_argument("output", metavar="OUT")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, words: str
) -> argparse.ArgumentParser:
    short = words.partition(":")[0].partition(". ")[0].partition(";")[0]
    command = actions.add_parser(
        name, help=f"{short[0].lower()}{short[1:]}", description=f"{words}."
    )
    command.set_defaults(run="savefile", action=name)
    return command
