"""``xen-hotplug install`` and ``uninstall``, with a real dpkg on a database of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hotplug import cardfilters, cli, commands, dropins, installation
from hotplug.errors import HotplugError

STOCK = ("block", "block-tap", "block-common.sh")  # what the package has
OURS = ("block", "block-tap", "vif-new")  # and what we have
TEXT = "#!/bin/sh\necho {name} of version {version}\n"
CONTROL = """\
Package: stock-scripts
Version: {version}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: what a toolstack runs
"""
# What changes something, in Python's audit events; "open" only if it is for writing.
DEEDS = ("os.link", "os.rename", "os.remove", "os.chmod", "subprocess.Popen", "open")


class System:
    """A folder of stock scripts, the folder with ours, and perhaps a dpkg that knows of them."""

    def __init__(self, base: Path, *, dpkg: bool):
        self.base = base
        self.folder = base / "etc/xen/scripts"
        self.ours = base / "ours"
        self.dpkg = dpkg
        self.ours.mkdir()
        for name in OURS:
            shutil.copy(Path(commands.our_scripts()) / "block", self.ours / name)
        if dpkg:
            for name in ("updates", "info", "triggers"):
                (base / "dpkg" / name).mkdir(parents=True)
            (base / "dpkg/status").touch()
            self.upgrade(1)
        else:
            self.unpack(base, 1, STOCK)

    def unpack(self, root, version, names):
        """What a package of stock scripts holds."""
        folder = root / self.folder.relative_to("/") if self.dpkg else self.folder
        folder.mkdir(parents=True)
        for name in names:
            script = folder / name
            script.write_text(TEXT.format(name=name, version=version))
            script.chmod(0o644 if name.endswith(".sh") else 0o755)
            os.utime(script, (1_600_000_000 + version,) * 2)

    def upgrade(self, version, *added):
        """Build a package and install it; what an administrator has changed is kept."""
        root = self.base / f"package-{version}"
        (root / "DEBIAN").mkdir(parents=True)
        names = (*STOCK, *added)
        self.unpack(root, version, names)
        (root / "DEBIAN/control").write_text(CONTROL.format(version=version))
        (root / "DEBIAN/conffiles").write_text("".join(f"{self.folder}/{n}\n" for n in names))
        package = f"{root}.deb"
        run("dpkg-deb", "-Zgzip", "--root-owner-group", "--build", root, package)
        run("dpkg", "--force-confdef", "--install", package)

    def install(self, **options):
        return self.change(installation.install, **options)

    def uninstall(self, **options):
        return self.change(installation.uninstall, **options)

    def change(self, function, **options):
        """The lines, with short names."""
        lines = function(str(self.folder), str(self.ours), **{"unit": False, **options})
        return [line.replace(f"{self.folder}/", "") for line in lines]

    def contents(self):
        """All there is: the very files, links counted."""
        return {path.name: description(path) for path in self.folder.iterdir()}

    def diversions(self):
        return run("dpkg-divert", "--list").splitlines() if self.dpkg else []

    def is_installed(self):
        """Whether all of ours are there, and nothing else but the stock scripts."""
        drop_in = (self.ours / "block").read_bytes()
        assert all((self.folder / name).read_bytes() == drop_in for name in OURS)
        assert all(os.access(self.folder / name, os.X_OK) for name in OURS)
        assert len(self.diversions()) == (len(OURS) if self.dpkg else 0)
        kept = {"block.stock", "block-tap.stock", "block-common.sh"}
        assert {path.name for path in self.folder.iterdir()} == {*OURS, *kept}
        return True


def run(*command):
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout.decode()


def description(path):
    status = path.lstat()
    inner = os.readlink(path) if path.is_symlink() else path.read_bytes()
    owner = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
    return (inner, owner, status.st_mtime_ns, status.st_ino)


@pytest.fixture(params=["dpkg", "plain"])
def system(request, tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    if request.param == "dpkg":
        monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
        return System(tmp_path, dpkg=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return System(tmp_path, dpkg=False)


@pytest.fixture
def debian(tmp_path, monkeypatch):
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    return System(tmp_path, dpkg=True)


@pytest.fixture
def plain(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return System(tmp_path, dpkg=False)


def test_there_and_back(system):
    before = system.contents()
    assert system.install() == [
        "block: now ours; the stock script is block.stock",
        "block-tap: now ours; the stock script is block-tap.stock",
        "vif-new: now ours; there is no stock script of that name",
    ]
    assert system.is_installed()
    after = system.contents()
    assert system.install() == ["already installed"]
    assert system.contents() == after
    assert system.uninstall() == [
        "block: now the stock script",
        "block-tap: now the stock script",
        "vif-new: now gone; there is no stock script of that name",
    ]
    assert system.contents() == before
    assert system.diversions() == []
    assert system.uninstall() == ["not installed"]
    assert system.contents() == before


def test_dry_run_changes_nothing(system):
    before = system.contents()
    assert system.install(dry_run=True) == [
        "block: would be ours; the stock script would be block.stock",
        "block-tap: would be ours; the stock script would be block-tap.stock",
        "vif-new: would be ours; there is no stock script of that name",
    ]
    assert system.contents() == before
    system.install()
    after, diversions = system.contents(), system.diversions()
    assert system.install(dry_run=True) == ["already installed"]
    assert system.uninstall(dry_run=True)[0] == "block: would be the stock script"
    assert (system.contents(), system.diversions()) == (after, diversions)


# Interrupted.


def killed_at(step, function):
    """Run in a child that is killed before its deed number ``step``; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def audit(event, arguments):
            nonlocal left
            reading = event == "open" and not (arguments[2] or 0) & os.O_ACCMODE
            if event not in DEEDS or reading:
                return
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        try:
            sys.addaudithook(audit)
            function()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("mended_by", ["install", "uninstall"])
