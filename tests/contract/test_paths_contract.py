"""What every Paths does: the host's and the fake."""

from __future__ import annotations

import os

import pytest
from fakes_kernel import FakePaths
from harness import loops as oracle

from hotplug.kernel.blockdev import LocalPaths, number_of


class RealWorld:
    """Names below a folder."""

    def __init__(self, folder):
        self.root = str(folder)
        self.paths = LocalPaths()

    def file(self, name, mode=0o644):
        oracle.make_file(f"{self.root}/{name}", 4096, mode)

    def directory(self, name):
        os.mkdir(f"{self.root}/{name}")

    def fifo(self, name):
        os.mkfifo(f"{self.root}/{name}")

    def device(self, name, number):
        os.mknod(f"{self.root}/{name}", 0o60600, os.makedev(number.major, number.minor))

    def link(self, name, target):
        os.symlink(target, f"{self.root}/{name}")

    def name(self, name, other):
        os.link(f"{self.root}/{other}", f"{self.root}/{name}")

    def remove(self, name):
        os.unlink(f"{self.root}/{name}")

    def rename(self, old, new):
        os.rename(f"{self.root}/{old}", f"{self.root}/{new}")


class FakeWorld:
    """Names of nothing."""

    def __init__(self):
        self.root = "/srv"
        self.paths = FakePaths()

    def file(self, name, mode=0o644):
        self.paths.add_file(f"/srv/{name}", mode)

    def directory(self, name):
        self.paths.add_directory(f"/srv/{name}")

    def fifo(self, name):
        self.paths.add_fifo(f"/srv/{name}")

    def device(self, name, number):
        self.paths.add_device(f"/srv/{name}", number)

    def link(self, name, target):
        self.paths.add_link(f"/srv/{name}", target)

    def name(self, name, other):
        self.paths.add_name(f"/srv/{name}", f"/srv/{other}")

    def remove(self, name):
        self.paths.remove(f"/srv/{name}")

    def rename(self, old, new):
        self.paths.rename(f"/srv/{old}", f"/srv/{new}")


@pytest.fixture(params=["real", "fake"])
def world(request, tmp_path):
    return RealWorld(tmp_path) if request.param == "real" else FakeWorld()


@pytest.fixture
def locate(world):
    return lambda name: world.paths.locate(f"{world.root}/{name}")


NUMBER = number_of(os.makedev(240, 7))  # local and experimental use


def test_nothing_there(world, locate):
    with pytest.raises(FileNotFoundError) as failure, locate("a.img"):
        pass
    assert failure.value.filename == f"{world.root}/a.img"


def test_a_file(world, locate):
    world.file("a.img")
    with locate("a.img") as located:
        assert (located.path, located.real_path) == (f"{world.root}/a.img",) * 2
        assert (located.is_file, located.is_block_device, located.is_link) == (True, False, False)
        assert located.still_there()
        with pytest.raises(OSError, match="Block device required"):
            _ = located.number


def test_a_block_device(world, locate):
    world.device("disk", NUMBER)
    with locate("disk") as located:
        assert (located.is_file, located.is_block_device) == (False, True)
        assert located.number == NUMBER
        assert located.still_there()


def test_a_node_that_was_made_anew(world, locate):
    world.device("disk", NUMBER)
    with locate("disk") as located:
        world.remove("disk")
        assert not located.still_there()
        world.device("disk", NUMBER)
        assert located.still_there()


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_only_files_are_opened(world, locate, kind):
    arguments = (NUMBER,) if kind == "device" else ()
    getattr(world, kind)("x", *arguments)
    with locate("x") as located:
        assert not located.is_file
        with pytest.raises(OSError, match="not a regular file"):
            located.open(writable=False)


def test_links(world, locate):
    world.file("a.img")
    world.link("relative", "a.img")
    world.link("absolute", f"{world.root}/relative")
    for name in ("relative", "absolute"):
        with locate(name) as located:
            assert (located.path, located.real_path) == (
                f"{world.root}/{name}",
                f"{world.root}/a.img",
            )
            assert located.is_link
            assert located.is_file
            assert located.still_there()


def test_a_dangling_link_and_a_loop(world, locate):
    world.link("dangling", "nothing")
    world.link("loop", "loop")
    with pytest.raises(FileNotFoundError), locate("dangling"):
        pass
    with pytest.raises(OSError, match="symbolic links"), locate("loop"):
        pass


def test_a_link_that_leads_elsewhere_now(world, locate):
    world.file("a.img")
    world.file("b.img")
    world.link("link", "a.img")
    with locate("link") as located:
        world.remove("link")
        world.link("link", "b.img")
        assert not located.still_there()
        assert located.real_path == f"{world.root}/a.img"


def test_one_file_with_two_names(world, locate):
    world.file("a.img")
    world.name("b.img", "a.img")
    world.file("c.img")
    with locate("a.img") as a, locate("b.img") as b, locate("c.img") as c:
        assert a.file_id == b.file_id != c.file_id


def test_a_replaced_file(world, locate):
    world.file("a.img")
    world.file("new.img")
    with locate("a.img") as located:
        world.rename("new.img", "a.img")
        assert not located.still_there()


def test_a_removed_file(world, locate):
    world.file("a.img")
    with locate("a.img") as located:
        world.remove("a.img")
        assert not located.still_there()


@pytest.mark.parametrize(("mode", "bit"), [(0o644, True), (0o444, False), (0o020, True)])
def test_write_bits(world, locate, mode, bit):
    world.file("a.img", mode)
    with locate("a.img") as located:
        assert located.has_write_bit is bit


def test_open(world, locate):
    world.file("a.img")
    with locate("a.img") as located:
        for writable in (False, True):
            with located.open(writable=writable) as file:
                assert file.name == f"{world.root}/a.img"


def test_the_fake_fails_on_demand():
    world = FakeWorld()
    world.file("a.img")
    world.paths.nodes["/srv/a.img"].refuses[True] = PermissionError(1, "immutable")
    with world.paths.locate("/srv/a.img") as located:
        located.open(writable=False)
        with pytest.raises(PermissionError):
            located.open(writable=True)
    world.paths.fail("locate", OSError(5, "input/output error"))
    with pytest.raises(OSError, match="input/output"), world.paths.locate("/srv/a.img"):
        pass
