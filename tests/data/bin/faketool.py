"""What the fake tools of this folder share: state in files, and faults that a test asks for.

The state is in the folder that FAKE_TOOLS names. ``faults.json`` in it maps the beginning of a
command line to what becomes of it: a number is the exit status, "hang" never ends, and
"late N" does the work first and then exits with N.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


class HangError(Exception):
    """The tool does not come back."""


def read(folder, name, default):
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError:
        return default


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def call(main, name, arguments, folder):
    """Run a tool's ``main(arguments, folder)``, or what the faults say instead."""
    line = " ".join([name, *arguments])
    with (folder / "calls").open("a") as calls:
        calls.write(line + "\n")
    fault = next(
        (what for start, what in read(folder, "faults.json", {}).items() if line.startswith(start)),
        None,
    )
    if fault == "hang":
        raise HangError
    if isinstance(fault, int):
        print(f"{name}: told to fail", file=sys.stderr)
        return fault
    status = main(arguments, folder)
    if fault is not None:
        return int(fault.removeprefix("late "))
    return status


def run(main):
    """Be the program."""
    name = os.path.basename(sys.argv[0])
    try:
        sys.exit(call(main, name, sys.argv[1:], Path(os.environ["FAKE_TOOLS"])))
    except HangError:
        time.sleep(3600)
