"""``xen-hotplug savefile``: files in, files out, and nothing left when it fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
import savefiles
from savefiles import Hvm, Legacy, Page, Pv

from hotplug import cli, images
from hotplug.restore import forms, output

CONTENT = Pv().file()


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder with a save file, which is where we are."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in.save"
    path.write_bytes(CONTENT)
    path.chmod(0o640)
    return path


@pytest.fixture
def run(capfd):
    def call(*words):
        status = cli.main(["savefile", *map(str, words)])
        return status, *capfd.readouterr()

    return call


def others(path):
    return sorted(set(os.listdir(path.parent)) - {path.name})


def test_info(run, saved):
    status, said, errors = run("info", saved)
    assert (status, errors) == (0, "")
    assert "test guest: pv, 64 bits, 0.1 MiB, vcpus: 1, saved by Xen 4.17" in said
    assert "14 with data; zero: 7, in holes: 0, page tables: 4" in said
    assert json.loads(run("info", "--json", saved)[1])["pages"]["zero"] == 7
    assert "zero: not counted" in run("info", "--quick", saved)[1]


def test_a_file_whose_name_is_not_utf_8(saved):
    """With Python's strictest way to write, which is that of most locales."""
    code = "import sys; from hotplug import cli; sys.exit(cli.main())"
    name = b"\xff.save"
    done = subprocess.run(
        [sys.executable, "-c", code, "savefile", "compact", saved, name],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert name in done.stdout


def test_a_name_that_no_terminal_should_see(run, saved):
    """A lone surrogate cannot be printed, and an escape sequence should not be."""
    config = {"c_info": {"type": ["pv"], "name": "a\ud800\x1b[2J\u00fc"}}
    saved.write_bytes(Pv().file(config=config))
    status, said, errors = run("info", saved)
    assert (status, errors) == (0, "")
    assert "guest     a??[2J\u00fc: pv, 64 bits" in said
    saved.write_bytes(Pv().file(config={"c_info": {"name": {"no": "string"}}}))
    assert json.loads(run("info", "--json", saved)[1])["name"] is None


def test_verify(run, saved):
    assert run("verify", saved) == (0, f"{saved}: no rule of the format is broken\n", "")
    saved.write_bytes(CONTENT + b"tail")
    assert run("verify", saved)[1].startswith("note: 4 bytes follow the end")
    saved.write_bytes(CONTENT[:500])
    status, said, errors = run("verify", saved)
    assert (status, said) == (1, "")
    assert errors.startswith(f"xen-hotplug: {saved}: truncated: it ends at byte 500")


def test_compact_and_expand(run, saved):
    status, said, errors = run("compact", saved, "out.save")
    assert (status, errors) == (0, "")
    assert said.startswith("out.save: 0.1 MiB, ")
    assert run("expand", "out.save", "again.save")[0] == 0
    assert (saved.parent / "again.save").read_bytes() == CONTENT
    assert run("compact", "--dense", saved, "dense.save")[0] == 0
    assert run("expand", "dense.save", "again.save")[0] == 0
    assert (saved.parent / "again.save").read_bytes() == CONTENT
    assert others(saved) == ["again.save", "dense.save", "out.save"]


def test_onto_itself(run, saved):
    before = saved.stat().st_ino
    assert run("compact", saved, saved)[0] == 0
    assert saved.stat().st_ino != before
    assert run("expand", saved, saved)[0] == 0
    assert saved.read_bytes() == CONTENT
    assert others(saved) == []


def test_in_place(run, saved):
    before = saved.stat()
    assert run("compact", "--in-place", saved)[0] == 0
    assert saved.stat().st_ino == before.st_ino
    assert saved.read_bytes() == CONTENT


def test_mode_and_owner_are_kept(run, saved):
    if os.geteuid() == 0:
        os.chown(saved, 12, 34)
    (saved.parent / "out.save").write_bytes(b"was there")
    assert run("compact", saved, "out.save")[0] == 0
    kept = os.stat("out.save")
    assert (kept.st_mode, kept.st_uid, kept.st_gid) == (
        saved.stat().st_mode, saved.stat().st_uid, saved.stat().st_gid,
    )  # fmt: skip


def test_a_link_stays_a_link(run, saved):
    os.symlink(saved, "link")
    assert run("compact", "link", "link")[0] == 0
    assert os.path.islink("link")
    assert saved.read_bytes() != CONTENT


def test_pipes(saved):
    """Dense through a pipe, as over a network; and the full file out of it again."""
    xen_hotplug = f"{sys.executable} -m hotplug savefile"
    command = f"{xen_hotplug} compact --dense in.save - | {xen_hotplug} expand - - | cmp - in.save"
    tree = os.path.dirname(os.path.dirname(cli.__file__))
    environment = {**os.environ, "PYTHONPATH": tree}
    done = subprocess.run(command, shell=True, capture_output=True, env=environment, check=False)  # noqa: S602 - a pipeline
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("redirection", [">", ">>"])
@pytest.mark.parametrize("form", [[], ["--dense"]])
def test_standard_output_is_a_file_that_others_write_to(run, saved, redirection, form):
    """What was there stays, what follows follows, and zeros are where they belong."""
    if form:
        assert run("compact", *form, saved, saved)[0] == 0
    code = "import sys; from hotplug import cli; sys.exit(cli.main())"
    xen_hotplug = f"{sys.executable} -c '{code}' savefile"
    words = f"printf 'in front' && {xen_hotplug} expand in.save - && printf behind"
    command = f"{{ {words}; }} {redirection} out"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)  # noqa: S602 - as people do it
    assert (done.returncode, done.stderr) == (0, b"")
    assert (saved.parent / "out").read_bytes() == b"in front" + CONTENT + b"behind"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["compact", "in.save"], "name IN and OUT"),
        (["compact", "--in-place", "in.save", "out"], "name IN and OUT"),
        (["compact", "--in-place", "--dense", "in.save"], "needs another file OUT"),
        (["compact", "--in-place", "-"], "changes a file, so name it"),
        (["compact", "in.save", "-"], "a pipe cannot have holes"),
        (["compact"], "required"),
        (["convert", "in.save"], "required"),
        (["expand", "--width", "64", "in.save", "out"], "unrecognized"),
        (["convert", "--width", "16", "in.save", "out"], "invalid choice"),
    ],
)
def test_wrong_usage(run, saved, words, problem):
    status, said, errors = run(*words)
    assert (status, said) == (2, "")
    assert problem in errors
    assert others(saved) == []


