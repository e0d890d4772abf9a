"""The environment of programs of others."""

from __future__ import annotations

from hotplug.kernel.programs import environment


def test_the_posix_locale():
    env = environment(None, {"LANG": "de_AT.UTF-8", "LC_ALL": "C", "LC_TIME": "x", "HOME": "/root"})
    assert env["LANG"] == "POSIX"
    assert env["HOME"] == "/root"
    assert not [name for name in env if name.startswith("LC_")]


def test_sbin_comes_first_and_nothing_is_lost_or_doubled():
    path = environment(None, {"PATH": "/opt/bin:/usr/bin::/sbin"})["PATH"].split(":")
    assert path.index("/usr/sbin") < path.index("/usr/bin") < path.index("/opt/bin")
    assert len(path) == len(set(path))
    assert all(path)


def test_without_a_path():
    assert "/usr/sbin" in environment(None, {})["PATH"]


def test_variables_win():
    env = environment({"XENBUS_PATH": "backend/vbd/1/2", "LANG": "C"}, {"XENBUS_PATH": "old"})
    assert env["XENBUS_PATH"] == "backend/vbd/1/2"
    assert env["LANG"] == "C"
