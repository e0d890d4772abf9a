"""The thin client, byte for byte, against an agent that the test plays itself.

The build is the project's own, with two settings of the test's: where the package is, and for
the second build how long the client waits and which Python it knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hotplug.client import wire

TREE = Path(__file__).parents[2]
PATIENCE = 20  # seconds; nothing here takes one
ONESHOT_STATUS = 42

# Stands in for the one-shot path: tells what it was given.
ONESHOT = f"""
import json, os, sys
def main(argv):
    seen = {{
        "argv": [os.fsencode(word).decode("latin1") for word in argv],
        "environ": {{k.decode("latin1"): v.decode("latin1") for k, v in os.environb.items()}},
        "path": sys.path, "isolated": sys.flags.isolated, "site": sys.flags.no_site,
        "utf8": sys.flags.utf8_mode, "executable": sys.executable,
        "standard": [os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)],
    }}
    print(json.dumps(seen), file=sys.stderr)
    return {ONESHOT_STATUS}
def report(argv):
    if "REPORTED" in os.environ:
        with open(os.environ["REPORTED"], "w") as file:
            json.dump(argv, file)
    return 1
"""


def build(directory, site, interpreter, *c_args):
    """Build `block` like the wheel does; its path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where ninja is
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    options = [f"-Dsite={site}", f"-Dinterpreter={interpreter}", f"-Dc_args={','.join(c_args)}"]
    for command in (
        [*meson, "setup", directory, TREE, *options],
        [*meson, "compile", "-C", directory, "block"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"PATH": path})
    return directory / "hotplug" / "client" / "block"


def make_site(directory, client):
    """A site directory with a stand-in package, the client where it belongs; the client's path."""
    package = directory / "hotplug" / "client"
    (package / "scripts").mkdir(parents=True)
    for module in (directory / "hotplug" / "__init__.py", package / "__init__.py"):
        module.touch()
    (package / "oneshot.py").write_text(ONESHOT)
    return Path(shutil.copy(client, package / "scripts" / "block"))


