"""What a run may leave in the backend: connected, refused, busy with the texts of contract 3.4."""

from __future__ import annotations

import os

BUSY = {
    ("w", "guest"): "in a guest domain,\nand so cannot be mounted now.",
    ("w", "local"): "in the privileged domain,\nand so cannot be mounted by a guest.",
    ("r", "guest"): "read-write in a guest domain,\nand so cannot be mounted read-only now.",
    ("r", "local"): (
        "read-write in the privileged domain,\nand so cannot be mounted read-only by a guest."
    ),
}


def busy_device(device, mode, where):
    """The text of contract 3.4 for a block device."""
    return f"Device {device} is mounted {BUSY[mode, where]}"


def busy_file(file, number, mode, where):
    """The text of contract 3.4 for a file."""
    return (
        f"File {file} is loopback-mounted through {number},\nwhich is mounted {BUSY[mode, where]}"
    )


def assert_ok(runner, disk):
    result = runner.add(disk)
    assert result.status == 0
    keys = disk.tree()
    assert keys["hotplug-status"] == b"connected"
    assert "hotplug-error" not in keys


def assert_busy(runner, disk, text):
    result = runner.add(disk)
    assert result.status == 1
    keys = disk.tree()
    assert keys["hotplug-status"] == b"busy"
    assert keys["hotplug-error"].decode() == text
    assert not {"physical-device", "physical-device-path", "node"} & set(keys)


def assert_refused(disk, result, *words, status=b"error"):
    """A status with a text that has these words, and nothing that looks like a device."""
    keys = disk.tree()
    assert result.status == 1
    assert keys["hotplug-status"] == status
    for word in words:
        assert os.fsencode(word) in keys["hotplug-error"]
    assert not {"physical-device", "physical-device-path", "node"} & set(keys)
