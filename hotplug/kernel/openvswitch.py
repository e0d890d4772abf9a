"""Ports of Open vSwitch, by its database: what ``ovs-vsctl add-port`` and ``del-port`` do.

Facts that are not obvious (Open vSwitch 3.1, vswitch.ovsschema, vswitchd/bridge.c):

- A port is there because a bridge's ``ports`` has it; one that no bridge has is collected, with
  its interface, at the end of the transaction. So a port moves by being taken and put in one.
- Once a port is gone ovs-vswitchd gives its link back the flags that it had found, IFF_UP among
  them. So whoever takes a link down afterwards has to wait for that.
- ovs-vswitchd does what the database says in its own time. It sets ``cur_cfg`` to the ``next_cfg``
  that it has done, and leaves a sentence in an interface's ``error`` if the port cannot work.
- A bridge has a port of its own name, without which it does not work. A "fake bridge" is a port
  too: it stands for a VLAN of the bridge that has it, and ports can be added to it by its name.
- A port with a tag and without ``vlan_mode`` is an access port, whatever its trunks are.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any, TypeVar

from hotplug.kernel.ovsdb import (
    StaleError,
    connected,
    default_path,
    named,
    text,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.kernel.ovsdb import Operation, Rows, Session
    from hotplug.network import SwitchPort
    from hotplug.ports import Deadline

T = TypeVar("T")

SECONDS = 25.0  # for a port to work: what is left of an event's 35 is for telling what went wrong
DELETE_SECONDS = 4.0  # libxl kills a script after 40
TRIES = 8  # others change the same rows now and then; each try is two round trips
MARK = "attached-mac"  # the external id that tells a guest's port from one of the host


class OpenVSwitch:
    """The one of this host."""

    __slots__ = ("_path", "_seconds")

    def __init__(self, path: str = "", seconds: float = SECONDS) -> None:
        self._path = path or default_path()
        self._seconds = seconds

    def add_port(self, port: SwitchPort, deadline: Deadline) -> None:
        deadline.stage(f"asking Open vSwitch for the port {port.name}")
        with connected(self._path, deadline, self._seconds) as session:
            goal = until_fresh(lambda: add(session, port), port.name)
            deadline.stage(f"waiting for ovs-vswitchd to make the port {port.name}")
            try:
                wait_until_done(session, goal)
            except TimeoutError as error:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"ovs-vswitchd has not made this port in {self._seconds:.0f} s; is it running?",
                    port.name,
                ) from error
            refuse_error(session, port.name)

    def delete_port(self, name: str, mac: str = "") -> None:
        with connected(self._path, None, DELETE_SECONDS) as session:
            goal = until_fresh(lambda: delete(session, name, mac), name)
            with contextlib.suppress(TimeoutError):  # it is written, and will be done some day
                wait_until_done(session, goal)


def until_fresh(change: Callable[[], T], name: str) -> T:
    """Change what was read, unless it is not like that any more: then read it again."""
    for _ in range(TRIES):
        try:
            return change()
        except StaleError:
            continue
    raise OSError(errno.EAGAIN, "somebody else keeps changing this port in Open vSwitch", name)


def add(session: Session, port: SwitchPort) -> int:
    """Put the port into its bridge; the configuration's number, to wait for."""
    is_fake = ["fake_bridge", "==", True]
    own, own_fakes, bridges, fakes, ports = session.transact(
        select("Bridge", named_so(port.name), "_uuid"),
        select("Port", [*named_so(port.name), is_fake], "_uuid"),
        select("Bridge", named_so(port.bridge), "_uuid"),
        select("Port", [*named_so(port.bridge), is_fake], "_uuid", "tag"),
        select("Port", named_so(port.name), "_uuid"),
    )
    if own["rows"] or own_fakes["rows"]:
        raise OSError(errno.EEXIST, "a bridge of Open vSwitch has this name", port.name)
    if bridges["rows"]:
        bridge, tag = named_so(port.bridge), port.tag
    elif fakes["rows"]:
        fake = fakes["rows"][0]
        bridge = having(fake)
        tag = values(fake["tag"])[0] if port.tag is None else port.tag
    else:
        raise OSError(errno.ENODEV, "Open vSwitch has no bridge of this name", port.bridge)
    return commit(
        session,
        wait("Bridge", bridge, "!=", []),
        *taking(port.name, ports["rows"]),
        *putting(port, bridge, tag),
    )


