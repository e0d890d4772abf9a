"""Running programs of others: iscsiadm, tap-ctl, nbd-client, block-* helpers.

- Each gets a session of its own, so that at the deadline it dies with all its children.
- It is over when the program itself ends. A daemon that it left behind may hold our pipes open
  for ever, and lives on: tapdisk must.
- subprocess starts it with vfork, as long as no function is to run in the child, and keeps
  Python's global lock until the child's execve() is done. So a program on a dead mount, or a
  PATH that leads over one, would stop all threads. We look for the program first: that hangs too,
  but alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from hotplug.errors import DeadlineError
from hotplug.ports import Finished

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import Popen
    from typing import Self

    from hotplug.ports import Deadline

MAX_OUTPUT = 1 << 20  # bytes kept of stdout and of stderr; iscsiadm lists 5,000 sessions in less
CHUNK = 65536  # bytes, what a pipe holds
SLICE = 0.1  # seconds between two looks at whether somebody still waits for us
LAST_WAIT = 1.0  # seconds for a killed program to go; one in an uninterruptible sleep stays
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")


def environment(
    variables: Mapping[str, str] | None, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The stock scripts' environment: what they were given, in the POSIX locale, sbin first."""
    env = {name: value for name, value in base.items() if not name.startswith("LC_")}
    env["LANG"] = "POSIX"
    old = env.get("PATH", "").split(":")
    env["PATH"] = ":".join([*SBIN, *(entry for entry in old if entry and entry not in SBIN)])
    return env | dict(variables or {})


def find(name: str, path: str) -> str:
    """The file of a program; FileNotFoundError if there is none."""
    folders = path.split(":") if "/" not in name else [""]
    for candidate in (f"{folder}/{name}" if folder else name for folder in folders):
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    number = errno.ENOENT if "/" not in name or not os.path.exists(name) else errno.EACCES
    raise OSError(number, os.strerror(number), name)


class HostPrograms:
    """Programs of this host."""

    __slots__ = ()

    def run(
        self, argv: Sequence[str], deadline: Deadline, variables: Mapping[str, str] | None = None
    ) -> Finished:
        """Run to the end; kill its whole process group at the deadline."""
        import subprocess  # noqa: PLC0415 - 8 ms, and most events run no program

        started = time.monotonic()
        env = environment(variables)
        executable = find(argv[0], env["PATH"])
        deadline.check()
        process = subprocess.Popen(
            list(argv),
            executable=executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
            bufsize=0,
        )
        try:
            with Outputs(process) as outputs:
                outputs.collect(deadline)
                return Finished(process.wait(), *outputs.texts)
        except BaseException as error:
            kill(process)
            if isinstance(error, DeadlineError):
                seconds = time.monotonic() - started
                raise DeadlineError(f"{argv[0]} was stopped after {seconds:.0f} s") from error
            raise


class Outputs:
    """What a program writes until it ends."""

    __slots__ = ("_exit", "_files", "_poll", "_process", "_texts")

    def __init__(self, process: Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - both are pipes, for the type checker
        assert process.stderr is not None  # noqa: S101
        self._process = process
        self._files = {file.fileno(): file for file in (process.stdout, process.stderr)}
        self._texts = {fd: bytearray() for fd in self._files}
        self._exit = os.pidfd_open(process.pid)
        self._poll = select.poll()
        self._poll.register(self._exit, select.POLLIN)
        for fd in self._files:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._exit)
        for file in self._files.values():
            file.close()

    @property
    def texts(self) -> tuple[bytes, bytes]:
        stdout, stderr = self._texts.values()
        return bytes(stdout), bytes(stderr)

    def collect(self, deadline: Deadline) -> None:
        """Read until the program ends, then what is still in the pipes."""
        while True:
            ready = [fd for fd, _ in self._poll.poll(min(SLICE, deadline.remaining()) * 1000)]
            if self._exit in ready:
                break
            for fd in ready:
                if self._read(fd) == b"":
                    self._poll.unregister(fd)
            deadline.check()
        for fd in self._files:
            # Bounded: a daemon left behind may go on writing faster than we read.
            while self._read(fd) and len(self._texts[fd]) < MAX_OUTPUT:
                pass

    def _read(self, fd: int) -> bytes | None:
        """Keep what fits; b"" at the end, None if there is nothing yet."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        text = self._texts[fd]
        text += data[: MAX_OUTPUT - len(text)]
        return data


def kill(process: Popen[bytes]) -> None:
    """Kill a program with all that it started, unless that went to a session of its own."""
    import subprocess  # noqa: PLC0415 - as above

    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WAIT)