@pytest.mark.parametrize("words", [[], ["--dense"]])
def test_what_is_refused_leaves_nothing(run, saved, words):
    saved.write_bytes(Hvm(memory=[Page(0, 5), Page(0, 5)]).file())
    status, said, errors = run("compact", *words, saved, "out.save")
    assert (status, said) == (1, "")
    assert "pfn 0x5 occurs a second time" in errors
    assert f"xen-hotplug: {saved}: at byte " in errors
    assert others(saved) == []


def test_what_is_refused_leaves_what_was_there(run, saved):
    (saved.parent / "out.save").write_bytes(b"old")
    saved.write_bytes(CONTENT[:-1])
    assert run("compact", saved, "out.save")[0] == 1
    assert (saved.parent / "out.save").read_bytes() == b"old"
    assert others(saved) == ["out.save"]


def test_special_files(run, saved, tmp_path):
    os.mkfifo("fifo")
    fd = os.open("fifo", os.O_RDWR)
    try:
        assert "not a regular file, so it cannot have holes" in run("compact", saved, "fifo")[2]
        for words in (["compact", "fifo", "out"], ["compact", "--dense", "fifo", "out"],
                      ["compact", "--in-place", "fifo"], ["convert", "fifo", "out"]):  # fmt: skip
            assert run(*words)[2] == "xen-hotplug: fifo: not a regular file\n"
    finally:
        os.close(fd)
    assert run("info", tmp_path)[2] == f"xen-hotplug: {tmp_path}: not a regular file\n"
    assert run("info", "nothing")[2] == "xen-hotplug: nothing: No such file or directory\n"
    assert run("compact", saved, "no/where")[0] == 1
    assert others(saved) == ["fifo"]


