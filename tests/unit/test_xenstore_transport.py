from __future__ import annotations

import os
import socket

import pytest

from hotplug import xenstore
from hotplug.xenstore import transport
from hotplug.xenstore.errors import StoreConnectionError


@pytest.fixture
def exists(monkeypatch):
    """The paths that exist."""
    paths = set()
    monkeypatch.setattr(os.path, "exists", paths.__contains__)
    return paths


def test_the_path_in_the_environment_comes_first(exists):
    exists |= {"/run/xenstored/socket", "/dev/xen/xenbus"}
    environ = {"XENSTORED_PATH": "/else/where", "XENSTORED_RUNDIR": "/x"}
    assert transport.locate(environ) == "/else/where"


def test_then_the_socket_in_the_run_directory(exists):
    exists |= {"/run/xenstored/socket", "/x/socket", "/dev/xen/xenbus"}
    assert transport.locate({"XENSTORED_RUNDIR": "/x"}) == "/x/socket"
    assert transport.locate({}) == "/run/xenstored/socket"


def test_then_the_device(exists):
    exists |= {"/proc/xen/xenbus"}
    assert transport.locate({}) == "/proc/xen/xenbus"
    exists |= {"/dev/xen/xenbus"}
    assert transport.locate({}) == "/dev/xen/xenbus"


def test_where_there_is_nothing_the_socket_is_what_is_missing(exists, monkeypatch):
    assert transport.locate({}) == "/run/xenstored/socket"
    monkeypatch.setenv("XENSTORED_PATH", "/nonexistent/socket")
    with pytest.raises(StoreConnectionError, match="at /nonexistent/socket: No such file"):
        xenstore.connect()


def test_a_socket_that_nobody_listens_on(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        with pytest.raises(StoreConnectionError, match="Connection refused"):
            xenstore.connect(path)


def test_what_is_no_socket_is_the_device(tmp_path):
    path = str(tmp_path / "xenbus")
    os.mkfifo(path)
    connected = transport.connect(path, 30.0)
    try:
        assert not connected.pipelines
        assert connected.payload_max == 4080
        assert not os.get_inheritable(connected.fileno())
    finally:
        connected.close()


def test_the_socket_is_closed_on_exec(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connected = transport.connect(path, 30.0)
        try:
            assert not os.get_inheritable(connected.fileno())
        finally:
            connected.close()
