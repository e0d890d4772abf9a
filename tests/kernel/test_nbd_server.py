"""The NBD handshake with a server that others wrote: nbdkit.

The kernel's half (generic netlink, /dev/nbdN) needs the nbd module and is covered byte for byte in
``tests/unit/test_nbd_netlink.py``. Here a read request stands in for it: the server answers it
only if the handshake ended exactly where it should.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time

import pytest

from hotplug.agent.deadline import EventDeadline
from hotplug.kernel import nbd_abi as abi
from hotplug.kernel.nbd import KernelNbd
from hotplug.nbd import NbdServer

SIZE = 1 << 20
PATIENCE = 20  # seconds for a server to start; it takes milliseconds
MEMORY = ("memory", str(SIZE))


@contextlib.contextmanager
def nbdkit(folder, *arguments):
    """A server, ready, that goes when we do."""
    ready = folder / "pid"
    ready.unlink(missing_ok=True)
    (folder / "nbd").unlink(missing_ok=True)
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--pidfile", str(ready), *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not ready.exists():
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < end, "nbdkit does not start"
                time.sleep(0.005)
            yield
        finally:
            process.terminate()
            process.communicate()


@contextlib.contextmanager
def opened(folder, *arguments, export=""):
    """An export of a server on a Unix socket."""
    path = folder / "nbd"
    with (
        nbdkit(folder, "--unix", str(path), *arguments),
        KernelNbd().open(NbdServer("", 0, str(path), export), EventDeadline(PATIENCE)) as found,
    ):
        yield found


def read(connection, offset, length):
    """What the kernel would do next."""
    connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, offset, length))
    with connection.makefile("rb") as answers:
        magic, error, handle = struct.unpack(">IIQ", answers.read(16))
        assert (magic, error, handle) == (0x67446698, 0, 7)
        return answers.read(length)


HANDSHAKES = {
    "as it likes": (),
    "with zeroes": ("--mask-handshake=1",),
    "not fixed": ("--mask-handshake=0",),
    "not fixed, no zeroes": ("--mask-handshake=2",),
}


@pytest.mark.parametrize("kind", HANDSHAKES)
def test_the_transmission_follows(tmp_path, kind):
    with opened(tmp_path, *HANDSHAKES[kind], "pattern", str(SIZE)) as found:
        assert found.size == SIZE
        assert found.block_size == 512
        assert found.flags & abi.NBD_FLAG_HAS_FLAGS
        assert found.connection.getblocking()
        assert read(found.connection, 4096, 8) == struct.pack(">Q", 4096)


@pytest.mark.parametrize("read_only", [True, False])
def test_read_only(tmp_path, read_only):
    with opened(tmp_path, *["--readonly"] * read_only, *MEMORY) as found:
        assert found.read_only is read_only


@pytest.mark.parametrize("kind", ["as it likes", "not fixed"])
def test_named_exports(tmp_path, kind):
    files = tmp_path / "files"
    files.mkdir()
    for size, name in enumerate(["a", "b c/\u00fc"], start=1):
        path = files / name.replace("/", "-")
        path.write_bytes(bytes(size * 4096))
    served = (*HANDSHAKES[kind], "file", f"dir={files}")
    with opened(tmp_path, *served, export="a") as found:
        assert found.size == 4096
    with opened(tmp_path, *served, export="b c-\u00fc") as found:
        assert found.size == 8192


def test_blocks_of_its_own(tmp_path):
    policy = ("--filter=blocksize-policy", *MEMORY, "blocksize-minimum=4096")
    with opened(tmp_path, *policy) as found:
        assert found.block_size == 4096


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--oldstyle", *MEMORY), "only the oldstyle handshake"),
        (
            ("--filter=exportname", *MEMORY, "exportname-strict=true", "exportname=other"),
            "the server has no such export|the server refused",
        ),
        (
            (
                *("--mask-handshake=0", "--filter=exportname", *MEMORY),
                *("exportname-strict=true", "exportname=other"),
            ),
            "the server hung up; it may not have the export",
        ),
        (("--tls=require", "--tls-psk=keys", *MEMORY), "insists on TLS"),
        (
            (
                *("--filter=blocksize-policy", *MEMORY, "blocksize-minimum=8192"),
                *("blocksize-preferred=8192", "blocksize-maximum=65536"),
            ),
            "wants blocks of 8192 bytes",
        ),
    ],
)
def test_refusals(tmp_path, arguments, text):
    (tmp_path / "keys").write_text("alice:" + "ab" * 32)
    with (
        pytest.raises(OSError, match=text) as caught,
        opened(tmp_path, *arguments, export="mine"),
    ):
        pass
    assert caught.value.filename == f"nbd:unix:{tmp_path}/nbd:mine"


@pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_tcp(tmp_path, address, family):
    with socket.socket(family) as reserved:
        reserved.bind((address, 0))
        port = reserved.getsockname()[1]
    server = NbdServer(address, port, "", "")
    with (
        nbdkit(tmp_path, "--ipaddr", address, "--port", str(port), *MEMORY),
        KernelNbd().open(server, EventDeadline(PATIENCE)) as found,
    ):
        assert found.size == SIZE
        assert found.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert read(found.connection, 0, 16) == bytes(16)