@pytest.fixture(scope="module")
def folder():
    """Short, because a socket's path must be, and not below the tree."""
    with tempfile.TemporaryDirectory(prefix="xh-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def built(folder):
    """The client outside any package; its own would be in compiled-in/."""
    return build(folder / "build", folder / "compiled-in", sys.executable)


@pytest.fixture(scope="module")
def client(folder, built):
    """The client inside a package."""
    return make_site(folder / "site", built)


@pytest.fixture(scope="module")
def hasty(folder):
    """A client that waits for a second only and knows a Python that does not exist."""
    built = build(folder / "hasty", folder / "site", "/nonexistent/python3", "-DWAIT_SECONDS=1")
    return make_site(folder / "hasty-site", built)


@pytest.fixture
def rundir(folder):
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        yield directory


@pytest.fixture
def listener(rundir):
    """The agent's socket. Nobody answers but the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.bind(f"{rundir}/{wire.SOCKET}")
        agent.listen()
        agent.settimeout(PATIENCE)
        yield agent


@pytest.fixture
def start():
    """Run a program like libxl runs a script. None survives the test."""
    started = []

    def run(program, rundir, *arguments, environ=None, **options):
        defaults = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": {"XEN_HOTPLUG_RUNDIR": str(rundir), "PATH": os.environ["PATH"]},
        }
        defaults["env"].update(environ or {})
        started.append(subprocess.Popen([program, *arguments], **(defaults | options)))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        with process:  # closes its pipes
            pass


def finish(process):
    """(exit status, stderr); nothing is ever said on stdout."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert stdout == b""
    return process.returncode, stderr


def converse(process, listener, reply):
    """Be the agent for one request: the packet, then what came of the reply."""
    agent, _ = listener.accept()
    with agent:
        agent.settimeout(PATIENCE)
        packet = agent.recv(2 * wire.MAX_PACKET)
        agent.send(reply)
        return packet, finish(process)


def strace(log, *options):
    """A command prefix that notes system calls, and can make them fail."""
    return ["strace", "-f", "-o", str(log), *options]


def call_names(log):
    lines = [line.split(maxsplit=1)[1] for line in Path(log).read_text().splitlines()]
    return [line.partition("(")[0] for line in lines if "(" in line]


# What the agent gets


def test_request_is_what_python_would_pack(client, rundir, listener, tmp_path, start):
    argv = [b"/etc/xen/scripts/bl\xf6ck", b"add", b"", b"type_if=vif; touch /f"]
    values = {name: f"value of {name}=\xe4".encode("latin1") for name in wire.VARIABLES}
    process = start(
        argv[0],
        rundir,
        *argv[1:],
        executable=client,
        cwd=tmp_path,
        environ={**values, "XENBUS": b"no", "XENBUS_PATHS": b"no", "HOME": b"/root"},
    )
    packet, _ = converse(process, listener, b"\0")

    variables = {name.encode(): value for name, value in values.items()}
    expected = wire.Request(b"run", os.fsencode(tmp_path), tuple(argv), variables)
    assert wire.unpack_request(packet) == expected
    assert packet == wire.pack_request(expected)


def test_only_variables_that_are_set_are_sent(client, rundir, listener, start):
    environ = {"XENBUS_PATH": "backend/vbd/5/51712", "netdev": ""}
    packet, _ = converse(start(client, rundir, "remove", environ=environ, cwd="/"), listener, b"\0")
    request = wire.unpack_request(packet)
    assert request.variables == {b"XENBUS_PATH": b"backend/vbd/5/51712", b"netdev": b""}
    assert request.cwd == b"/"


def test_a_working_directory_that_is_gone(client, rundir, listener, tmp_path, start):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'rmdir "$PWD" && exec "$0" add'
    process = start("sh", rundir, "-c", command, client, cwd=gone)
    packet, _ = converse(process, listener, b"\0")
    assert wire.unpack_request(packet).cwd == b""


def test_the_largest_request(client, rundir, listener, start):
    empty = wire.Request(b"run", b"/", (os.fsencode(client), b""), {})
    room = wire.MAX_PACKET - len(wire.pack_request(empty))
    packet, _ = converse(start(client, rundir, "x" * room, cwd="/"), listener, b"\0")
    assert len(packet) == wire.MAX_PACKET

    process = start(client, rundir, "x" * (room + 1), cwd="/")
    assert finish(process) == (
        1,
        b"%b: the arguments and variables are too long for one packet to the agent\n"
        % os.fsencode(client),
    )


def test_too_many_arguments(client, rundir, start):
    status, text = finish(start(client, rundir, *["x"] * 64))
    assert status == 1
    assert b"more than 64 words" in text


# What comes of the answer


@pytest.mark.parametrize("status", [0, 1, 3, 127, 255])
def test_status(client, rundir, listener, status, start):
    _, result = converse(start(client, rundir, "add"), listener, bytes((status,)))
    assert result == (status, b"")


@pytest.mark.parametrize(
    ("text", "stderr"),
    [
        (b"/srv/a.img does not exist", b"/srv/a.img does not exist\n"),
        (b"with its newline\n", b"with its newline\n"),
        (b"two\nlines", b"two\nlines\n"),
        (b"odd \xff\0bytes", b"odd \xff\0bytes\n"),
        (b"x" * (wire.MAX_PACKET - 1), b"x" * (wire.MAX_PACKET - 1) + b"\n"),
    ],
    ids=["plain", "newline", "lines", "bytes", "longest"],
)
def test_text(client, rundir, listener, text, stderr, start):
    _, result = converse(start(client, rundir, "add"), listener, wire.pack_reply(1, text))
    assert result == (1, stderr)


def test_a_refusal_is_told_even_if_the_request_was_never_read(client, rundir, listener, start):
    process = start(client, rundir, "add")
    agent, _ = listener.accept()
    agent.send(wire.pack_reply(1, b"only root may ask"))
    agent.close()
    assert finish(process) == (1, b"only root may ask\n")


def test_a_request_after_the_refusal(client, rundir, listener, tmp_path, start):
    """The agent has closed before the client sends: EPIPE, and the answer is in the queue."""
    command = strace(tmp_path / "log", "-e", "inject=sendto:delay_enter=300000")
    process = start(command[0], rundir, *command[1:], client, "add")
    agent, _ = listener.accept()
    agent.send(wire.pack_reply(1, b"only root may ask"))
    agent.close()
    assert finish(process) == (1, b"only root may ask\n")
    assert "EPIPE" in (tmp_path / "log").read_text()


def test_nobody_reads_stderr(client, rundir, listener, start):
    """The status still counts; a death by SIGPIPE would tell the toolstack nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(client, rundir, "add", stderr=writing)
    os.close(writing)
    agent, _ = listener.accept()
    with agent:
        agent.recv(wire.MAX_PACKET)
        agent.send(wire.pack_reply(3, b"in use"))
        assert process.wait(PATIENCE) == 3
        process.stdout.close()


def test_standard_descriptors_closed(client, rundir, listener, start):
    """What is for stderr must not go into the socket, that got its number."""
    process = start("sh", rundir, "-c", 'exec "$0" add <&- >&- 2>&-', client)
    agent, _ = listener.accept()
    with agent:
        agent.recv(wire.MAX_PACKET)
        agent.send(wire.pack_reply(3, b"in use"))
        assert agent.recv(wire.MAX_PACKET) == b""
    assert finish(process) == (3, b"")


def test_the_agent_sees_that_the_client_is_killed(client, rundir, listener, start):
    process = start(client, rundir, "add")
    agent, _ = listener.accept()
    with agent:
        agent.settimeout(PATIENCE)
        agent.recv(wire.MAX_PACKET)
        process.kill()
        assert agent.recv(wire.MAX_PACKET) == b""
    assert finish(process) == (-signal.SIGKILL, b"")


# What it does and does not do


def test_the_system_calls_of_an_event(client, rundir, listener, tmp_path, start):
    """No process, no file, no memory: the list is the client's whole cost."""
    command = strace(tmp_path / "log")
    process = start(command[0], rundir, *command[1:], client, "add")
    converse(process, listener, b"\1busy")
    assert call_names(tmp_path / "log") == [
        "execve",
        "clock_gettime",
        "getcwd",
        "socket",
        "setsockopt",
        "connect",
        "sendto",
        "clock_gettime",
        "ppoll",
        "recvfrom",
        "rt_sigprocmask",
        "write",
        "exit_group",
    ]


@pytest.mark.parametrize("call", ["connect", "sendto", "ppoll", "recvfrom", "write"])
def test_interrupted(client, rundir, listener, tmp_path, call, start):
    command = strace(tmp_path / "log", "-e", f"inject={call}:error=EINTR:when=1")
    process = start(command[0], rundir, *command[1:], client, "add")
    _, result = converse(process, listener, b"\1busy")
    assert result == (1, b"busy\n")
    assert "INJECTED" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        ("socket", "EMFILE", "a socket cannot be made: error 24"),
        ("connect", "EACCES", "control: the agent cannot be reached: permission denied"),
        ("sendto", "ENOBUFS", "the request cannot be sent to the agent: error 105"),
        ("recvfrom", "ENOMEM", "the agent's answer cannot be received: error 12"),
    ],
)
def test_what_the_system_refuses(client, rundir, listener, tmp_path, call, error, text, start):
    command = strace(tmp_path / "log", "-e", f"inject={call}:error={error}")
    process = start(command[0], rundir, *command[1:], client, "add")
    if call in ("sendto", "recvfrom"):
        agent, _ = listener.accept()
        with agent:
            agent.send(b"\0")
            status, stderr = finish(process)
    else:
        status, stderr = finish(process)
    assert status == 1
    assert stderr.startswith(os.fsencode(client) + b": ")
    assert stderr.endswith(text.encode() + b"\n")


