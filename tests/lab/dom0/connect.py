"""Attaches a card of a driver domain to a guest, often: how long until it was connected? JSON.

    connect.py GUEST NETVM ROUNDS

The clock is the store's, as a watch in dom0 tells its changes: from the moment that the card's
backend is there, which a toolstack writes in one transaction, to ``connected`` in its
``hotplug-status``. Between the two lie the backend driver's probe and what the driver domain does.
Nobody's clock starts earlier for being faster, and nothing is polled. What xl does before is not
counted, nor is the guest's driver, which waits for ``connected``.
"""

import json
import queue
import subprocess
import sys
import time

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug import xenstore

LIMIT = 60.0  # seconds
PAUSE = 1.0  # seconds between two rounds, for guest and driver domain to become quiet


def main(guest, netvm, rounds):
    changes = queue.SimpleQueue()  # (when, path)
    took = []
    with xenstore.connect() as store:
        ids = {}
        for domid in store.directory("/local/domain"):
            ids[store.read(f"/local/domain/{domid}/name").decode()] = domid
        home = f"/local/domain/{ids[netvm]}/backend/vif/{ids[guest]}/0"
        store.watch(home, "connect", lambda path, _: changes.put((time.monotonic(), path)))
        store.start_pump(on_broken=lambda error: changes.put((0.0, str(error))))
        changes.get(timeout=LIMIT)  # a watch begins with an event
        for _ in range(rounds):
            xl("network-attach", guest, f"backend={netvm}", "bridge=xenbr0")
            took.append(seconds(store, changes, home))
            time.sleep(PAUSE)
            xl("network-detach", guest, "0")
            time.sleep(PAUSE)
            while not changes.empty():
                changes.get()
            if store.read(f"{home}/state") is not None:
                raise SystemExit(f"{home} is still there after xl network-detach")
    print(json.dumps(took))


def xl(*words):
    subprocess.run(["xl", *words], check=True, stdin=subprocess.DEVNULL)


def seconds(store, changes, home):
    began = None
    while True:
        when, path = changes.get(timeout=LIMIT)
        began = when if began is None else began
        if path == f"{home}/hotplug-status" and store.read(path) == b"connected":
            return round(when - began, 4)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
