"""A file system whose one file hangs when a test wants it to, for fault tests. Needs root.

It speaks FUSE (<linux/fuse.h>, fuse(4)) over /dev/fuse without any library, in a process of its
own, so that a thread of the test may hang in the kernel while another one releases it::

    with hangfs.mounted(tmp_path / "mnt") as fs:
        fs.hang("getattr")
        ...                     # whatever asks for attributes of fs.path now hangs
        fs.wait_until_hung()
        fs.release()            # and goes on

A test that fails to release it must not stop every user of loop devices on the host (see
hotplug/kernel/loop.py), so after LONGEST_HANG the server releases by itself.

Killing the server (``fs.die()``) aborts the connection: what hangs then fails with ECONNABORTED,
and every later call with ENOTCONN, as after the crash of a real one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "disk.img"
PATIENCE = 10.0  # seconds until a test that waits for the server has failed
LONGEST_HANG = 15.0  # seconds; no test wants a tenth of it

# enum fuse_opcode
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 18, 20, 25, 26, 27, 28, 29
INTERRUPT, BATCH_FORGET = 36, 42
NO_REPLY = (FORGET, INTERRUPT, BATCH_FORGET)

CAN_HANG = {  # by the names that tests use
    "lookup": LOOKUP,
    "getattr": GETATTR,
    "open": OPEN,
    "read": READ,
    "write": WRITE,
    "statfs": STATFS,
    "release": RELEASE,
    "fsync": FSYNC,
    "flush": FLUSH,
}
MNT_DETACH = 2

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen padding
OUT_HEADER = struct.Struct("=IiQ")  # len error unique
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
ATTR = struct.Struct("=6Q10I")
ENTRY_OUT = struct.Struct("=4Q2I")
ATTR_OUT = struct.Struct("=Q2I")
OPEN_OUT = struct.Struct("=QIi")
STATFS_OUT = struct.Struct("=5Q4I24x")
READ_IN = struct.Struct("=QQI")  # fh offset size
WRITE_IN = struct.Struct("=QQI20x")

ROOT_NODE, FILE_NODE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


class HangFs:
    """The test's side."""

    def __init__(self, directory: Path, server: subprocess.Popen) -> None:
        self.directory = directory
        self.path = str(directory / FILE)
        self._server = server
        self._hung = 0
        self._rest = b""

    def hang(self, operation: str) -> None:
        """From now on this operation does not return, until ``release``."""
        self._hung = 0
        self._command(f"hang {operation}")

    def release(self) -> None:
        """Answer what hangs, and hang no more."""
        self._command("release")

    def wait_until_hung(self, count: int = 1) -> None:
        """Wait until so many calls hang."""
        while self._hung < count:
            self._read_line()

    def die(self) -> None:
        self._server.kill()
        self._server.wait()

    def _command(self, text: str) -> None:
        self._server.stdin.write(text.encode() + b"\n")
        while self._read_line() != b"ok":
            pass

    def _read_line(self) -> bytes:
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._server.stdout], [], [], until - time.monotonic())
            data = os.read(self._server.stdout.fileno(), 4096) if ready else b""
            assert data, "hangfs: nothing hung in time, or the server died"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        self._hung += line == b"hung"
        return line


