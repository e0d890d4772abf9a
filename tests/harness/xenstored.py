"""The real xenstored on a machine without Xen.

``start()`` runs Xen's own daemon with ``tests/xenstored/standalone.c`` preloaded, in a directory
of its own. Several may run at once. Standard library only; knows nothing of the package.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).parent.parent / "xenstored" / "standalone.c"
BUILD = Path(__file__).parent.parent.parent / "build"
DAEMONS = "/usr/lib/xen-*/bin/xenstored"
START_SECONDS = 10.0
MAX_SOCKET_PATH = 107  # bytes, sun_path of unix(7)


def find_daemon() -> str:
    """The newest installed xenstored."""
    found = sorted(glob.glob(DAEMONS)) or [shutil.which("xenstored") or ""]
    if not found[-1]:
        raise FileNotFoundError(
            f"there is no xenstored at {DAEMONS}; install the package xen-utils-4.17 or newer"
        )
    return found[-1]


def shim() -> Path:
    """The compiled shim; compiled again when its source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = BUILD / f"xenstored-standalone-{digest}.so"
    if not library.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as directory:
            made = Path(directory) / "shim.so"
            command = ["gcc", "-shared", "-fPIC", "-O1", "-pthread", "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True)
            made.rename(library)  # atomic: several test runs may compile at once
    return library


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running xenstored."""

    socket: str  # what XENSTORED_PATH names
    directory: Path
    process: subprocess.Popen[bytes]
    lifeline: int  # our end; the daemon ends when it is closed

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def rings(self) -> Path:
        """Where other domains than 0 connect; see standalone.c."""
        return self.directory / "rings"

    def stop(self) -> None:
        """End it; a second time does nothing."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
            os.close(self.lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(directory: str | os.PathLike[str] | None = None) -> Daemon:
    """Run a fresh, empty store in ``directory`` (its own temporary one by default).

    Starting again in the same directory gives the same socket path, and an empty store.
    """
    home = Path(directory or tempfile.mkdtemp(prefix="xenstored-"))
    path = str(home / "socket")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"{path} is too long for a socket; start xenstored in another directory")
    home.mkdir(parents=True, exist_ok=True)
    (home / "rings").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(home / "rings" / "events")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    theirs, ours = os.pipe()
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LD_PRELOAD": str(shim()),
        "XENSTORED_RUNDIR": str(home),
        "XENSTORED_ROOTDIR": str(home),
        "XENSTORED_PATH": path,
        "XENSTORED_RINGS": str(home / "rings"),
        "XENSTORED_LIFELINE": str(theirs),
    }
    with open(home / "log", "ab") as log:
        process = subprocess.Popen(
            [find_daemon(), "-N"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C is for the test run, which then stops us
        )
    os.close(theirs)
    daemon = Daemon(path, home, process, ours)
    _wait_until_it_answers(daemon)
    return daemon


def _wait_until_it_answers(daemon: Daemon) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(daemon.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            else:
                return
        if daemon.process.poll() is not None or time.monotonic() > give_up:
            daemon.stop()
            text = (daemon.directory / "log").read_text(errors="replace")
            raise RuntimeError(f"xenstored did not start in {daemon.directory}: {text.strip()}")
        time.sleep(0.005)
