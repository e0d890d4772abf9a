"""convert-legacy-stream as libxl runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from savefiles import Legacy, Pv

from hotplug import cli

QEMU = b"QEVM" + bytes(range(90))


def run(tmp_path, stream, guest, *, front=b"xl's header", words=("--format", "libxl")):
    source = tmp_path / "old"
    source.write_bytes(front + stream)
    with source.open("rb", buffering=0) as file:
        file.seek(len(front))
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "hotplug.restore.converter", "--in", str(file.fileno())]
        command += ["--out", str(writing), "--width", "64", "--guest", guest, *words]
        with subprocess.Popen(
            command,
            pass_fds=[file.fileno(), writing],
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        ) as process:
            os.close(writing)
            with open(reading, "rb") as pipe:
                content = pipe.read()
            stderr = process.stderr.read()
        return process.returncode, content, stderr


@pytest.mark.parametrize(
    ("made", "guest"),
    [
        (Legacy(), "pv"),
        (Legacy(word=4, width=4), "pv"),  # of tools that libxl does not think of
        (Legacy(guest="hvm"), "hvm"),
    ],
)
def test_what_convert_makes_of_it(tmp_path, made, guest):
    stream = made.stream() + made.qemu(b"DeviceModelRecord0002", QEMU)
    status, content, stderr = run(tmp_path, stream, guest)
    assert (status, stderr) == (0, "")
    old, new = tmp_path / "whole", tmp_path / "new"
    old.write_bytes(made.xl_file(QEMU))
    assert cli.main(["savefile", "convert", str(old), str(new)]) == 0
    assert new.read_bytes().endswith(content)
    assert content.startswith(b"LibxlFmt")


@pytest.mark.parametrize(
    ("stream", "said"),
    [(Legacy().stream()[:-1], "the image: truncated"), (Pv().stream(), "the image: at byte 11")],
)
def test_what_cannot_be_converted(tmp_path, stream, said):
    status, _, stderr = run(tmp_path, stream, "pv")
    assert status == 1
    assert said in stderr
    assert len(stderr.splitlines()) == 1


def test_a_form_that_is_not_libxls(tmp_path):
    status, content, stderr = run(tmp_path, Legacy().stream(), "pv", words=("--format", "libxc"))
    assert (status, content) == (2, b"")
    assert "invalid choice" in stderr