@contextlib.contextmanager
def mounted(directory: Path, size: int = 1 << 20, cache: int = 0) -> Iterator[HangFs]:
    """Mount it; ``cache`` is for how many seconds the kernel may believe attributes."""
    directory.mkdir(exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, __file__, str(directory), str(size), str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    fs = HangFs(directory, server)
    try:
        assert fs._read_line() == b"ready"
        yield fs
    finally:
        fs.die()
        server.stdin.close()
        server.stdout.close()
        check(LIBC.umount2(os.fsencode(directory), MNT_DETACH), str(directory))


class Server:
    """The file system's side."""

    def __init__(self, size: int, cache: int) -> None:
        self.data = bytearray(size)
        self.cache = cache
        self.hanging = 0
        self.held: list[bytes] = []
        self.hanging_until = 0.0
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.operations = {
            LOOKUP: self.lookup,
            GETATTR: self.getattr,
            SETATTR: self.getattr,
            OPEN: self.open,
            READ: self.read,
            WRITE: self.write,
            STATFS: self.statfs,
            RELEASE: self.done,
            FSYNC: self.done,
            FLUSH: self.done,
            INIT: self.init,
            OPENDIR: self.open,
            READDIR: self.done,
            RELEASEDIR: self.done,
        }

    def mount(self, directory: str) -> None:
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        result = LIBC.mount(b"hangfs", os.fsencode(directory), b"fuse", 6, options.encode())
        check(result, directory)
        print("ready", flush=True)

    def serve(self) -> None:
        while True:
            patience = self.hanging_until - time.monotonic() if self.hanging else None
            ready, _, _ = select.select([self.device, 0], [], [], patience and max(patience, 0))
            if not ready:
                self.release()
            elif 0 in ready:
                words = sys.stdin.readline().split()
                if not words:
                    return
                self.obey(words)
                print("ok", flush=True)
            elif not self.answer_next():
                return

    def obey(self, words: list[str]) -> None:
        if words[0] == "hang":
            self.hanging = CAN_HANG[words[1]]
            self.hanging_until = time.monotonic() + LONGEST_HANG
        else:
            self.release()

    def release(self) -> None:
        self.hanging = 0
        held, self.held = self.held, []
        for request in held:
            self.answer(request)

    def answer_next(self) -> bool:
        try:
            request = os.read(self.device, 1 << 18)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False  # unmounted
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return True  # the request was withdrawn
            raise
        if IN_HEADER.unpack_from(request)[1] == self.hanging:
            self.held.append(request)
            print("hung", flush=True)
        else:
            self.answer(request)
        return True

    def answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in NO_REPLY:
            return
        body = self.result(opcode, node, request[IN_HEADER.size :])
        code, payload = (-body, b"") if isinstance(body, int) else (0, body)
        reply = OUT_HEADER.pack(OUT_HEADER.size + len(payload), code, unique) + payload
        with contextlib.suppress(FileNotFoundError):  # who asked was killed
            os.write(self.device, reply)

    def result(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """The reply's payload, or an errno."""
        operation = self.operations.get(opcode)
        return operation(node, body) if operation is not None else errno.ENOSYS

    def init(self, _node: int, _body: bytes) -> bytes:
        return INIT_OUT.pack(7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0, 0)

    def lookup(self, node: int, body: bytes) -> bytes | int:
        if node != ROOT_NODE or body.rstrip(b"\0") != FILE.encode():
            return errno.ENOENT
        entry = ENTRY_OUT.pack(FILE_NODE, 0, self.cache, self.cache, 0, 0)
        return entry + self.attributes(FILE_NODE)

    def getattr(self, node: int, _body: bytes) -> bytes:
        return ATTR_OUT.pack(self.cache, 0, 0) + self.attributes(node)

    def open(self, _node: int, _body: bytes) -> bytes:
        return OPEN_OUT.pack(0, 0, 0)

    def read(self, _node: int, body: bytes) -> bytes:
        _, offset, size = READ_IN.unpack_from(body)
        return bytes(self.data[offset : offset + size])

    def write(self, _node: int, body: bytes) -> bytes:
        _, offset, size = WRITE_IN.unpack_from(body)
        self.data[offset : offset + size] = body[WRITE_IN.size :]
        return struct.pack("=II", size, 0)

    def statfs(self, _node: int, _body: bytes) -> bytes:
        return STATFS_OUT.pack(1 << 20, 1 << 19, 1 << 19, 2, 0, 4096, 255, 4096, 0)

    def done(self, _node: int, _body: bytes) -> bytes:
        return b""

    def attributes(self, node: int) -> bytes:
        size = len(self.data) if node == FILE_NODE else 0
        mode = stat.S_IFREG | 0o644 if node == FILE_NODE else stat.S_IFDIR | 0o755
        return ATTR.pack(node, size, size >> 9, *(0,) * 3, *(0,) * 3, mode, 1, 0, 0, 0, 4096, 0)


if __name__ == "__main__":
    server = Server(int(sys.argv[2]), int(sys.argv[3]))
    server.mount(sys.argv[1])
    server.serve()
