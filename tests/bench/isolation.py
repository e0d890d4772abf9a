"""A corner of the machine where scripts run without touching this host's Xen.

The stock scripts have their folders built in: /run/xen-hotplug for locks and /var/log/xen for
the log. ``isolated()`` gives this process and all that it starts a mount namespace in which these
are empty, in memory, and gone with the process. So a guest that starts on this host meanwhile
neither waits for us nor disturbs a measurement. May not be called after a thread was started.

/run is in memory on a real host too; the disk images lie in the same tmpfs. Its mounts are named
"tmpfs", which is no path, so the stock scripts do not run one more ``stat`` for each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNS = 0x00020000
BUILT_IN = {"locks": Path("/run/xen-hotplug"), "log": Path("/var/log/xen")}
NEEDED = ("/etc/xen/scripts/block", "/dev/loop-control")


class CannotRunError(Exception):
    """This machine lacks something; the text says what."""


def check_machine() -> None:
    """Say what is missing before anything is started."""
    if os.geteuid() != 0:
        raise CannotRunError("this attaches loop devices, which only root may do; run it as root")
    for path in NEEDED:
        if not os.path.exists(path):
            raise CannotRunError(
                f"{path} is missing; the stock scripts are in Debian's xen-utils-common,"
                " loop devices in the kernel module loop"
            )


@contextlib.contextmanager
def isolated() -> Iterator[Path]:
    """Enter the corner; the folder that temporary files then go to.

    Ctrl-C and SIGTERM end the block, and what it started is stopped.
    """
    check_machine()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    made = [path for path in BUILT_IN.values() if make_folder(path)]
    base = Path(tempfile.mkdtemp(prefix="xen-hotplug-"))
    before = tempfile.tempdir
    try:
        enter_namespace()
        mount("-t", "tmpfs", "tmpfs", str(base))
        for name, path in BUILT_IN.items():
            (base / name).mkdir()
            mount("--bind", str(base / name), str(path))
        tempfile.tempdir = str(base)
        yield base
    finally:
        tempfile.tempdir = before
        for loop in loops.below(base):
            loops.detach(loop.path)
        for path in (*BUILT_IN.values(), base):
            subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)
        for path in (*made, base):
            with contextlib.suppress(OSError):  # somebody else uses the folder by now
                path.rmdir()


def interrupt(*_: object) -> None:
    """Go and tidy up; whoever is impatient does not interrupt that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def make_folder(path: Path) -> bool:
    """Make a folder to mount on; False if it was there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CannotRunError(f"{path} cannot be made: {error.strerror}") from error
    return True


def enter_namespace() -> None:
    """unshare(CLONE_NEWNS), which Python has from 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNS) != 0:
        why = os.strerror(ctypes.get_errno())
        raise CannotRunError(f"no mount namespace of our own: {why}; in a container, run it"
                             " with the capability SYS_ADMIN")  # fmt: skip
    mount("--make-rprivate", "/")


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRunError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def catch_syslog(socket: Path) -> None:
    """Keep the stock scripts' messages out of this host's log, if it has one."""
    if os.path.exists("/dev/log"):
        mount("--bind", str(socket), "/dev/log")
