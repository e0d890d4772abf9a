"""The service manager's side of ``agent.notify``: what arrives, and what is taken over."""

from __future__ import annotations

import os
import socket
import time

import pytest

from hotplug.agent import notify
from hotplug.errors import ConfigError


@pytest.fixture(params=["path", "abstract"])
def manager(request, monkeypatch, tmp_path):
    """A socket like the service manager's, and its address in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "path":
            receiver.bind(str(tmp_path / "notify"))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        else:
            receiver.bind(f"\0notify-test-{os.getpid()}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@notify-test-{os.getpid()}")
        receiver.setblocking(False)
        yield receiver


def test_ready(manager):
    notify.ready("waiting for devices")
    assert manager.recv(4096) == b"READY=1\nSTATUS=waiting for devices"


def test_reloading_tells_when(manager):
    before = time.monotonic_ns() // 1000
    notify.reloading()
    after = time.monotonic_ns() // 1000

    first, second = manager.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    name, _, value = second.partition(b"=")
    assert name == b"MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_stopping_and_alive(manager):
    notify.stopping()
    notify.alive()
    assert manager.recv(4096) == b"STOPPING=1"
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_without_a_manager_nothing_is_sent(manager, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.ready()
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_a_manager_that_is_gone_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify.ready()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
)
def test_watchdog_interval(monkeypatch, environment, seconds):
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_interval() == seconds


def pass_socket(monkeypatch, descriptor, pid=None):
    """Set the environment of a process that was started with one socket."""
    monkeypatch.setattr(notify, "FIRST_DESCRIPTOR", descriptor)
    monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "control")


def test_listen_sockets(monkeypatch, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        listener.set_inheritable(True)
        pass_socket(monkeypatch, listener.detach())

        (passed,) = notify.listen_sockets()
        with passed:
            assert passed.getsockname() == str(tmp_path / "control")
            assert not passed.get_inheritable()
    assert not [name for name in os.environ if name.startswith("LISTEN_")]


def test_sockets_for_another_process_are_left_alone(monkeypatch):
    pass_socket(monkeypatch, 1_000_000, pid=1)
    assert notify.listen_sockets() == []


def test_no_socket_activation():
    assert notify.listen_sockets() == []


def test_a_descriptor_that_is_no_socket(monkeypatch):
    with open(os.devnull, "rb") as file:
        pass_socket(monkeypatch, file.fileno())
        with pytest.raises(ConfigError, match="is no socket"):
            notify.listen_sockets()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),  # does not listen
        (socket.AF_INET, socket.SOCK_STREAM),
    ],
)
def test_a_socket_of_another_kind(monkeypatch, family, kind):
    descriptor = socket.socket(family, kind).detach()
    pass_socket(monkeypatch, descriptor)
    with pytest.raises(ConfigError, match="ListenSequentialPacket"):
        notify.listen_sockets()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
