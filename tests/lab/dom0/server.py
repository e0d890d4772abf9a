"""Works in dom0 for the tests: one JSON line comes, one goes.

The channel is a virtio console port, so nothing is polled. A request is ``{"call": NAME,
"arguments": {..}}``, where NAME is one of the functions in ``CALLS``; the answer is
``{"returned": what that returns}``, or ``{"raised": traceback}``.
Only ``run`` starts a process: under emulation one takes a tenth of a second and more.
"""

import contextlib
import functools
import glob
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug import xenstore

PORT = "xen-hotplug.lab"
PAUSE = 0.05  # seconds between two looks at a file
BACKENDS = "/local/domain/0/backend"


def port():
    """The path of our port; udev may still be at work."""
    for _ in range(600):
        for name in glob.glob("/sys/class/virtio-ports/*/name"):
            if read(name).strip() == PORT:
                return "/dev/" + name.split("/")[-2]
        time.sleep(0.1)
    raise SystemExit("there is no channel to the tests")


def read(path):
    with open(path, errors="surrogateescape") as file:
        return file.read()


def run(command, limit):
    """Run a shell command; the status is None if it took too long and was killed.

    What it leaves running in the background goes on and does not delay the answer.
    """
    # Files, not pipes: what stays in the background may keep them open.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        begin = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        seconds = time.monotonic() - begin
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
    return {"status": status, "stdout": texts[0], "stderr": texts[1], "seconds": seconds}


def write(path, text):
    """Write a file, or to a terminal."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
    with open(os.open(path, flags, 0o644), "wb", buffering=0) as file:
        rest = text.encode(errors="surrogateescape")
        while rest:
            rest = rest[file.write(rest) :]


def await_text(path, after, pattern, limit):
    """Wait for text in a file that may not be there yet; what is after an offset, and if it is."""
    give_up = time.monotonic() + limit
    while True:
        text = ""
        if os.path.exists(path):
            with open(path, "rb") as file:
                file.seek(after)
                text = file.read().decode(errors="surrogateescape")
        found = re.search(pattern, text, re.MULTILINE) is not None
        if found or time.monotonic() > give_up:
            return {"text": text, "found": found}
        time.sleep(PAUSE)


@functools.cache
def store():
    """Our own client, as others may use it."""
    client = xenstore.connect()
    client.start_pump()
    return client


def guests():
    """Every domain but dom0: its id by its name, or by that once more if it has none."""
    found = {}
    for domid in store().directory("/local/domain") or ():
        if domid != "0":
            name = store().read(f"/local/domain/{domid}/name")
            found[name.decode() if name else domid] = int(domid)
    return found


def type_into(guest, text):
    """Type on the console of a guest."""
    tty = store().read(f"/local/domain/{guests()[guest]}/console/tty")
    write(tty.decode(), text)


def loops():
    """What every loop device that is in use is bound to."""
    found = {}
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was unbound meanwhile
            found["/dev/" + path.split("/")[3]] = read(path).strip()
    return found


def leftovers():
    """Whatever is there on behalf of guests."""
    backends = [
        f"backend/{kind}/{domid}"
        for kind in ("vbd", "vif")
        for domid in store().directory(f"{BACKENDS}/{kind}") or ()
    ]
    files = glob.glob("/run/xen-hotplug/journal/*") + glob.glob("/run/xen-hotplug/block*")
    return [*guests(), *map(" on ".join, loops().items()), *backends, *files]


def await_nothing(limit):
    """Wait until nothing is there on behalf of guests; what is there nevertheless."""
    await_true(lambda: not leftovers(), limit)
    return leftovers()


def agents():
    """The processes of running agents."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = read(path).split("\0")
            if "agent" in words and any(word.endswith("/xen-hotplug") for word in words):
                found.append(int(path.split("/")[2]))
    return found


def end_agents(number, limit):
    """Send all agents a signal and wait until they have ended; whether they have."""
    for pid in agents():
        os.kill(pid, number)
    return await_true(lambda: not agents(), limit)


def kill_agents_at(pattern):
    """Kill all agents in the moment in which a node of this name is written."""
    doomed = set(agents())

    def written(path, _):
        if re.search(pattern, path):
            for pid in doomed:
                os.kill(pid, signal.SIGKILL)
            doomed.clear()

    with contextlib.suppress(FileNotFoundError):  # of the last time
        store().unwatch(BACKENDS, "killer")
    store().watch(BACKENDS, "killer", written)


def await_path(path, limit):
    """Wait until something of this name is there; whether it is."""
    return await_true(lambda: os.path.lexists(path), limit)


def await_true(condition, limit):
    give_up = time.monotonic() + limit
    while not (true := condition()) and time.monotonic() < give_up:
        time.sleep(PAUSE)
    return true


CALLS = {
    function.__name__: function
    for function in (
        agents, await_nothing, await_path, await_text, end_agents, guests, kill_agents_at,
        leftovers, loops, run, type_into, write,
    )
}  # fmt: skip


def answer(call, arguments):
    try:
        return {"returned": CALLS[call](**arguments)}
    except Exception:  # noqa: BLE001 - the test is told
        return {"raised": traceback.format_exc()}


def main():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(port(), "r+b", buffering=0) as channel:
        channel.write(b'{"ready": true}\n')
        pending = b""
        while True:
            data = channel.read(65536)
            if not data:  # nobody is at the other end
                time.sleep(0.1)
                continue
            pending += data
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                rest = json.dumps(answer(**json.loads(line))).encode() + b"\n"
                while rest:
                    rest = rest[channel.write(rest) :]


main()
