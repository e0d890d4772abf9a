"""Work in a child process, which can be left behind. Imports nothing of ours.

A thread that hangs in the kernel keeps its process from ending, even when that is killed: FUSE and
dead disks wait for an answer, whatever happens (Linux 6.18, request_wait_answer in fs/fuse/dev.c).
Whoever started a process waits for its end. So the work is done by a child, and its parent
can answer and go in time. When the parent goes, or is killed, the child is killed, too; whatever
it was doing in the kernel comes to its end, and nothing follows.

Nothing, except what ``leave`` leaves behind: that is a process on its own.
"""

from __future__ import annotations

import _socket  # the C half of socket, whose Python half takes 4 ms to import
import os
import signal
import time
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Tell: TypeAlias = Callable[[bytes], None]

NOTE, ANSWER, ERROR = b"n", b"a", b"e"  # what a message begins with
LARGEST_MESSAGE = 65537  # bytes: a packet of wire.py, and one more
DYING = 0.005  # seconds between two looks at a child that was killed


class WorkError(Exception):
    """The work ended with an exception, which the child cannot hand over, but its text."""


class Child:
    """A child at work, as its parent knows it."""

    __slots__ = ("_ended", "_socket", "note", "pid")

    def __init__(self, pid: int, connection: _socket.socket) -> None:
        self.pid = pid
        self.note = b""  # the last one
        self._ended = False
        self._socket = connection

    def fileno(self) -> int:
        """Readable when there is a note or the answer, or when the child has died."""
        return self._socket.fileno()

    def answer(self, seconds: float) -> bytes | None:
        """Wait for the end of the work; None if it takes longer, or if the child has died.

        WorkError if the work raised anything. What was said in time is heard in any case.
        """
        until = time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(0.0, until - time.monotonic()))
            try:
                message = self._socket.recv(LARGEST_MESSAGE)
            except (TimeoutError, BlockingIOError):
                break
            if not message:
                break
            if message[:1] == NOTE:
                self.note = message[1:]
                continue
            self.has_ended()  # no zombie, if it went at once
            if message[:1] == ERROR:
                raise WorkError(os.fsdecode(message[1:]))
            return message[1:]
        return None

    def kill(self, seconds: float) -> bool:
        """End the child; False if that takes longer, because it hangs in the kernel."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        self._ended = self._ended or ends(self.pid, seconds)
        return self._ended

    def has_ended(self) -> bool:
        """Whether no thread of it is left; one that hangs may outlive the answer."""
        self._ended = self._ended or ends(self.pid, 0)
        return self._ended


def ends(pid: int, seconds: float) -> bool:
    """Whether a process that we started ends within that time; if so, it is no zombie any more."""
    until = time.monotonic() + seconds
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return True
        except ChildProcessError:
            return True  # SIGCHLD is ignored, so that nobody hears of it
        if time.monotonic() >= until:
            return False
        time.sleep(DYING)


def start(work: Callable[[Tell], bytes]) -> Child:
    """Let a child do it; ``work`` gets a function that tells its parent a note."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        return Child(pid, ours)
    try:
        ours.close()
        theirs.send(outcome(work, theirs))
    finally:
        os._exit(0)


def wait_for_end(pid: int) -> None:
    """Wait for the end of a process that need not be our child; its number is still its own."""
    import select  # noqa: PLC0415 - hardly ever needed, and every run of a script pays for it

    end = select.poll()
    try:
        end.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return  # that was soon
    end.poll()


def leave(work: Callable[[], object]) -> int:
    """Let a process do it that goes on when we go, and of which our caller knows nothing."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        let_go_of_caller()
        work()
    finally:
        os._exit(0)


def outcome(work: Callable[[Tell], bytes], parent: _socket.socket) -> bytes:
    """The last message."""
    try:
        let_go_of_caller()
        start_new_thread(follow_parent, (parent,))
        return ANSWER + work(lambda note: tell(parent, note))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        return ERROR + os.fsencode(str(error) or type(error).__name__)


def let_go_of_caller() -> None:
    """Who reads what our parent says waits until nobody can say anything any more.

    And whoever wants us to stop tells our parent, which stops us in good order.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def tell(parent: _socket.socket, note: bytes) -> None:
    try:
        parent.send(NOTE + note)
    except OSError:
        os._exit(1)  # it has gone


def follow_parent(parent: _socket.socket) -> None:
    """Our parent never says anything; that it has gone is the end of this connection.

    Or its reset, if the parent has not read all that we told it.
    """
    try:
        parent.recv(1)
    finally:
        os._exit(1)
