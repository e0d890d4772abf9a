"""Measures a command in dom0: wall clock, processes, CPU time of hotplug. Prints JSON.

    measure.py NAMES COMMAND ..

Processes are counted by /proc/stat: all that the whole dom0 has made meanwhile, exact. CPU time
comes from the kernel's taskstats (include/uapi/linux/taskstats.h), which reports every task that
ends: that of all whose name, or whose ancestor's name, is one of NAMES (a comma between two), and
what the agent has used. udev's workers are not among them.

For what libxl runs to restore a guest's memory there is wall clock and CPU time: "helper". Ours
has its work done by a worker of the restore server, whose CPU time is added.
"""

import glob
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug.kernel import genetlink

TASKSTATS_CMD_GET, REGISTER_CPUMASK = 1, 3
AGGR_PID, TYPE_STATS = 4, 3
# struct taskstats: where things are in every version since 2.6.19
COMM = slice(80, 112)
NAME = 15  # bytes of a name that the kernel keeps (TASK_COMM_LEN)
PID_PPID = struct.Struct("=II"), 128
ELAPSED_USER_SYSTEM = struct.Struct("=QQQ"), 144  # microseconds
HEADERS = genetlink.MESSAGE.size + genetlink.GENERIC.size
QUIET = 1.0  # seconds for the last ends to be reported
HELPER, WORKER = "libxl-save-helper", "restore-worker"


class Ends:
    """Every task that ends from now on: (pid, ppid, name, seconds of CPU, seconds it lived)."""

    def __init__(self):
        self.tasks = []
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, genetlink.NETLINK_GENERIC)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((0, 0))
        family = self._family()
        mask = genetlink.string(REGISTER_CPUMASK, f"0-{os.cpu_count() - 1}")
        self._ask(genetlink.request(family, 2, TASKSTATS_CMD_GET, 1, mask))
        threading.Thread(target=self._listen, daemon=True).start()

    def _family(self):
        body = genetlink.string(genetlink.CTRL_ATTR_FAMILY_NAME, "TASKSTATS")
        answer = self._ask(
            genetlink.request(genetlink.GENL_ID_CTRL, 1, genetlink.CTRL_CMD_GETFAMILY, 1, body)
        )
        found = genetlink.attributes(answer[HEADERS:])
        return struct.unpack("=H", found[genetlink.CTRL_ATTR_FAMILY_ID])[0]

    def _ask(self, message):
        self.socket.send(message)
        return self.socket.recv(65536)

    def _listen(self):
        while True:
            data = self.socket.recv(65536)
            while len(data) >= HEADERS:
                length = genetlink.MESSAGE.unpack_from(data)[0]
                self._take(genetlink.attributes(data[HEADERS:length]))
                data = data[length + -length % 4 :]

    def _take(self, attributes):
        if AGGR_PID not in attributes:
            return
        stats = genetlink.attributes(attributes[AGGR_PID])[TYPE_STATS]
        pid, ppid = PID_PPID[0].unpack_from(stats, PID_PPID[1])
        elapsed, user, system = ELAPSED_USER_SYSTEM[0].unpack_from(stats, ELAPSED_USER_SYSTEM[1])
        name = stats[COMM].split(b"\0")[0].decode(errors="replace")
        self.tasks.append((pid, ppid, name, (user + system) / 1e6, elapsed / 1e6))


def cpu_of(names, tasks):
    """The time of all tasks of these names and of their descendants."""
    kept = {name[:NAME] for name in names}
    roots = {pid for pid, _, name, *_ in tasks if name in kept}
    parents = {pid: ppid for pid, ppid, *_ in tasks}

    def belongs(pid):
        for _ in range(64):
            if pid in roots:
                return True
            if pid not in parents:
                return False
            pid = parents[pid]
        return False

    return sum(seconds for pid, _, _, seconds, _ in tasks if belongs(pid))


def helper(tasks):
    """Of all save helpers together."""
    found = [task for task in tasks if task[2] in (HELPER[:NAME], WORKER)]
    return {
        "wall_s": round(sum(lived for *_, name, _, lived in found if name != WORKER), 4),
        "cpu_s": round(sum(seconds for *_, seconds, _ in found), 4),
    }


def spawned():
    with open("/proc/stat") as stat:
        return next(int(line.split()[1]) for line in stat if line.startswith("processes"))


def agent_cpu():
    """What the threads of a running agent have used, in seconds."""
    total = 0
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
            if b"agent" not in words or not any(w.endswith(b"/xen-hotplug") for w in words):
                continue
            for thread in glob.glob(f"{os.path.dirname(path)}/task/*/schedstat"):
                with open(thread) as file:
                    total += int(file.read().split()[0])
        except OSError:
            continue
    return total / 1e9


def main(names, command):
    ends = Ends()
    time.sleep(QUIET)
    before, agent_before = spawned(), agent_cpu()
    begin = time.monotonic()
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    wall = time.monotonic() - begin
    after, agent_after = spawned(), agent_cpu()
    time.sleep(QUIET)
    result = {
        "status": done.returncode,
        "said": done.stdout[-2000:] + done.stderr[-2000:],
        "wall_s": round(wall, 3),
        "processes": after - before,
        "hotplug_cpu_s": round(
            cpu_of(names.split(","), ends.tasks) + agent_after - agent_before, 3
        ),
        "helper": helper(ends.tasks),
    }
    print(json.dumps(result))


main(sys.argv[1], sys.argv[2:])
