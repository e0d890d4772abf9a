"""Runs commands in dom0 for the tests: one JSON line comes, one goes.

The channel is a virtio console port, so nothing is polled. A request is ``{"command": .., "limit":
seconds}``, its answer ``{"status": .., "stdout": .., "stderr": .., "seconds": ..}``. A command that
takes longer than its limit is killed with all that it started; its status is then ``null``.
What a command leaves running in the background goes on and does not delay the answer.
"""

import glob
import json
import os
import signal
import subprocess
import tempfile
import time

PORT = "xen-hotplug.lab"


def port():
    """The path of our port; udev may still be at work."""
    for _ in range(600):
        for name in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(name) as file:
                if file.read().strip() == PORT:
                    return "/dev/" + name.split("/")[-2]
        time.sleep(0.1)
    raise SystemExit("there is no channel to the tests")


def run(command, limit):
    """Run a shell command."""
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
                request = json.loads(line)
                answer = json.dumps(run(request["command"], request["limit"])) + "\n"
                rest = answer.encode()
                while rest:
                    rest = rest[channel.write(rest) :]


main()
