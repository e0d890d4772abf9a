"""A client for xenstore, the small database in which Xen's domains agree on their devices.

Pure Python, nothing but the standard library, and cheap to import. It speaks the protocol itself,
over xenstored's socket or the kernel's /dev/xen/xenbus, and needs no library of Xen's. It keeps
apart what other clients mix up: a node that is absent (None), one that is empty (``b""``), one
that may not be read (PermissionError) and a store that is gone (StoreConnectionError).

    from hotplug import xenstore

    with xenstore.connect() as store:
        # Values are bytes, as they are. A path without a slash in front is below
        # /local/domain/<own domid>. Many questions are one round trip.
        store.write("example/greeting", b"hello")
        assert store.read_many(["example/greeting", "example/nothing"]) == [b"hello", None]
        assert store.directory("example") == ["greeting"]

        # A transaction: nobody else sees half of it, and what was read is still so when it
        # counts. The function runs again if somebody else was faster.
        def count(snapshot):
            number = int(snapshot.read("example/count") or b"0") + 1
            snapshot.apply([
                xenstore.Write("example/count", b"%d" % number),
                xenstore.Write("example/greeting", None),  # removes it
            ])
            return number

        assert store.transaction(count) == 1

        # Watches. The callback runs in whichever thread reads the connection: start_pump()
        # makes one for it, pump() is one. It may not call the store; it should only take note.
        changed = []
        store.watch("example", "my token", lambda path, token: changed.append(path))
        store.write("example/state", b"4")
        store.barrier()  # returns when all that happened before has been called back
        assert changed == ["example", "example/state"]  # every watch is called once at once

        # Who may do what: domain 0 owns the node, domain 5 may read it, nobody else.
        store.set_permissions("example", [
            xenstore.Permission(0), xenstore.Permission(5, read=True),
        ])
        store.remove("example")
        assert store.read("example/state") is None

Good to know:

- Every other refusal is an OSError with its errno, and the path as ``filename``. TimeoutError says
  that xenstored did not answer in time (``connect(timeout=30)``); the connection survives that, but
  what was asked may still be carried out. After StoreConnectionError all is over: connect again.
- Any number of threads may use one client. They share the connection without waiting for each
  other's answers, and none is needed just to read.
- Over the socket every answer comes after the watch events of all that was changed before, and the
  callbacks have returned before the answer does: a read is a barrier. Over the device it is not,
  and requests go one by one, for reasons that ``transport`` gives; ``barrier()`` works over both.
- A watch sees the node and all below it. Removing a directory is one event, for the directory, and
  not one for each node in it; a watch inside of it is called if its own node was removed.
  Writing a node whose parents were absent is one event too, for the node. Events that are the
  same as one still waiting are dropped, and some come without any change: read, do not count.
- ``@introduceDomain`` and ``@releaseDomain`` can be watched like nodes, by domain 0.
- A path and its value must fit 4096 bytes (4080 over the device). Lists of children may be longer.
- Not for callbacks: to call the client, or to wait for a lock that somebody holds who does.
"""

from hotplug.xenstore.client import Client, connect
from hotplug.xenstore.errors import ProtocolError, StoreConnectionError
from hotplug.xenstore.protocol import Permission, Request
from hotplug.xenstore.transaction import Transaction, Write

__all__ = [
    "Client",
    "Permission",
    "ProtocolError",
    "Request",
    "StoreConnectionError",
    "Transaction",
    "Write",
    "connect",
]