@pytest.mark.parametrize("killed", ["install", "uninstall"])
def test_kill_at_every_step(system, killed, mended_by):
    (system.ours / "block-tap").unlink()  # fewer steps, and still all kinds of them
    before = system.contents()
    scripts = {(system.ours / "block").read_bytes(), (system.folder / "block").read_bytes()}
    step = 0
    while True:
        if killed == "uninstall":
            system.install()
        if not killed_at(step, getattr(system, killed)):
            break
        assert (system.folder / "block").read_bytes() in scripts
        assert os.access(system.folder / "block", os.X_OK)
        getattr(system, mended_by)()
        if mended_by == "install":
            assert system.install() == ["already installed"]
            system.uninstall()
        assert system.contents() == before, step
        assert system.diversions() == []
        step += 1
    assert step > 4  # deeds for two scripts


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(system, seed):
    before = system.contents()
    chance = random.Random(seed)
    scripts = {(system.ours / "block").read_bytes(), (system.folder / "block").read_bytes()}
    for _ in range(12):
        killed_at(chance.randrange(16), chance.choice([system.install, system.uninstall]))
        assert (system.folder / "block").read_bytes() in scripts
        assert os.access(system.folder / "block", os.X_OK)
    system.uninstall()
    assert system.contents() == before
    assert system.diversions() == []


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_no_moment_without_a_script(debian, tmp_path, action):
    """NAME is never taken away or written to; it is only ever what something is renamed to."""
    if action == "uninstall":
        debian.install()
    trace = tmp_path / "trace"
    code = "import sys; from hotplug import installation as i; "
    code += "print(*getattr(i, sys.argv[1])(*sys.argv[2:], unit=False))"
    arguments = (sys.executable, "-c", code, action, debian.folder, debian.ours)
    calls = "link,linkat,unlink,unlinkat,rename,renameat,renameat2,truncate,open,openat,creat,"
    calls += "chmod,fchmodat,chown,lchown,fchownat,symlink,symlinkat"
    run("strace", "-f", "-qq", "-s", "4096", "-e", f"trace={calls}", "-o", trace, *arguments)
    changing = [
        line.split(maxsplit=1)[1]
        for line in trace.read_text().splitlines()
        if f'"{debian.folder}/block"' in line and "O_RDONLY" not in line
    ]
    renames = [line for line in changing if line.startswith("rename")]
    assert len(renames) == 1
    assert re.search(rf'"{debian.folder}/\.block\.xen-hotplug", .*/block"', renames[0])
    others = [line for line in changing if not line.startswith("rename")]
    assert all(line.startswith("link") for line in others), others
    assert len(others) == (1 if action == "install" else 0)


def test_one_at_a_time(plain):
    lines = installation.install(str(plain.folder), str(plain.ours), unit=False)
    next(lines)
    with pytest.raises(HotplugError, match="another xen-hotplug is changing"):
        plain.uninstall()
    assert len(list(lines)) == 2
    assert plain.is_installed()


# Upgrades.


