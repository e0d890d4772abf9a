"""Locating what real paths lead to. What every implementation must do is in tests/contract."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hangfs
import pytest
from harness import loops

from hotplug.kernel.blockdev import LocalPaths
from hotplug.ports import Number

TREE = Path(__file__).parents[2]
PATHS = LocalPaths()
ODD_NAMES = [b"a b", b"back\\slash", b"\xff\xfe", b"\xc3\xa4", b"new\nline", b"*", b"x (deleted)"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_byte_for_byte(tmp_path, name):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    with open(path, "wb") as file:
        file.write(b"content")
    with PATHS.locate(path) as located:
        assert located.real_path == path
        assert located.still_there()
        with located.open(writable=False) as file:
            assert file.name == path
            assert file.read() == b"content"


def test_a_name_with_a_nul(tmp_path):
    with pytest.raises(FileNotFoundError), PATHS.locate(f"{tmp_path}\0x"):
        pass


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OSError, match="too long") as failure, PATHS.locate("/x" * 5000):
        pass
    assert failure.value.errno == errno.ENAMETOOLONG


def test_links_in_the_middle_and_at_the_end(tmp_path, image):
    path = image()
    (tmp_path / "dir").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("dir/disk.img")
    with PATHS.locate(f"{tmp_path}/dir/disk.img") as located:
        assert (located.real_path, located.is_link) == (path, False)
    with PATHS.locate(f"{tmp_path}/link") as located:
        assert (located.real_path, located.is_link) == (path, True)


def test_a_loop_of_links(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links"), PATHS.locate(str(tmp_path / "link")):
        pass


def test_a_file_without_a_name_any_more(image):
    path = image()
    with PATHS.locate(path) as located:
        os.unlink(path)
        assert not located.still_there()
        with located.open(writable=True) as file:  # the file that was found, all the same
            assert os.fstat(file.fileno()).st_nlink == 0


def test_a_file_that_loses_its_name_while_we_look(image, monkeypatch):
    path, real = image(), os.readlink

    def readlink(name):
        os.unlink(path)
        return real(name)

    monkeypatch.setattr(os, "readlink", readlink)
    with PATHS.locate(path) as located:
        assert located.real_path == path
        assert not located.still_there()


def test_the_file_that_was_found_is_the_one_that_is_opened(image, tmp_path):
    path = image()
    with PATHS.locate(path) as located:
        os.rename(path, tmp_path / "old.img")
        os.rename(image("new.img"), path)
        assert not located.still_there()
        with located.open(writable=True) as file:
            assert os.path.samestat(os.fstat(file.fileno()), os.stat(tmp_path / "old.img"))


def test_a_block_device_and_its_node(image):
    device = loops.attach(image())
    try:
        node = f"{image('node')}"
        os.unlink(node)
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        with PATHS.locate(node) as located:
            assert located.is_block_device
            assert not located.is_file
            assert located.number == Number(7, int(device.removeprefix("/dev/loop")))
            os.unlink(node)
            assert not located.still_there()
            os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
            assert located.still_there()  # the same device
            os.unlink(node)
            os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, 0xFFFFF))
            assert not located.still_there()
            with pytest.raises(OSError, match="not a regular file"):
                located.open(writable=False)
    finally:
        loops.detach(device)


def test_what_could_make_us_wait_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in ("/dev/null", "/dev/tty", tmp_path / "fifo", tmp_path / "socket", tmp_path):
            with PATHS.locate(str(path)) as located:
                assert not located.is_file
                assert not located.is_block_device
                with pytest.raises(OSError, match="not a regular file") as failure:
                    located.open(writable=False)
                assert failure.value.filename == str(path)
                with pytest.raises(OSError, match="Block device required"):
                    _ = located.number


def test_a_read_only_file_system(tmp_path, image):
    """Root may write any file, but not here: only opening it tells (D55)."""
    path = image()
    os.mkdir(tmp_path / "mnt")
    script = 'mount --bind "$0" "$0/mnt" && mount -o remount,bind,ro "$0/mnt" && exec "$@"'
    program = """if True:
        import sys
        from hotplug.kernel.blockdev import LocalPaths
        with LocalPaths().locate(sys.argv[1]) as located:
            print(located.has_write_bit)
            located.open(writable=False).close()
            try:
                located.open(writable=True)
            except OSError as error:
                print(error.filename, error.strerror, sep=": ")
    """
    said = in_namespace(script, tmp_path, program, f"{tmp_path}/mnt/{os.path.basename(path)}")
    assert said == f"True\n{tmp_path}/mnt/disk.img: Read-only file system\n"


def in_namespace(script, folder, program, *arguments):
    command = ["unshare", "--mount", "sh", "-c", script, folder, sys.executable, "-c", program]
    done = subprocess.run(
        [*command, *arguments], check=True, capture_output=True, text=True, cwd=TREE
    )
    return done.stdout


def test_a_dead_file_system_does_not_hold_up_who_found_its_file_before(tmp_path):
    with (
        hangfs.mounted(tmp_path / "dead", cache=60) as fs,
        ThreadPoolExecutor(1) as pool,
        PATHS.locate(fs.path) as located,
    ):
        fs.hang("open")
        opening = pool.submit(located.open, writable=False)
        fs.wait_until_hung()
        assert located.still_there()
        fs.release()
        opening.result().close()