def test_convert(run, saved):
    old = saved.parent / "old.save"
    old.write_bytes(Legacy().xl_file())
    assert run("convert", old, "new.save") == (0, "", "")
    assert "no rule of the format is broken" in run("verify", "new.save")[1]
    old.write_bytes(Legacy(guest="hvm").xend_file())
    status, said, _ = run("convert", old, "new.save")
    assert (status, said) == (0, "It has no configuration: xl restore CONFIG new.save\n")
    assert "today's format already" in run("convert", saved, "new.save")[2]


def test_what_an_old_stream_does_not_tell_can_be_told(run, saved):
    old = saved.parent / "old.save"
    old.write_bytes(Legacy(extended_info=False, word=4, width=4).stream())
    assert run("convert", "--guest", "pv", "--width", "32", old, "new.save")[0] == 0
    facts = json.loads(run("info", "--json", "new.save")[1])
    assert facts["guest"]["type"] == "pv"
    assert facts["guest"]["bits"] == 32
    assert json.loads(run("info", "--json", "--guest", "pv", old)[1])["guest"]["type"] == "pv"


# Writing


class Killed(BaseException):
    """Nothing of ours catches it."""


def full_disk(fd, data, offset):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(run, saved, monkeypatch):
    monkeypatch.setattr(output.os, "pwrite", full_disk)
    status, _, errors = run("compact", saved, "out.save")
    assert (status, errors) == (1, "xen-hotplug: out.save: No space left on device\n")
    assert others(saved) == []


def test_a_disk_that_cannot_be_read(run, saved, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output.os, "pread", broken)
    assert run("verify", saved)[2] == f"xen-hotplug: {saved}: Input/output error\n"


def without_tmpfile(path, flags, *more, **options):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return real_open(path, flags, *more, **options)


real_open = os.open


def test_file_systems_without_unnamed_files(run, saved, monkeypatch):
    monkeypatch.setattr(output.os, "open", without_tmpfile)
    assert run("compact", saved, "out.save")[0] == 0
    assert others(saved) == ["out.save"]
    monkeypatch.setattr(output.os, "pwrite", full_disk)
    assert run("compact", saved, "out.save")[0] == 1
    assert others(saved) == ["out.save"]