def test_stock_scripts_are_upgraded_meanwhile(debian):
    debian.install()
    debian.upgrade(2, "vif-new")
    assert (debian.folder / "block.stock").read_text() == TEXT.format(name="block", version=2)
    assert (debian.folder / "block").read_bytes() == (debian.ours / "block").read_bytes()
    assert (debian.folder / "vif-new").read_bytes() == (debian.ours / "vif-new").read_bytes()
    assert run("dpkg", "--verify") == ""
    assert debian.install() == ["already installed"]

    debian.uninstall()
    assert {path.name for path in debian.folder.iterdir()} == {*STOCK, "vif-new"}
    for name in (*STOCK, "vif-new"):
        assert (debian.folder / name).read_text() == TEXT.format(name=name, version=2)
    assert run("dpkg", "--verify") == ""
    debian.upgrade(3, "vif-new")
    assert (debian.folder / "block").read_text() == TEXT.format(name="block", version=3)


def test_an_administrators_own_script_is_kept(debian):
    own = "#!/bin/sh\necho my own\n"
    (debian.folder / "block").write_text(own)
    before = description(debian.folder / "block")
    debian.install()
    debian.upgrade(2)
    debian.uninstall()
    assert description(debian.folder / "block") == before
    new = debian.folder / "block.dpkg-dist"
    assert new.read_text() == TEXT.format(name="block", version=2)
    assert {path.name for path in debian.folder.iterdir()} == {*STOCK, new.name}


def test_older_drop_ins_are_replaced(system):
    before = system.contents()
    system.install()
    with (system.folder / "block").open("ab") as file:
        file.write(b"of another build")
    (system.folder / "block-tap").chmod(0o700)
    assert system.install() == [
        "block: now that of this version; the stock script is block.stock",
        "block-tap: now that of this version; the stock script is block-tap.stock",
    ]
    assert system.is_installed()
    (system.ours / "vif-new").unlink()  # a version that has one less
    system.uninstall()
    assert system.contents() == before


# By hand.


def put_by_hand(system):
    """As the README said once."""
    for name in ("block", "block-tap"):
        (system.folder / name).rename(system.folder / f"{name}.stock")
        shutil.copy(system.ours / name, system.folder / name)


def test_what_was_put_by_hand_is_understood(system):
    before = system.contents()
    put_by_hand(system)
    lines = system.install()
    assert lines[-1] == "vif-new: now ours; there is no stock script of that name"
    diverted = "block: now diverted for dpkg; the stock script is block.stock"
    assert (diverted in lines) == system.dpkg
    assert system.is_installed()
    system.uninstall()
    assert system.contents() == before


def test_what_was_put_by_hand_can_be_taken_back(system):
    before = system.contents()
    put_by_hand(system)
    system.uninstall()
    assert system.contents() == before


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_to_ours_becomes_a_copy(system, dangling):
    before = system.contents()
    package = system.base / "lib/hotplug/client/scripts"
    package.parent.mkdir(parents=True)
    if not dangling:
        system.ours.rename(package)
        system.ours = package
    (system.folder / "block").rename(system.folder / "block.stock")
    (system.folder / "block").symlink_to(package / "block")
    system.install()
    assert not (system.folder / "block").is_symlink()
    assert system.is_installed()
    system.uninstall()
    assert system.contents() == before


def test_a_stock_script_that_is_a_link(plain):
    (plain.folder / "block").rename(plain.folder / "real")
    (plain.folder / "block").symlink_to("real")
    before = plain.contents()
    plain.install()
    assert os.readlink(plain.folder / "block.stock") == "real"
    plain.uninstall()
    assert plain.contents() == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("block.stock", "#!/bin/sh\n", "block is no drop-in of xen-hotplug, and block.stock is"),
        ("block.stock", None, "block.stock is a drop-in of xen-hotplug and no stock script"),
        ("vif-new", "", "vif-new is no file; move it away"),
    ],
)
def test_refused_where_it_cannot_be_told(system, name, content, reason):
    path = system.folder / name
    if content == "":
        path.mkdir()
        path.chmod(0o755)
    else:
        path.write_bytes(content.encode() if content else (system.ours / "block").read_bytes())
    before = {p.name for p in system.folder.iterdir()}, system.diversions()
    with pytest.raises(HotplugError, match=reason):
        system.install()
    assert ({p.name for p in system.folder.iterdir()}, system.diversions()) == before


