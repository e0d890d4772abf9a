"""Prints how long a backend took from InitWait (state 2) to ``connected``, in seconds.

    connected.py BACKEND

It may be yet to come. By xenstore watches, so nothing is polled.
"""

import sys
import threading
import time

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug import xenstore

LIMIT = 60.0  # seconds
home = sys.argv[1]
events = threading.Event()
began = None
until = time.monotonic() + LIMIT
with xenstore.connect() as store:
    store.watch(home, "connected", lambda *_: events.set())
    store.start_pump(on_broken=lambda _: events.set())
    while time.monotonic() < until:
        state, status = store.read_many([f"{home}/state", f"{home}/hotplug-status"])
        if began is None and state == b"2":
            began = time.monotonic()
        if status == b"connected":
            print(time.monotonic() - (began or time.monotonic()))
            break
        events.wait(0.5)
        events.clear()
