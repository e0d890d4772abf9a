"""``make install`` and ``make uninstall``: what they put where, and that it works from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hotplug.handlers import table

TREE = Path(__file__).parents[2]
SCRIPTS = table.SCRIPTS | {"block-drbd-probe", "qemu-ifup", "vif-setup"}


def make(*arguments):
    # MAKEFLAGS of a make that runs the tests are not meant for this one.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=TREE,
        check=True,
        stdout=subprocess.PIPE,
        env=environ,
    )


def files(directory):
    """The files below a directory, relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def run(*command, **environ):
    """(exit status, stdout, stderr) of a program in a bare environment."""
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", **environ},
        cwd="/",
        check=False,
    )
    return finished.returncode, finished.stdout.decode(), finished.stderr.decode()


@pytest.fixture(scope="module")
def staged():
    """What a packager gets: everything below DESTDIR."""
    with tempfile.TemporaryDirectory(prefix="xh-") as directory:
        make("install", f"DESTDIR={directory}", "PREFIX=/opt/xen")
        yield Path(directory)


@pytest.fixture(scope="module")
def prefix():
    """What an administrator gets: everything where it will be used."""
    with tempfile.TemporaryDirectory(prefix="xh-") as directory:
        make("install", f"PREFIX={directory}", f"SYSCONFDIR={directory}/etc")
        yield Path(directory)


def test_every_module_is_there_and_nothing_else(staged):
    installed = staged / "opt/xen/lib/xen-hotplug/hotplug"
    modules = {name for name in files(TREE / "hotplug") if name.endswith(".py")}
    found = {name for name in files(installed) if "__pycache__" not in name}
    programs = {f"client/scripts/{script}" for script in SCRIPTS} | {"client/libxl-save-helper"}
    assert found == modules | programs | {"restore/_native.abi3.so"}


def test_the_scripts_can_be_executed_and_are_small(staged):
    for script in SCRIPTS:
        status = (staged / "opt/xen/lib/xen-hotplug/hotplug/client/scripts" / script).stat()
        assert status.st_mode & 0o777 == 0o755
        assert status.st_size < 20_000


def test_what_is_outside_the_library(staged):
    outside = {name for name in files(staged) if not name.startswith("opt/xen/lib/xen-hotplug/")}
    assert outside == {
        "etc/xen-hotplug.toml",
        "opt/xen/bin/xen-hotplug",
        "opt/xen/lib/systemd/system/xen-hotplug.service",
        "opt/xen/lib/systemd/system/xen-hotplug.socket",
    }


def test_nothing_knows_the_staging_directory(staged):
    for name in files(staged):
        if not name.endswith(".pyc"):  # the import corrects the path in there
            assert os.fsencode(staged) not in (staged / name).read_bytes(), name


def test_the_final_paths_are_compiled_in(staged):
    scripts = staged / "opt/xen/lib/xen-hotplug/hotplug/client/scripts"
    assert b"/opt/xen/lib/xen-hotplug\0" in (scripts / "block").read_bytes()
    unit = (staged / "opt/xen/lib/systemd/system/xen-hotplug.service").read_text()
    assert "ExecStart=/opt/xen/bin/xen-hotplug agent\n" in unit
    rules = (staged / "opt/xen/lib/xen-hotplug/xen-hotplug.rules").read_text()
    assert f'RUN+="{Path("/") / scripts.relative_to(staged)}/xen-hotplug-cleanup"' in rules
    assert "/usr/local" not in rules
    assert (
        'sys.path.append("/opt/xen/lib/xen-hotplug")'
        in (staged / "opt/xen/bin/xen-hotplug").read_text()
    )


def test_the_command_works(prefix):
    status, version, _ = run(prefix / "bin/xen-hotplug", "--version")
    assert status == 0
    assert version.startswith("xen-hotplug ")

    status, scripts, _ = run(prefix / "bin/xen-hotplug", "scripts-dir")
    assert status == 0
    assert files(Path(scripts.rstrip("\n"))) == SCRIPTS


def test_the_libraries_come_along(prefix):
    code = "import sys; sys.path.append(sys.argv[1]); import psutil, pyudev; print(pyudev.__file__)"
    library = prefix / "lib/xen-hotplug"
    launcher = (prefix / "bin/xen-hotplug").read_text().splitlines()[0]
    status, where, _ = run(launcher[2:].split()[0], "-I", "-S", "-c", code, library)
    assert status == 0
    assert where.startswith(str(library))


def test_the_save_helper_hands_on_what_is_not_its_work(prefix, tmp_path):
    stock = tmp_path / "stock"
    stock.write_text('#!/bin/sh\necho "$@"\n')
    stock.chmod(0o755)
    ours = prefix / "lib/xen-hotplug/libxl-save-helper"
    words = ("--save-domain", "9", "-1", "7", "0", "136", "0")
    found = run(ours, *words, XEN_HOTPLUG_STOCK_SAVE_HELPER=str(stock))
    assert found == (0, " ".join(words) + "\n", "")


