"""What every Loops does: the kernel's and the fake."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest
from fakes_kernel import FakeLoops, FakePaths
from harness import loops as oracle
from harness.locks import wait_until

from hotplug.kernel.blockdev import LocalPaths
from hotplug.kernel.loop import KernelLoops
from hotplug.ports import LoopOptions, Number

PLAIN = LoopOptions()


class RealWorld:
    """Files below a folder, and the host's loop devices."""

    def __init__(self, folder, *, watch):
        self.folder = folder
        self.paths = LocalPaths()
        self.loops = KernelLoops(watch=watch)

    def file(self, name, mode=0o644):
        return str(oracle.make_file(self.folder / name, mode=mode))

    def link(self, name, other):
        os.link(other, self.folder / name)
        return str(self.folder / name)

    @contextlib.contextmanager
    def opened_elsewhere(self, loop):
        with open(loop.path, "rb"):
            yield

    def wait_until_unbound(self):
        wait_until(lambda: not oracle.below(self.folder), "all is unbound")

    def close(self):
        for bound in oracle.below(self.folder):
            oracle.detach(bound.path)
        self.wait_until_unbound()
        self.loops.close()


class FakeWorld:
    """The same without a kernel."""

    def __init__(self):
        self.paths = FakePaths()
        self.loops = FakeLoops()

    def file(self, name, mode=0o644):
        self.paths.add_file(f"/{name}", mode)
        return f"/{name}"

    def link(self, name, other):
        self.paths.add_name(f"/{name}", other)
        return f"/{name}"

    @contextlib.contextmanager
    def opened_elsewhere(self, loop):
        self.loops.open_elsewhere.add(loop.number)
        yield
        self.loops.close_elsewhere(loop.number)

    def wait_until_unbound(self):
        pass

    def close(self):
        pass


@pytest.fixture(params=["watching", "scanning", "fake"])
def world(request, tmp_path):
    made = FakeWorld() if request.param == "fake" else None
    with contextlib.closing(
        made or RealWorld(tmp_path, watch=request.param == "watching")
    ) as world:
        yield world


def attach(world, path, options=PLAIN, reference=b"test", *, writable=True):
    with world.paths.locate(path) as located, located.open(writable=writable) as backing:
        return world.loops.attach(backing, options, reference)


def file_id(world, path):
    with world.paths.locate(path) as located:
        return located.file_id


def test_attached(world):
    path = world.file("a.img")
    loop = attach(world, path, reference=b"ours")
    assert loop.backing == file_id(world, path)
    assert (loop.offset, loop.size_limit) == (0, 0)
    assert (loop.read_only, loop.autoclear, loop.reference) == (False, False, b"ours")
    assert loop.path == f"/dev/loop{loop.number}"
    assert world.loops.get(loop.number) == loop
    assert world.loops.backing_name(loop.number) == path
    assert loop in world.loops.all()


def test_detached(world):
    path = world.file("a.img")
    loop = attach(world, path)
    assert world.loops.detach(loop.number, only_if=loop.__eq__)
    world.wait_until_unbound()
    # Its number may have gone to somebody else since.
    assert world.loops.get(loop.number) != loop
    assert world.loops.backing_name(loop.number) != path
    assert world.loops.bound_to(loop.backing) == []
    assert loop not in world.loops.all()


def test_still_bound_or_not(world):
    path = world.file("a.img")
    loop = attach(world, path, reference=b"ours")
    assert world.loops.is_still(loop)
    assert not world.loops.is_still(replace(loop, reference=b"theirs"))
    assert world.loops.detach(loop.number, only_if=loop.__eq__)
    world.wait_until_unbound()
    assert not world.loops.is_still(loop)
    attach(world, path, reference=b"again")  # the same device, where nobody else takes it
    assert not world.loops.is_still(loop)


def test_detached_twice(world):
    loop = attach(world, world.file("a.img"))
    assert world.loops.detach(loop.number, only_if=loop.__eq__)
    world.wait_until_unbound()
    assert not world.loops.detach(loop.number, only_if=loop.__eq__)


def test_not_the_one_meant(world):
    loop = attach(world, world.file("a.img"))
    seen = []
    assert not world.loops.detach(loop.number, only_if=seen.append)
    assert seen == [loop]
    assert world.loops.get(loop.number) == loop


def test_an_error_in_the_question_detaches_nothing(world):
    loop = attach(world, world.file("a.img"))
    with pytest.raises(ZeroDivisionError):
        world.loops.detach(loop.number, only_if=lambda _: 1 / 0)
    assert world.loops.get(loop.number) == loop


def test_in_use_elsewhere(world):
    loop = attach(world, world.file("a.img"))
    with world.opened_elsewhere(loop):
        assert world.loops.detach(loop.number, only_if=loop.__eq__)
        assert world.loops.get(loop.number).autoclear
        assert [now.number for now in world.loops.bound_to(loop.backing)] == [loop.number]
    world.wait_until_unbound()
    assert world.loops.bound_to(loop.backing) == []


def test_everything_that_is_bound_to_a_file(world):
    path = world.file("a.img")
    alias = world.link("b.img", path)
    one, two = attach(world, path, reference=b"1"), attach(world, alias, reference=b"2")
    attach(world, world.file("c.img"))
    assert sorted(world.loops.bound_to(file_id(world, path)), key=lambda x: x.number) == sorted(
        [one, two], key=lambda x: x.number
    )


def test_read_only(world):
    path = world.file("a.img", 0o444)
    loop = attach(world, path, LoopOptions(read_only=True), writable=False)
    assert loop.read_only


def test_a_writable_one_of_a_file_that_is_not(world):
    path = world.file("a.img")
    with pytest.raises(OSError, match="cannot be written") as failure:
        attach(world, path, writable=False)
    assert failure.value.filename == path
    assert world.loops.bound_to(file_id(world, path)) == []


@pytest.mark.parametrize("reference", [b"x" * 64, b"a\0b"])
def test_a_reference_that_does_not_fit(world, reference):
    with pytest.raises(ValueError, match="63 bytes"):
        attach(world, world.file("a.img"), reference=reference)


def test_a_number_of_nothing(world):
    assert world.loops.get(1_000_000) is None
    assert world.loops.backing_name(1_000_000) is None
    assert not world.loops.detach(1_000_000, only_if=lambda _: False)


def test_the_fake_fails_on_demand():
    world = FakeWorld()
    path = world.file("a.img")
    world.loops.fail("attach", OSError(16, "busy"))
    with pytest.raises(OSError, match="busy"):
        attach(world, path)
    assert world.loops.all() == []
    assert attach(world, path).number == 0


def test_the_loop_device_below_a_block_device(world):
    paths = world.paths
    with paths.locate(world.file("below")) as located, located.open(writable=True) as backing:
        loop = world.loops.attach(backing, PLAIN, b"below")
        assert world.loops.below(loop.device_number) == loop
        assert world.loops.detach(loop.number, only_if=lambda _: True)
    world.wait_until_unbound()
    assert world.loops.below(Number(1, 0)) is None  # a RAM disk, or nothing
