"""loop_abi.py against <linux/loop.h>, by a C program."""

from __future__ import annotations

import struct
import subprocess

from hotplug.kernel import loop_abi

CONSTANTS = [name for name in vars(loop_abi) if isinstance(vars(loop_abi)[name], int)]
INFO = [
    *("lo_device", "lo_inode", "lo_rdevice", "lo_offset", "lo_sizelimit", "lo_number"),
    *("lo_encrypt_type", "lo_encrypt_key_size", "lo_flags", "lo_file_name", "lo_crypt_name"),
    *("lo_encrypt_key", "lo_init"),
]
CONFIG = ["fd", "block_size", "info.lo_flags", "info.lo_file_name"]

LINE = '    printf("%s %%llu\\n", (unsigned long long)(%s));'
PROGRAM = """
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/major.h>
#include <stddef.h>
#include <stdio.h>

int main(void)
{
%s
    return 0;
}
"""


def the_header_says(tmp_path, expressions):
    source = tmp_path / "loop_abi.c"
    source.write_text(PROGRAM % "\n".join(LINE % (e.replace(" ", ""), e) for e in expressions))
    program = tmp_path / "loop_abi"
    subprocess.run(["gcc", "-o", program, source], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(expressions, map(int, lines[1::2]), strict=True))


def offsets(layout):
    """Where the members of a Struct lie; padding belongs to none."""
    parts = list(split(layout.format[1:]))
    positions, at = [], 0
    for part in parts:
        if not part.endswith("x"):
            positions.append(at)
        at += struct.calcsize("=" + part)
    return positions


def split(form):
    number = ""
    for character in form:
        number += character
        if not character.isdigit():
            yield number
            number = ""


def test_constants(tmp_path):
    said = the_header_says(tmp_path, CONSTANTS)
    assert said == {name: getattr(loop_abi, name) for name in CONSTANTS}
    assert len(said) > 10


def test_loop_info64(tmp_path):
    said = the_header_says(tmp_path, [f"offsetof(struct loop_info64, {name})" for name in INFO])
    assert offsets(loop_abi.LOOP_INFO64) == list(said.values())
    size = "sizeof(struct loop_info64)"
    assert the_header_says(tmp_path, [size]) == {size: loop_abi.LOOP_INFO64.size}


def test_loop_config(tmp_path):
    said = the_header_says(tmp_path, [f"offsetof(struct loop_config, {name})" for name in CONFIG])
    assert offsets(loop_abi.LOOP_CONFIG) == list(said.values())
    size = "sizeof(struct loop_config)"
    assert the_header_says(tmp_path, [size]) == {size: loop_abi.LOOP_CONFIG.size}
