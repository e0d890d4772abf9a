"""Plays libxl's save helper and has xc_restore do the work, driven as XendCheckpoint.py drives it.

libxl has made a domain; xend of Xen 3.4 and 4.0 did that differently, but from there on asked the
same of the program. XEND_ARGUMENTS is the number of arguments, 7 or 8.
"""

import os
import re
import struct
import subprocess
import sys

XC_RESTORE = "/usr/local/lib/xen-hotplug/xc_restore"
LOG, STATIC_DATA_DONE, RESTORE_RESULTS, COMPLETE = 1, 8, 9, 10
INFO, NO_ERRNO = 5, 0xFFFFFFFF
MISSING = 3  # the processor policy: xend has none, so libxl shall set its own
RESULT = re.compile(r"^(store-mfn|console-mfn) (\d+)$")


def say(number, layout="", *values):
    body = struct.pack(f"=H{layout}", number, *values)
    os.write(1, struct.pack("=H", len(body)) + body)


def string(text):
    raw = text.encode() + b"\0"
    return struct.pack("=I", len(raw)) + raw


def log(text):
    message = struct.pack("=HII", LOG, INFO, NO_ERRNO) + string("xend") + string(text)
    os.write(1, struct.pack("=H", len(message)) + message)


def answer():
    return struct.unpack("=i", os.read(0, 4))[0]


def main():
    fd, _, domid, store, _, console = map(int, sys.argv[2:8])
    say(STATIC_DATA_DONE, "I", MISSING)
    if answer():
        return 1
    is_hvm = os.environ.get("XEND_HVM", "0")
    words = [XC_RESTORE, fd, domid, store, console, is_hvm, 1, 1, 0]
    command = [str(word) for word in words[: 1 + int(os.environ["XEND_ARGUMENTS"])]]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[fd],
    )
    child.stdin.close()
    child.stdin = None
    stdout, stderr = child.communicate()
    for line in stderr.splitlines():
        log(line)
    found = {match[1]: int(match[2]) for match in map(RESULT.match, stdout.splitlines()) if match}
    log(f"xc_restore said {stdout!r} and ended with {child.returncode}")
    pages = found.get("store-mfn"), found.get("console-mfn", 0)
    failed = child.returncode != 0 or pages[0] is None
    say(RESTORE_RESULTS, "QQ", *((0, 0) if failed else pages))
    say(COMPLETE, "ii", *((-1, 22) if failed else (0, 0)))
    answer()
    return 0


sys.exit(main())