def commit(session: Session, *operations: Operation) -> int:
    """Change the configuration; the number that it has then."""
    *_, answer = session.transact(
        *operations,
        mutate("Open_vSwitch", [], "next_cfg", "+=", 1),
        select("Open_vSwitch", [], "next_cfg"),
    )
    return int(answer["rows"][0]["next_cfg"])


def taking(name: str, ports: Rows) -> list[Operation]:
    """What takes a port as it was read, or makes sure that there is still none."""
    return [
        wait("Port", named_so(name), "==", [{"_uuid": port["_uuid"]} for port in ports]),
        *(mutate("Bridge", having(port), "ports", "delete", port["_uuid"]) for port in ports),
    ]


def putting(port: SwitchPort, bridge: list[Any], tag: int | None) -> list[Operation]:
    ids = [[key, text(value)] for key, value in port.external_ids.items()]
    interface = {"name": port.name, "external_ids": ["map", ids]}
    row = {
        "name": port.name,
        "interfaces": named("interface"),
        "tag": ["set", [] if tag is None else [tag]],
        "trunks": ["set", list(port.trunks)],
    }
    return [
        insert("Interface", interface, "interface"),
        insert("Port", row, "port"),
        mutate("Bridge", bridge, "ports", "insert", named("port")),
    ]


def delete(session: Session, name: str, mac: str) -> int:
    """Take the port from its bridge; as for ``add``."""
    bridges, ports, interfaces = session.transact(
        select("Bridge", named_so(name), "_uuid"),
        select("Port", [*named_so(name), ["fake_bridge", "==", False]], "_uuid"),
        select("Interface", named_so(name), "external_ids"),
    )
    marks = [dict(row["external_ids"][1]).get(MARK) for row in interfaces["rows"]]
    is_guests = any(mark is not None and text(mac) in ("", mark) for mark in marks)
    if ports["rows"] and is_guests and not bridges["rows"]:
        return commit(session, *taking(name, ports["rows"]))
    return 0


def wait_until_done(session: Session, goal: int) -> None:
    for done in session.follow("Open_vSwitch", "cur_cfg"):
        if done >= goal:
            return


def refuse_error(session: Session, name: str) -> None:
    (interfaces,) = session.transact(select("Interface", named_so(name), "error"))
    problems = [problem for row in interfaces["rows"] for problem in values(row["error"])]
    if problems:
        raise OSError(errno.EIO, f"Open vSwitch cannot use it: {problems[0]}", name)


def named_so(name: str) -> list[Any]:
    return [["name", "==", text(name)]]


def having(port: dict[str, Any]) -> list[Any]:
    """The bridge that has a port."""
    return [["ports", "includes", port["_uuid"]]]


def select(table: str, where: list[Any], *columns: str) -> Operation:
    return {"op": "select", "table": table, "where": where, "columns": list(columns)}


def insert(table: str, row: dict[str, Any], name: str) -> Operation:
    return {"op": "insert", "table": table, "row": row, "uuid-name": name}


def mutate(table: str, where: list[Any], column: str, how: str, what: Any) -> Operation:
    change = [column, how, what]
    return {"op": "mutate", "table": table, "where": where, "mutations": [change]}


def wait(table: str, where: list[Any], until: str, rows: Rows) -> Operation:
    """Fail at once if the rows are not (or are) these."""
    return {
        "op": "wait",
        "timeout": 0,
        "table": table,
        "where": where,
        "columns": ["_uuid"],
        "until": until,
        "rows": rows,
    }
