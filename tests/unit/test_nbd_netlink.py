"""What is said to the kernel about NBD devices, byte for byte, and what sysfs says back.

No kernel of ours has the driver; the messages are compared with what linux/netlink.h,
linux/genetlink.h and linux/nbd-netlink.h make of them. Machines that run Xen are little-endian.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from hotplug.kernel import genetlink, nbd
from hotplug.kernel.nbd import KernelNbd
from hotplug.nbd import NbdDevice, NbdExport


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (genetlink.MESSAGE, 16),
        (genetlink.GENERIC, 4),
        (genetlink.ATTRIBUTE, 4),
        (genetlink.ERROR, 4),
    ],
)
def test_sizes(layout, size):
    assert layout.size == size


def test_attributes():
    assert genetlink.u32(1, 7) == bytes.fromhex("0800 0100 07000000")
    assert genetlink.u64(2, 1 << 40) == bytes.fromhex("0c00 0200 0000000000010000")
    assert genetlink.string(10, "ab") == bytes.fromhex("0700 0a00 616200 00")
    assert genetlink.nested(7, genetlink.u32(1, 3)) == bytes.fromhex("0c00 0780 0800 0100 03000000")


def test_request():
    message = genetlink.request(0x1C, 5, 1, 1, genetlink.u32(1, 7))
    assert message == bytes.fromhex(
        "1c000000 1c00 0500 05000000 00000000"  # 28 bytes, family, REQUEST|ACK, sequence, port
        "01 01 0000"  # NBD_CMD_CONNECT, version
        "0800 0100 07000000"
    )


def test_connect():
    with socket.socket() as connection:
        export = NbdExport(connection, 1 << 30, 0x0D, 4096, read_only=False)
        body = nbd.parameters(export, read_only=True, reference="x:vbd.5.51712")
        assert body == bytes.fromhex(
            "0c00 0200 0000004000000000"  # NBD_ATTR_SIZE_BYTES
            "0c00 0300 0010000000000000"  # NBD_ATTR_BLOCK_SIZE_BYTES
            "0c00 0500 0f00000000000000"  # NBD_ATTR_SERVER_FLAGS, with NBD_FLAG_READ_ONLY
            "1000 0780 0c00 0180 0800 0100"  # NBD_ATTR_SOCKETS, NBD_SOCK_ITEM, NBD_SOCK_FD
        ) + struct.pack("=I", connection.fileno()) + bytes.fromhex("1200 0a00") + (
            b"x:vbd.5.51712\0\0\0"  # NBD_ATTR_BACKEND_IDENTIFIER, padded
        )  # fmt: skip
        found = genetlink.attributes(body)
        assert found[10] == b"x:vbd.5.51712\0"
        inner = genetlink.attributes(genetlink.attributes(found[7])[1])
        assert inner == {1: struct.pack("=I", connection.fileno())}


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\0\0\0\0", struct.pack("=HH", 3, 1), struct.pack("=HHI", 0, 1, 1)],
)
def test_attributes_that_are_none(data):
    assert genetlink.attributes(data) == {}


def test_answers():
    mine = struct.pack("=IHHII", 19, 28, 0, 5, 0) + b"abc\0"
    other = struct.pack("=IHHII", 16, 28, 0, 4, 0)
    last = struct.pack("=IHHII", 20, 2, 0, 5, 0) + struct.pack("=i", 0)
    assert list(genetlink.answers(mine + other + last, 5)) == [(28, b"abc"), (2, b"\0\0\0\0")]
    assert list(genetlink.answers(b"", 5)) == []
    assert list(genetlink.answers(bytes(16), 0)) == []


def test_a_family_that_every_kernel_has():
    assert genetlink.family_id("nlctrl") == genetlink.GENL_ID_CTRL


def test_a_family_that_no_kernel_has():
    assert genetlink.family_id("no-such-family") is None


def test_a_refusal():
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)) as caught:
        genetlink.call(genetlink.GENL_ID_CTRL, 200, 1, b"")
    assert caught.value.errno == errno.EOPNOTSUPP


class Kernel:
    """What is called instead of the kernel."""

    def __init__(self, family=28, error=0):
        self.family = family
        self.error = error
        self.calls = []

    def family_id(self, name):
        assert name == "nbd"
        return self.family

    def call(self, family, command, version, body):
        self.calls.append((family, command, version, genetlink.attributes(body)))
        if self.error:
            raise OSError(self.error, "the reason")


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(genetlink, "family_id", kernel.family_id)
    monkeypatch.setattr(genetlink, "call", kernel.call)
    return kernel


def test_connect_and_disconnect(kernel):
    driver = KernelNbd()
    assert driver.available()
    with socket.socket() as connection:
        export = NbdExport(connection, 1 << 20, 1, 512, read_only=False)
        driver.connect(3, export, read_only=False, reference="x")
    driver.disconnect(3)
    (_, connect, version, wishes), (_, disconnect, _, wish) = kernel.calls
    assert (connect, disconnect, version) == (1, 2, 1)
    assert wishes[1] == wish[1] == struct.pack("=I", 3)
    assert wishes[5] == struct.pack("=Q", 1)
    assert set(wishes) == {1, 2, 3, 5, 7, 10}
    assert set(wish) == {1}


def test_refusals_name_the_device(kernel):
    kernel.error = errno.EBUSY
    with pytest.raises(OSError, match="the reason: '/dev/nbd3'") as caught:
        KernelNbd().disconnect(3)
    assert caught.value.errno == errno.EBUSY


def test_without_the_driver(kernel):
    kernel.family = None
    assert not KernelNbd().available()
    with pytest.raises(OSError, match="the kernel has no nbd support") as caught:
        KernelNbd().disconnect(3)
    assert caught.value.errno == errno.ENODEV


def test_sysfs(tmp_path):
    for number, attributes in enumerate([{"pid": "7\n", "backend": "x\n"}, {}, {"pid": "8\n"}]):
        folder = tmp_path / "block" / f"nbd{number}"
        folder.mkdir(parents=True)
        for name, value in attributes.items():
            (folder / name).write_text(value)
    driver = KernelNbd(str(tmp_path))
    assert driver.get(0) == NbdDevice(7, "x")
    assert driver.get(1) is None
    assert driver.get(2) == NbdDevice(8, None)
    assert driver.get(3) is None
    free = iter(driver.free())
    assert [next(free), next(free), next(free)] == [1, 3, 4]