def test_a_socket_of_another_kind(client, rundir, start):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.bind(f"{rundir}/{wire.SOCKET}")
        agent.listen()
        status, text = finish(start(client, rundir, "add"))
    assert status == 1
    assert text == f"{client}: {rundir}/control: the agent cannot be reached: error 91\n".encode()


def test_a_runtime_directory_with_too_long_a_name(client, start):
    longest = "/" + "x" * (107 - len("/control") - 1)
    assert finish(start(client, longest, "add"))[0] == ONESHOT_STATUS

    status, text = finish(start(client, longest + "x", "add"))
    assert status == 1
    assert text.endswith(b"x/control: the path is too long for a socket\n")


# Where the agent is slow


def test_no_answer_in_time(hasty, rundir, listener, tmp_path, start):
    """The agent may be at work, so nobody else may begin, but somebody reports it."""
    reported = tmp_path / "reported"
    process = start(hasty, rundir, "add", environ={"REPORTED": str(reported)})
    agent, _ = listener.accept()
    with agent:
        status, text = finish(process)
    assert status == 1
    sentence = "the agent has not answered for 1 seconds; it may still be at work"
    assert text.decode() == f"{hasty}: {sentence}\n"
    assert json.loads(reported.read_text()) == [sentence, str(hasty), "add"]


def test_a_full_backlog(hasty, rundir, start):
    with contextlib.ExitStack() as sockets:
        agent = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        agent.bind(f"{rundir}/{wire.SOCKET}")
        agent.listen(0)
        waiting = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting.connect(f"{rundir}/{wire.SOCKET}")
        status, text = finish(start(hasty, rundir, "add"))
    assert status == 1
    assert b"has not answered for 1 seconds" in text


