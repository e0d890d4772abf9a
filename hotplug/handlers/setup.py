"""vif-setup for scripts that are not ours: run somebody's own script for network cards.

Hosts whose events come from udev have vif-setup as the script of every card; the real one is in
the variable ``script``. It gets the words that we were given, each as it is, and the toolstack's
variables. It may well call our own scripts for the same card: so no turn is taken meanwhile.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError
from hotplug.handlers.targets import tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hotplug.ports import Finished, Host

BY_SIGNAL = 128  # plus the signal's number, as a shell has it


def run(host: Host, argv: Sequence[str], variables: Mapping[str, str]) -> Finished:
    """Run it to its end; HotplugError if it cannot be run."""
    script = argv[0]
    if not os.path.isabs(script):
        raise HotplugError(f"the variable script is '{script}', which is not a full path")
    missing = f"{script} cannot be run: it is gone, or the interpreter that it names"
    return tool.run(host, host.deadline, argv, missing=missing, variables=variables)


def problem(argv: Sequence[str], finished: Finished) -> HotplugError:
    """Why it failed, for who left no word of its own."""
    return tool.failed(argv, finished)


def exit_status(finished: Finished) -> int:
    return finished.status if finished.status >= 0 else BY_SIGNAL - finished.status
