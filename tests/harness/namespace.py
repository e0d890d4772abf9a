"""Network namespaces without names: each is a thread's, and goes with it.

with Namespace() as guest:
    guest.ip("link add dummy0 type dummy", "link set dummy0 up")
    listener = guest.call(socket.create_server, ("", 80))
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


class Namespace:
    def __init__(self):
        self._thread = ThreadPoolExecutor(1)
        try:
            self.fd = self.call(enter)
        except BaseException:
            self._thread.shutdown()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._thread.shutdown()
        os.close(self.fd)

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def call(self, function, *arguments, **keywords):
        """Call a function in the namespace; what sockets it makes stay there."""
        return self._thread.submit(function, *arguments, **keywords).result()

    def run(self, *argv, text=None):
        command = ["nsenter", f"--net={self.path}", *argv]
        finished = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def ip(self, *commands):
        self.run("ip", "-batch", "-", text="\n".join(commands))

    def set(self, setting, value):
        """A setting below /proc/sys/net."""
        self.call(write, f"/proc/sys/net/{setting}", value)


def enter():
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no new network namespace")
    # What is sent by one thread arrives in order, if the thread stays where it is.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def write(path, value):
    with open(path, "w") as file:
        file.write(str(value))
