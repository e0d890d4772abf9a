"""What the lab boots, built from Debian's packages and from this tree.

In two layers, each made anew only if what goes into it has changed:

- the base: a Debian dom0 with Xen on a disk image, the hypervisor, the kernels. It takes a minute
  or two and knows nothing of us but ``lab-init``, which unpacks the second layer;
- the payload: xen-hotplug as ``make install`` installs it, the ramdisks, the programs of
  ``tests/lab/dom0``. A tar archive that dom0 sees as a disk; it takes seconds.

Everything is below ``build/lab``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import inspect
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.ramdisk import ramdisk, take_modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab.releases import Release

LAB = Path(__file__).parent
TREE = LAB.parent.parent
BUILD = TREE / "build" / "lab"
DISK_SIZE = "4G"  # sparse
GUEST_MODULES = ("xen-blkfront", "xen-netfront")
ROOT_MODULES = ("virtio_pci", "virtio_blk", "xen-blkfront", "crc32c_generic", "ext4")
LIBRARY = "usr/local/lib/xen-hotplug"
XZ, ZSTD = b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


class BuildError(Exception):
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU is given."""

    release: Release
    base: Path  # a folder: root.img, xen, vmlinuz
    ramdisk: Path  # of dom0
    payload: Path


def image(release: Release) -> Image:
    """Build what is missing or out of date. One process at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(BUILD / "lock"):
        base = build_base(release)
        payload = build_payload(release, base)
        return Image(release, base, payload.with_suffix(".gz"), payload)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command; what it says is shown only if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace")[-4000:]
        raise BuildError(f"{command[0]} failed with status {done.returncode}:\n{said}")


# The base


def build_base(release: Release) -> Path:
    """A dom0 without us; the name of its folder tells what it was made from, and how."""
    lists = (*release.packages, *GUEST_MODULES, *ROOT_MODULES)
    recipe = inspect.getsource(build_base)
    content = (release.suite, *lists, (LAB / "lab-init").read_text(), DISK_SIZE, recipe)
    key = hashlib.sha256("\0".join(content).encode()).hexdigest()[:12]
    base = BUILD / f"base-{release.xen}-{key}"
    if base.exists():
        return base
    say(f"building a dom0 with Xen {release.xen} from Debian {release.suite}: a minute or two")
    new = BUILD / f"new-{release.xen}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    rootfs = new / "rootfs"
    packages = ",".join(release.packages)
    # What it mounts in there goes with it, whatever ends it: the next build deletes the folder.
    run("unshare", "--mount", "mmdebstrap", "--variant=minbase", "--mode=root",
        f"--include={packages}", release.suite, rootfs)  # fmt: skip
    shutil.copy(LAB / "lab-init", rootfs / "lab-init")
    (rootfs / "lab-init").chmod(0o755)
    boot = rootfs / "boot"
    with gzip.open(boot / f"xen-{release.xen}-amd64.gz") as packed:
        (new / "xen").write_bytes(packed.read())  # QEMU wants the plain ELF
    (kernel,) = boot.glob("vmlinuz-*")
    shutil.copy(kernel, new / "vmlinuz")
    # The domain builder takes 20 s to unpack a bzImage under emulation.
    (rootfs / "srv" / "vmlinux").write_bytes(unpack_kernel(kernel.read_bytes()))
    shutil.copy(rootfs / "usr" / "bin" / "busybox", new / "busybox")
    take_modules(rootfs, GUEST_MODULES, new / "guest-modules")
    take_modules(rootfs, ROOT_MODULES, new / "root-modules")
    run("truncate", "-s", DISK_SIZE, new / "root.img")
    run("mkfs.ext4", "-qF", "-d", rootfs, new / "root.img")
    shutil.rmtree(rootfs)
    for stale in BUILD.glob(f"base-{release.xen}-*"):
        shutil.rmtree(stale)
    new.rename(base)
    return base


def unpack_kernel(packed: bytes) -> bytes:
    """The ELF inside a bzImage, packed by xz or zstd (Linux Documentation/arch/x86/boot.rst)."""
    setup_sectors = packed[0x1F1] or 4
    offset = int.from_bytes(packed[0x248:0x24C], "little")  # payload_offset, from the setup's end
    length = int.from_bytes(packed[0x24C:0x250], "little")
    start = (setup_sectors + 1) * 512 + offset
    body = packed[start : start + length]
    if body.startswith(XZ):
        return lzma.LZMADecompressor().decompress(body)
    if body.startswith(ZSTD):
        done = subprocess.run(["zstd", "-dcq"], input=body[:-4], capture_output=True, check=True)
        return done.stdout
    raise BuildError(f"the kernel is packed in a way that is unknown here: {body[:6].hex()}")


# The payload


def build_payload(release: Release, base: Path) -> Path:
    """Everything of ours, as a tar archive."""
    payload = BUILD / f"payload-{release.xen}.tar"
    stamp = payload.with_suffix(".key")
    key = f"{base.name} {content_key()}"
    if payload.exists() and stamp.exists() and stamp.read_text() == key:
        return payload
    say("installing the project for dom0")
    stamp.unlink(missing_ok=True)  # until all is there
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    # As a package for another machine is made: its interpreter is Debian's.
    run("make", "install", f"DESTDIR={tree}", "INTERPRETER=/usr/bin/python3", cwd=TREE)
    new = BUILD / "new-payload.tar"  # the old one may be in use: it stays what it is
    with tarfile.open(new, "w") as archive:
        archive.add(tree, arcname=".")
        for path in sorted((LAB / "dom0").iterdir()):
            if path.is_file():
                archive.add(path, arcname=f"lab/{path.name}")
        for name in ("guest", "root"):
            packed = ramdisk(LAB / f"{name}-init", base / "busybox", base / f"{name}-modules")
            entry = tarfile.TarInfo(f"srv/{name}.gz")
            entry.size = len(packed)
            archive.addfile(entry, io.BytesIO(packed))
    new.with_suffix(".gz").write_bytes(packed)
    new.with_suffix(".gz").rename(payload.with_suffix(".gz"))
    new.rename(payload)
    stamp.write_text(key)
    return payload


def content_key() -> str:
    """A digest of what the payload is made of."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(f"{path.relative_to(TREE)} {path.stat().st_mode:o}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources() -> Iterable[Path]:
    yield from (
        TREE / name for name in ("Makefile", "pyproject.toml", "meson.build", "meson.options")
    )
    for folder in ("hotplug", "etc", "udev-rules", "tests/lab/dom0"):
        for path in sorted((TREE / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield path
    yield from (LAB / name for name in ("guest-init", "root-init", "image.py", "ramdisk.py"))