def test_xc_restore_hands_on_what_is_not_its_work(prefix, tmp_path):
    """There is no Xen that it knows below the tests."""
    stock = tmp_path / "stock"
    stock.write_text('#!/bin/sh\necho "$@"\n')
    stock.chmod(0o755)
    words = ("4", "7", "1", "2", "0", "1", "0")
    found = run(
        prefix / "lib/xen-hotplug/xc_restore", *words, XEN_HOTPLUG_STOCK_XC_RESTORE=str(stock)
    )
    assert found == (0, " ".join(words) + "\n", "")


def test_the_converter_is_there(prefix):
    status, said, stderr = run(prefix / "lib/xen-hotplug/convert-legacy-stream", "--help")
    assert (status, stderr) == (0, "")
    assert said.startswith(f"usage: {prefix}/lib/xen-hotplug/convert-legacy-stream")


def test_the_save_helper_has_its_loops_in_c(prefix):
    launcher = (prefix / "bin/xen-hotplug").read_text().splitlines()
    code = "\n".join((*launcher[1:3], "from hotplug.restore.loops import native; print(native)"))
    status, module, stderr = run(*launcher[0][2:].split(), "-c", code)
    assert (status, stderr) == (0, "")
    assert str(prefix) in module
    assert "_native" in module


@pytest.mark.parametrize("copied", [False, True], ids=["in-place", "copied"])
def test_a_script_does_its_work_where_no_agent_answers(prefix, tmp_path, copied):
    script = prefix / "lib/xen-hotplug/hotplug/client/scripts/block"
    if copied:
        copy = tmp_path / "block"
        copy.write_bytes(script.read_bytes())
        copy.chmod(0o755)
        script = copy
    settings = tmp_path / "settings.toml"
    settings.write_text(f'log_file = "{tmp_path}/log"\nsyslog = "{tmp_path}/syslog"\n')
    environ = {
        "XEN_HOTPLUG_RUNDIR": str(tmp_path / "run"),
        "XEN_HOTPLUG_CONFIG": str(settings),
        "XENBUS_PATH": "backend/vbd/5/51712",
    }
    status, stdout, stderr = run(script, "dance", **environ)
    assert status == 1
    assert stdout == ""
    assert "Invalid command: dance" in stderr


def test_units(tmp_path):
    """systemd understands them; where the command is does not matter to it here."""
    for unit in ("xen-hotplug.service", "xen-hotplug.socket"):
        text = (TREE / "etc" / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/xen-hotplug", "/bin/true"))
    finished = subprocess.run(
        ["systemd-analyze", "verify", *tmp_path.iterdir()], capture_output=True, check=False
    )
    assert (finished.returncode, finished.stderr.decode()) == (0, "")


def test_uninstall_refuses_while_a_copy_is_in_use(prefix):
    scripts = prefix / "etc/xen/scripts"
    scripts.mkdir(parents=True)
    copy = scripts / "block"
    copy.write_bytes((prefix / "lib/xen-hotplug/hotplug/client/scripts/block").read_bytes())
    (scripts / "block.stock").write_text("#!/bin/sh\n")
    before = files(prefix)
    finished = subprocess.run(
        ["make", "uninstall", f"PREFIX={prefix}", f"SYSCONFDIR={prefix}/etc"],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert f"Run `xen-hotplug uninstall' first; still in use: {copy} " in finished.stderr
    assert files(prefix) == before
    shutil.rmtree(scripts.parent)


# The last two take their installation away.


def test_settings_are_kept(prefix):
    settings = prefix / "etc/xen-hotplug.toml"
    assert settings.read_bytes() == (TREE / "etc/xen-hotplug.toml").read_bytes()
    settings.write_text("deadline = 20.0\n")
    make("install", f"PREFIX={prefix}", f"SYSCONFDIR={prefix}/etc")
    assert settings.read_text() == "deadline = 20.0\n"

    make("uninstall", f"PREFIX={prefix}", f"SYSCONFDIR={prefix}/etc")
    assert files(prefix) == {"etc/xen-hotplug.toml"}


def test_uninstall_leaves_nothing_of_ours_and_all_of_others(staged):
    (staged / "opt/xen/bin/other").touch()
    (staged / "opt/xen/lib/systemd/system/other.service").touch()
    make("uninstall", f"DESTDIR={staged}", "PREFIX=/opt/xen")
    assert files(staged) == {"opt/xen/bin/other", "opt/xen/lib/systemd/system/other.service"}
