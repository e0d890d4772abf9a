"""A corner of the machine where scripts run without touching this host's Xen.

The stock scripts have their folders built in: /run/xen-hotplug for locks and /var/log/xen for
the log. ``isolated()`` goes on in a child with a mount namespace in which these are empty and in
memory. So a guest that starts on this host meanwhile neither waits for us nor disturbs a
measurement. The child also has a process namespace: whatever it started ends with it, and the
kernel numbers its processes one by one (see launch.py), and a network namespace for the links of
network cards, with this one's /sys. The parent waits, and tidies up
afterwards, however the child ended. May not be called after a thread was started.

/run is in memory on a real host too; the disk images lie in the same tmpfs. Its mounts are named
"tmpfs", which is no path, so the stock scripts do not run one more ``stat`` for each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
BUILT_IN = {"locks": Path("/run/xen-hotplug"), "log": Path("/var/log/xen")}
NEEDED = ("/etc/xen/scripts/block", "/etc/xen/scripts/vif-bridge", "/dev/loop-control")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CannotRunError(Exception):
    """This machine lacks something; the text says what."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Go on in the corner; temporary files are made there.

    Only the child gets into the block. The parent ends with the child's exit status.
    """
    check_machine()
    with contextlib.ExitStack() as undo:
        base = make_corner(undo)
        child = fork_as_first()
        if child:
            status = wait_for(child)
            unmount(Path("/proc"))
            undo.close()
            raise SystemExit(status)
        undo.pop_all()  # the parent's
    for number in SIGNALS:
        signal.signal(number, interrupt)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGTERM)
    mount("-t", "proc", "proc", "/proc")
    unshare(CLONE_NEWNET)
    mount("-t", "sysfs", "sysfs", "/sys")
    tempfile.tempdir = str(base)
    yield


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


def make_corner(undo: contextlib.ExitStack) -> Path:
    """Mount the folders for ourselves alone; the one for temporary files."""
    for path in BUILT_IN.values():
        make_folder(path, undo)
    base = Path(tempfile.mkdtemp(prefix="xen-hotplug-"))
    undo.callback(remove_folder, base)
    unshare(CLONE_NEWNS)
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "tmpfs", str(base))
    undo.callback(unmount, base)
    for name, path in BUILT_IN.items():
        (base / name).mkdir()
        mount("--bind", str(base / name), str(path))
        undo.callback(unmount, path)
    undo.callback(detach_below, base)
    return base


def make_folder(path: Path, undo: contextlib.ExitStack) -> None:
    """Make a folder to mount on, if it is not there."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    except OSError as error:
        raise CannotRunError(f"{path} cannot be made: {error.strerror}") from error
    undo.callback(remove_folder, path)


def remove_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else uses it by now
        path.rmdir()


def fork_as_first() -> int:
    """fork(2), with the child as the first process of a namespace that ends with it."""
    sys.stdout.flush()
    with open("/proc/self/ns/pid", "rb") as ours:
        unshare(CLONE_NEWPID)
        child = os.fork()
        if child:
            call("setns", ours.fileno(), CLONE_NEWPID)  # or else we could not fork again
    return child


def unshare(namespace: int) -> None:
    try:
        call("unshare", namespace)
    except OSError as error:
        raise CannotRunError(
            f"no namespaces of our own: {error.strerror};"
            " in a container, run it with the capability SYS_ADMIN"
        ) from error


def call(function: str, *arguments: int | bytes) -> None:
    """Functions of libc that Python has not, or not before 3.12."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRunError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    """Without umount(8): it needs a /proc, and ours is that of a namespace that is gone."""
    with contextlib.suppress(OSError):
        call("umount2", os.fsencode(path), MNT_DETACH)


def detach_below(base: Path) -> None:
    """Detach what is left of the loop devices, after a child that was killed."""
    for loop in loops.below(base):
        loops.detach(loop.path)


def wait_for(child: int) -> int:
    """Hand on signals until the child has ended; its exit status."""
    for number in SIGNALS:
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # nothing interrupts the tidying up
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def interrupt(*_: object) -> None:
    """Go and tidy up; whoever is impatient does not interrupt that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def catch_syslog(socket: Path) -> None:
    """Keep the stock scripts' messages out of this host's log, if it has one."""
    if os.path.exists("/dev/log"):
        mount("--bind", str(socket), "/dev/log")
