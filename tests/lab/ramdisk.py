"""Ramdisks of a few megabytes: busybox, the modules that are needed, an init.

Debian's own, which dom0 would boot with, takes half a minute to unpack under emulation.
"""

from __future__ import annotations

import gzip
import lzma
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FOLDERS = ("bin", "dev", "lib", "proc", "root", "sys", "tmp")


def take_modules(rootfs: Path, names: Iterable[str], folder: Path) -> None:
    """Have kernel modules and those that they need in a folder, numbered in their order."""
    (modules,) = (rootfs / "usr" / "lib" / "modules").iterdir()
    needs = dependencies((modules / "modules.dep").read_text())
    built_in = dependencies((modules / "modules.builtin").read_text())
    order: list[str] = []
    for name in names:
        if name in built_in:
            continue
        path, *needed = needs[name]
        # modules.dep(5): the last one is to be loaded first
        order += [one for one in (*reversed(needed), path) if one not in order]
    folder.mkdir()
    for number, path in enumerate(order):
        content = (modules / path).read_bytes()
        if path.endswith(".xz"):
            content = lzma.decompress(content)
        (folder / f"{number:02}-{module_name(path)}.ko").write_bytes(content)


def dependencies(text: str) -> dict[str, list[str]]:
    """By a module's name: its path and the paths of those that it needs."""
    lines = (line.replace(":", "").split() for line in text.splitlines())
    return {module_name(paths[0]): paths for paths in lines}


def module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".")[0]


def ramdisk(init: Path, busybox: Path, modules: Path) -> bytes:
    """What the kernel is given."""
    files = {"init": init.read_bytes(), "bin/busybox": busybox.read_bytes()}
    files |= {f"lib/{path.name}": path.read_bytes() for path in sorted(modules.iterdir())}
    return gzip.compress(cpio(FOLDERS, files), 6)


def cpio(folders: Iterable[str], files: dict[str, bytes]) -> bytes:
    """An archive in the kernel's format (Documentation/driver-api/early-userspace)."""
    archive = bytearray()

    def add(name: str, mode: int, content: bytes, number: int) -> None:
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        archive.extend(b"070701" + b"".join(b"%08x" % field for field in fields))
        archive.extend(name.encode() + b"\0")
        archive.extend(bytes(-len(archive) % 4))
        archive.extend(content + bytes(-len(content) % 4))

    number = 0
    for number, name in enumerate(folders, 1):
        add(name, 0o040755, b"", number)
    for extra, (name, content) in enumerate(files.items(), number + 1):
        add(name, 0o100755, content, extra)
    add("TRAILER!!!", 0, b"", 0)
    return bytes(archive)