# Where there is no agent


def oneshot(process):
    """What the stand-in was given."""
    status, stderr = finish(process)
    assert status == ONESHOT_STATUS, stderr
    return json.loads(stderr.splitlines()[-1])


def test_oneshot_has_standard_descriptors(client, folder, start):
    """Also if our caller has not: else its own files would get their numbers."""
    seen = oneshot(start("sh", folder, "-c", 'exec "$0" <&- >&-', client))
    assert seen["standard"][:2] == ["/dev/null", "/dev/null"]
    assert seen["standard"][2].startswith("pipe:")


def test_no_socket(client, rundir, start):
    assert oneshot(start(client, rundir, "add"))["argv"] == [str(client), "add"]


def test_a_socket_that_nobody_serves(client, rundir, listener, start):
    listener.close()
    assert oneshot(start(client, rundir, "remove"))["argv"] == [str(client), "remove"]


@pytest.mark.parametrize("read", [True, False], ids=["closed", "reset"])
def test_the_agent_dies(client, rundir, listener, read, start):
    process = start(client, rundir, "add")
    agent, _ = listener.accept()
    if read:
        agent.recv(wire.MAX_PACKET)
    agent.close()
    assert oneshot(process)["argv"] == [str(client), "add"]


def test_oneshot_has_the_same_words_and_environment(client, folder, rundir, tmp_path, start):
    (tmp_path / "json.py").write_text("raise SystemExit('the working directory is no library')")
    environ = {
        "XENBUS_PATH": b"backend/vbd/5/51712",
        "odd": b"\xff",
        "PYTHONPATH": os.fsencode(tmp_path),
        "PYTHONHOME": b"/nonexistent",
        "LC_ALL": b"C",
    }
    argv = [b"/etc/xen/scripts/bl\xf6ck", b"add", b"", b"-c", b"a b\xff"]
    process = start(argv[0], rundir, *argv[1:], executable=client, environ=environ, cwd=tmp_path)
    seen = oneshot(process)

    assert [word.encode("latin1") for word in seen["argv"]] == argv
    for name, value in environ.items():
        assert seen["environ"][name].encode("latin1") == value
    assert seen["path"][-1] == str(folder / "site")
    assert str(tmp_path) not in seen["path"]
    assert (seen["isolated"], seen["site"], seen["utf8"]) == (1, 1, 1)
    assert seen["executable"] == sys.executable


def test_a_link_finds_the_package(client, folder, rundir, tmp_path, start):
    link = tmp_path / "block"
    link.symlink_to(client)
    assert oneshot(start(link, rundir, "add"))["path"][-1] == str(folder / "site")


def test_a_copy_finds_the_package_it_was_built_for(built, folder, rundir, tmp_path, start):
    copy = Path(shutil.copy(built, tmp_path / "block-tap"))
    status, text = finish(start(copy, rundir, "add"))
    assert status == 1
    assert (
        text
        == (
            f"{copy}: no agent answers, and its Python package is not in {folder}/compiled-in\n"
        ).encode()
    )

    make_site(folder / "compiled-in", built)
    assert oneshot(start(copy, rundir, "add"))["path"][-1] == str(folder / "compiled-in")


def test_another_python_if_its_own_is_gone(hasty, rundir, start):
    assert oneshot(start(hasty, rundir, "add"))["executable"] == "/usr/bin/python3"


def without_python(log, *paths):
    """A command prefix under which these programs cannot be executed."""
    filters = [option for path in paths for option in ("-P", path)]
    return strace(log, *filters, "-e", "inject=execve:error=ENOENT")


def test_a_python_in_path_is_the_last_resort(client, rundir, tmp_path, start):
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    command = without_python(tmp_path / "log", sys.executable, "/usr/bin/python3")
    environ = {"PATH": f"relative:/nonexistent::{python.parent}:/usr/bin"}
    process = start(shutil.which("strace"), rundir, *command[1:], client, "add", environ=environ)
    assert oneshot(process)["executable"] == str(python)


def test_no_python_at_all(client, rundir, tmp_path, start):
    command = without_python(tmp_path / "log", sys.executable, "/usr/bin/python3")
    environ = {"PATH": f"{tmp_path}:relative"}
    process = start(shutil.which("strace"), rundir, *command[1:], client, "add", environ=environ)
    status, text = finish(process)
    assert status == 1
    assert b"there is no Python to do its work" in text
    assert os.fsencode(sys.executable) in text
