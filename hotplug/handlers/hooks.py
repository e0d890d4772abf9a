"""Programs of the administrator that are run for every card: ``vif-post.d/*.hook``.

The stock scripts read them into their own shell, where a hook could change or end the script
without a word. Here each is a process of its own: in order of their names, after the link is set
up and before success is told, with the variables that it would have seen there. One that fails,
fails the event. Those without a ``#!`` line are run by bash, as before.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from hotplug.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hotplug.handlers.vif import Vif
    from hotplug.ports import Finished, Host

FOLDER = "vif-post.d"
SUFFIX = ".hook"


def run(
    host: Host,
    vif: Vif,
    more: Mapping[str, str] | None = None,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Run every hook, if there is any ``before`` first; ToolError names the first that failed."""
    folder = os.path.join(host.config.scripts, FOLDER)
    hooks = found(folder)
    if not hooks:
        return
    before()
    variables = environment(host, vif) | dict(more or {})
    for hook in hooks:
        host.deadline.stage(f"running the hook {hook}")
        finished = execute(host, hook, variables)
        if finished.status:
            said = os.fsdecode(finished.stderr).strip().split("\n")[-1]
            raise ToolError(
                f"the hook {hook} failed with status {finished.status}{said and ': '}{said}"
            )


def found(folder: str) -> list[str]:
    """The hooks that can be run, in the order of their names; a shell's * finds no hidden ones."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise
    paths = [os.path.join(folder, name) for name in names if is_hook(name)]
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def is_hook(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def execute(host: Host, hook: str, variables: Mapping[str, str]) -> Finished:
    try:
        return host.programs.run([hook], host.deadline, variables)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return host.programs.run(["/bin/bash", hook], host.deadline, variables)


def absolute_path(host: Host, vif: Vif) -> str:
    """A tap's caller has no backend to name; the stock scripts make up this one."""
    own = os.fsdecode(host.store.read("domid") or b"0")
    return f"/local/domain/{own}/backend/vif/{vif.device.domid}/{vif.device.devid}"


def environment(host: Host, vif: Vif) -> dict[str, str]:
    """What a hook may go by: names and values as the stock scripts have them.

    With an agent too that is all that the toolstack said, as a hook ran in the script's own shell.
    """
    return {
        **vif.variables,
        **vif.parameters,
        "XENBUS_PATH": absolute_path(host, vif) if vif.is_tap else vif.device.path,
        "command": vif.action.value,
        "dir": host.config.scripts,
        "dev": vif.name,
        "INTERFACE" if vif.is_tap else "vif": vif.original,
        "type_if": vif.role,
        "vifname": vif.name if vif.name != vif.original else "",
        "ip": " ".join(vif.ip),
        "bridge": vif.bridge,
        "domid": str(vif.device.domid),
        "devid": str(vif.device.devid),
    }