@pytest.mark.parametrize("call", ["link", "rename", "fsync", "ftruncate", "fchmod"])
def test_interrupted_at_any_step(saved, monkeypatch, call):
    """Before the last step there is no new file, after it there is the whole one."""

    def interrupted(*_, **__):
        raise Killed

    monkeypatch.setattr(output.os, call, interrupted)
    with pytest.raises(Killed):
        cli.main(["savefile", "compact", str(saved), "out.save"])
    monkeypatch.undo()
    assert others(saved) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_where_files_have_names(saved, monkeypatch, number):
    def ended(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(output.os, "open", without_tmpfile)
    monkeypatch.setattr(output.os, "pwrite", ended)
    child = os.fork()
    if not child:
        status = 0
        try:
            cli.main(["savefile", "compact", str(saved), "out.save"])
        except SystemExit as end:
            status = end.code
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert others(saved) == []


def test_nobody_else_may_read_what_is_not_complete(saved, monkeypatch):
    modes = []

    def watched(image, out, form, **_):
        modes.append(os.fstat(out.fd).st_mode & 0o777)

    monkeypatch.setattr(forms, "rewrite", watched)
    saved.chmod(0o644)
    cli.main(["savefile", "compact", str(saved), "out.save"])
    assert modes == [0o600]


def test_an_owner_that_cannot_be_kept(saved, monkeypatch):
    """Then a group or others that have nothing to do with it may not read it."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "no")

    saved.chmod(0o664)
    monkeypatch.setattr(output.os, "fchown", refuse)
    assert cli.main(["savefile", "compact", str(saved), "out.save"]) == 0
    assert os.stat("out.save").st_mode & 0o777 == 0o600


def access_list(*entries):
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    return struct.pack("<I", 2) + packed


NOBODY_ELSE = 0xFFFFFFFF
# The owner reads and writes, and so does user 1000; the file's group may do nothing.
LISTED = access_list(
    (1, 6, NOBODY_ELSE), (2, 6, 1000), (4, 0, NOBODY_ELSE), (16, 6, NOBODY_ELSE),
    (32, 0, NOBODY_ELSE),
)  # fmt: skip


def test_an_access_list_is_kept(run, saved):
    os.setxattr(saved, output.ACCESS_LIST, LISTED)
    assert run("compact", saved, "out.save")[0] == 0
    assert os.getxattr("out.save", output.ACCESS_LIST) == LISTED
    assert os.stat("out.save").st_mode & 0o777 == 0o660


def test_an_access_list_that_cannot_be_kept(run, saved, monkeypatch):
    """Its mask in the mode would be what the group may do, which may do nothing."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    os.setxattr(saved, output.ACCESS_LIST, LISTED)
    monkeypatch.setattr(output.os, "setxattr", refuse)
    assert run("compact", saved, "out.save")[0] == 0
    assert os.stat("out.save").st_mode & 0o777 == 0o600


def test_the_folder_lets_nobody_else_read_it(run, saved):
    os.setxattr(saved.parent, "system.posix_acl_default", LISTED)
    assert run("compact", saved, "out.save")[0] == 0
    assert output.ACCESS_LIST not in os.listxattr("out.save")


def test_what_comes_through_a_socket_is_ours_alone(saved):
    """A socket's mode is 0777, and sshd may give a command one to read from."""
    ours, theirs = socket.socketpair()
    code = "import sys; from hotplug import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "savefile", "expand", "-", "out.save"]
    with ours, subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL) as process:
        theirs.close()
        ours.sendall(CONTENT)
        ours.close()
        assert process.wait() == 0
    assert os.stat("out.save").st_mode & 0o777 == 0o600


def test_a_name_as_long_as_it_may_be(run, saved):
    name = "\xfc" * 127
    saved.rename(name)
    assert run("compact", name, name)[0] == 0
    assert os.listdir() == [name]


# A terminal


def test_the_bar(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(images, "EVERY", -1.0)
    assert cli.main(["savefile", "compact", str(saved), "out.save"]) == 0
    errors = capsys.readouterr().err
    assert "] 100%" in errors
    assert errors.endswith("\r")
    percents = [int(part.split("%")[0]) for part in errors.split("]")[1:]]
    assert percents == sorted(percents)


def test_no_bar_where_nobody_sees_it(run, saved, monkeypatch):
    monkeypatch.setattr(images, "EVERY", -1.0)
    assert run("compact", saved, "out.save")[2] == ""


@pytest.mark.parametrize("action", ["info", "verify", "compact", "expand", "convert"])
def test_help(run, action):
    status, said, _ = run(action, "--help")
    assert status == 0
    assert "usage: xen-hotplug savefile " + action in said
    assert action in run("--help")[1]


def test_help_tells_the_whole_release(run):
    assert "from one of Xen 4.5 or older" in " ".join(run("--help")[1].split())


def test_a_sample_is_what_it_says():
    assert sum(one.data == savefiles.ZERO for one in savefiles.pv_memory()
               if savefiles.has_data(one.kind)) == 7  # fmt: skip