def test_a_backup_of_others_is_none_of_ours(system):
    (system.folder / "block.stock").write_text("#!/bin/sh\n")
    before = system.contents()
    assert system.uninstall() == ["not installed"]
    assert system.contents() == before


def test_a_diversion_of_others(debian):
    path = debian.folder / "block"
    run("dpkg-divert", "--local", "--rename", "--add", path)
    with pytest.raises(HotplugError, match=r"dpkg has a local diversion of .*block\.distrib; rem"):
        debian.install()
    assert debian.uninstall() == ["not installed"]


def test_somebody_has_copied_the_stock_script_back(debian):
    debian.install()
    (debian.folder / "block").unlink()
    shutil.copy(debian.folder / "block.stock", debian.folder / "block")
    assert debian.install() == ["block: now ours; the stock script is block.stock"]
    assert debian.is_installed()

    (debian.folder / "block").unlink()
    (debian.folder / "block").write_text("#!/bin/sh\necho something else\n")
    for change in (debian.install, debian.uninstall):
        with pytest.raises(HotplugError, match="move away the one that is not the stock script"):
            change()


def test_every_script_of_ours_is_known():
    folder = Path(commands.our_scripts())
    assert [path.name for path in folder.iterdir() if not dropins.is_ours(str(path))] == []


# The program for guests' memory.


class Release(System):
    """A release of Xen: its folder is one with programs, and ours is another program."""

    def __init__(self, base, *, dpkg):
        super().__init__(base, dpkg=dpkg)
        self.helper = base / "lib/xen-4.17/bin/libxl-save-helper"
        self.source = base / "libxl-save-helper"
        shutil.copy(Path(commands.our_scripts()).with_name("libxl-save-helper"), self.source)
        self.release(1)

    def release(self, version):
        """A package of Xen's programs, which are no configuration files."""
        root = self.base / f"xen-{version}" if self.dpkg else Path("/")
        folder = root / self.helper.parent.relative_to("/")
        folder.mkdir(parents=True)
        (folder / "libxl-save-helper").write_bytes(b"\x7fELF of version %d" % version)
        (folder / "libxl-save-helper").chmod(0o755)
        (folder / "other").touch()
        if self.dpkg:
            control = root / "DEBIAN/control"
            control.parent.mkdir()
            control.write_text(CONTROL.format(version=version).replace("stock-scripts", "xen"))
            run("dpkg-deb", "-Zgzip", "--root-owner-group", "--build", root, f"{root}.deb")
            run("dpkg", "--install", f"{root}.deb")

    def change(self, function, **options):
        helpers = [(str(self.helper), str(self.source))]
        lines = function(str(self.folder), str(self.ours), helpers, **{"unit": False, **options})
        return [line for line in lines if "libxl-save-helper" in line]

    def programs(self):
        return {path.name: description(path) for path in self.helper.parent.iterdir()}


@pytest.fixture(params=["dpkg", "plain"])
def xen(request, tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    if request.param == "dpkg":
        monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
        return Release(tmp_path, dpkg=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Release(tmp_path, dpkg=False)


def test_the_save_helper_there_and_back(xen):
    before = xen.programs()
    line = f"{xen.helper}: would be ours; the stock program would be libxl-save-helper.stock"
    assert xen.install(dry_run=True) == [line]
    assert xen.programs() == before
    assert xen.install() == [line.replace("would be", "now", 1).replace("would be", "is")]
    assert xen.helper.read_bytes() == xen.source.read_bytes()
    assert os.access(xen.helper, os.X_OK)
    assert Path(f"{xen.helper}.stock").read_bytes() == b"\x7fELF of version 1"
    after = xen.programs()
    assert xen.install() == []
    assert xen.programs() == after
    assert xen.uninstall() == [f"{xen.helper}: now the stock program"]
    assert xen.programs() == before
    assert xen.diversions() == []
    assert xen.uninstall() == []


def test_the_save_helper_is_upgraded_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    xen = Release(tmp_path, dpkg=True)
    xen.install()
    xen.release(2)
    assert xen.helper.read_bytes() == xen.source.read_bytes()
    xen.uninstall()
    assert xen.helper.read_bytes() == b"\x7fELF of version 2"
    assert {path.name for path in xen.helper.parent.iterdir()} == {"libxl-save-helper", "other"}
    assert run("dpkg", "--verify") == ""


def test_the_save_helper_is_killed_at_every_step(xen):
    before = xen.programs()
    programs = {xen.helper.read_bytes(), xen.source.read_bytes()}
    for killed in ("install", "uninstall"):
        step = 0
        while True:
            if killed == "uninstall":
                xen.install()
            if not killed_at(step, getattr(xen, killed)):
                break
            assert xen.helper.read_bytes() in programs
            assert os.access(xen.helper, os.X_OK)
            xen.uninstall()
            assert xen.programs() == before
            step += 1
        xen.uninstall()
        assert step > 4  # deeds


def test_a_release_that_was_purged(tmp_path, monkeypatch):
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    xen = Release(tmp_path, dpkg=True)
    xen.install()
    run("dpkg", "--purge", "xen")
    assert xen.uninstall() == [f"{xen.helper}: now gone; there is no stock program"]
    assert list(xen.helper.parent.iterdir()) == []
    assert xen.diversions() == []


def test_where_xen_has_its_save_helper(tmp_path, monkeypatch):
    monkeypatch.setattr(
        installation, "HELPER_FOLDERS", (f"{tmp_path}/xen-*/bin", f"{tmp_path}/lib/xen/bin")
    )
    for release in ("xen-4.14/bin", "xen-4.17/bin", "xen-common/bin"):
        (tmp_path / release).mkdir(parents=True)
    (tmp_path / "xen-4.14/bin/libxl-save-helper.stock").touch()
    (tmp_path / "xen-4.17/bin/libxl-save-helper").touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/xen").symlink_to(tmp_path / "xen-4.17")
    assert installation.save_helpers("/ours") == [
        (f"{tmp_path}/xen-4.14/bin/libxl-save-helper", "/ours"),
        (f"{tmp_path}/xen-4.17/bin/libxl-save-helper", "/ours"),
    ]


# The agent.

SYSTEMCTL = """\
#!/bin/sh
cd {base}
[ -e {folder}/block.stock ] && whose=ours || whose=stock
echo "$whose $*" >>calls
case $1 in
enable) [ ! -e broken ] || {{ echo "Job failed." >&2; exit 1; }}; : >enabled; : >active ;;
disable) /bin/rm -f enabled active ;;
show) for unit in 1 2; do
        [ -e unknown ] && echo LoadState=not-found || echo LoadState=loaded
        [ -e enabled ] && echo UnitFileState=enabled || echo UnitFileState=disabled
        [ -e active ] && echo ActiveState=active || echo ActiveState=inactive
      done ;;
esac
"""
UNITS = "xen-hotplug.socket xen-hotplug.service"
NAMES = "xen-hotplug.socket and xen-hotplug.service"


@pytest.fixture
def systemd(plain, monkeypatch):
    """A host that systemd has booted under Xen."""
    program = plain.base / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(base=plain.base, folder=plain.folder))
    program.chmod(0o755)
    monkeypatch.setattr(installation, "SYSTEMD", str(plain.base))
    monkeypatch.setattr(installation, "XEN", str(plain.folder))
    return plain


def calls(system):
    lines = (system.base / "calls").read_text().splitlines()
    return [line for line in lines if " show " not in line]


def test_the_agent_comes_first_and_goes_last(systemd):
    install = functools.partial(systemd.install, unit=True)
    uninstall = functools.partial(systemd.uninstall, unit=True)
    assert install()[0] == f"{NAMES}: now enabled and running"
    assert install() == ["already installed"]
    assert install(dry_run=True) == ["already installed"]
    assert uninstall(dry_run=True)[-1] == f"{NAMES}: would be stopped and disabled"
    assert uninstall()[-1] == f"{NAMES}: now stopped and disabled"
    assert uninstall() == ["not installed"]
    assert calls(systemd) == [
        "stock daemon-reload",
        f"stock enable --now {UNITS}",
        f"stock disable --now {UNITS}",
    ]


def leavings_of(system, there):
    """Something for cards, which is undone and told when it was."""
    undo = functools.partial(there.remove, "tables")

    def leavings():
        seen.append((system.base / "active").exists())
        changes = [installation.Change(name, "gone", undo) for name in there]
        return changes, ["said at last"]

    seen = []
    return leavings, seen


def test_what_was_set_for_cards_goes_when_no_agent_can_set_it_again(systemd):
    there = ["tables"]
    leavings, seen = leavings_of(systemd, there)
    uninstall = functools.partial(systemd.uninstall, unit=True, leavings=leavings)
    systemd.install(unit=True)
    assert uninstall(dry_run=True)[-2:] == ["tables: would be gone", "said at last"]
    assert there == ["tables"]
    assert uninstall()[-3:] == [
        *(f"{NAMES}: now stopped and disabled", "tables: now gone", "said at last")
    ]
    assert seen == [True, False]
    assert uninstall() == ["said at last", "not installed"]


def test_an_uninstall_that_ends_before_its_last_step_is_ended_by_the_next(systemd):
    there = ["tables"]
    leavings, _ = leavings_of(systemd, there)
    systemd.install(unit=True)
    paths = (str(systemd.folder), str(systemd.ours))
    with contextlib.closing(installation.uninstall(*paths, leavings=leavings)) as lines:
        assert f"{NAMES}: now stopped and disabled" in lines
    assert there == ["tables"]
    assert systemd.uninstall(unit=True, leavings=leavings) == ["tables: now gone", "said at last"]
    assert there == []


def test_an_agent_that_does_not_start(systemd):
    (systemd.base / "broken").touch()
    before = systemd.contents()
    with pytest.raises(HotplugError, match=f"{NAMES} cannot be started.*: Job failed."):
        systemd.install(unit=True)
    assert systemd.contents() == before
    assert calls(systemd)[1:] == [f"stock enable --now {UNITS}", f"stock disable --now {UNITS}"]


def test_units_that_systemd_does_not_know(systemd):
    (systemd.base / "unknown").touch()
    lines = systemd.install(unit=True)
    assert lines[-1].startswith("systemd does not know xen-hotplug.service: start `xen-hotplug a")
    assert systemd.is_installed()
    assert not (systemd.base / "enabled").exists()


def test_a_host_that_is_not_under_xen_yet(systemd, monkeypatch):
    monkeypatch.setattr(installation, "XEN", "/nowhere")
    assert systemd.install(unit=True)[0] == f"{NAMES}: now enabled, to run when Xen does"
    (systemd.base / "active").unlink()
    assert systemd.install(unit=True) == ["already installed"]


def test_without_systemd(plain, monkeypatch):
    monkeypatch.setattr(installation, "SYSTEMD", "/nowhere")
    remark = "no systemd runs here: start `xen-hotplug agent` whenever the host boots"
    assert plain.install(unit=True)[-1] == remark
    assert plain.install(unit=True) == [remark, "already installed"]
    assert plain.uninstall(unit=True)[-1].startswith("vif-new: now gone")


# The commands.


def test_commands(plain, capsys):
    before = plain.contents()
    options = ["--scripts", str(plain.folder), "--no-unit"]
    assert cli.main(["install", "--dry-run", *options]) == 0
    assert plain.contents() == before
    assert cli.main(["install", *options]) == 0
    names = os.listdir(commands.our_scripts())
    assert capsys.readouterr().out.count(": now ours") == len(names)
    assert {name for name in names if dropins.is_ours(str(plain.folder / name))} == set(names)
    assert stat.S_IMODE((plain.folder / "block").stat().st_mode) == 0o755
    assert cli.main(["uninstall", *options]) == 0
    assert plain.contents() == before


@pytest.mark.parametrize("alone", [True, False])
def test_cards_are_left_alone_where_it_is_to_be_the_scripts_alone(
    plain, capsys, monkeypatch, alone
):
    monkeypatch.setattr(cardfilters, "leavings", lambda _, dry_run: ([], [str(dry_run)]))
    monkeypatch.setattr(dropins, "FOLDER", str(plain.folder))
    monkeypatch.setattr(installation, "HELPER_FOLDERS", ())
    options = ["--scripts", str(plain.folder)] if alone else []
    assert cli.main(["uninstall", "--no-unit", "--dry-run", *options]) == 0
    assert capsys.readouterr().out.splitlines() == [*([] if alone else ["True"]), "not installed"]


def test_errors_are_sentences(plain, capfd, monkeypatch):
    options = ["--scripts", str(plain.base / "nowhere"), "--no-unit"]
    assert cli.main(["install", *options]) == 1
    assert "nowhere is no folder: install Xen's tools first" in capfd.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["uninstall", "--scripts", str(plain.folder)]) == 1
    assert capfd.readouterr().err == (
        f"xen-hotplug: only root can change {plain.folder}; --dry-run shows what would change\n"
    )
    monkeypatch.undo()
    ours = commands.our_scripts()
    assert cli.main(["install", "--scripts", ours, "--no-unit"]) == 1
    assert capfd.readouterr().err == f"xen-hotplug: {ours} is where our scripts come from\n"
