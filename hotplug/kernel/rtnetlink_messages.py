"""rtnetlink's messages by pyroute2: the only module that knows it.

Importing pyroute2 takes 150 ms and 20 MB: its package imports everything that it has. We want
four kinds of messages, so their modules are imported below an empty package of that name, which
takes a fifth of that; and only when the first of them is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

from hotplug.kernel.rtnetlink_abi import (
    HEADER,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_SETLINK,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGE = "pyroute2"


def message_classes(*names: str) -> list[Any]:
    """Classes of pyroute2.netlink.rtnl, each from the module of its name."""
    found = importlib.util.find_spec(PACKAGE) if PACKAGE not in sys.modules else None
    if found is not None and found.submodule_search_locations is not None:
        empty = types.ModuleType(PACKAGE)
        empty.__path__ = list(found.submodule_search_locations)
        sys.modules[PACKAGE] = empty
    try:
        modules = [importlib.import_module(f"{PACKAGE}.netlink.rtnl.{name}") for name in names]
    finally:
        if found is not None:
            del sys.modules[PACKAGE]  # who wants all of it, imports all of it
    return [getattr(module, name) for module, name in zip(modules, names, strict=True)]


ifaddrmsg, ifinfmsg, ndmsg, rtmsg = message_classes("ifaddrmsg", "ifinfmsg", "ndmsg", "rtmsg")
MESSAGES: Mapping[int, Any] = {
    **dict.fromkeys((RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK), ifinfmsg),
    **dict.fromkeys((RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR), ifaddrmsg),
    **dict.fromkeys((RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE), rtmsg),
    **dict.fromkeys((RTM_NEWNEIGH, RTM_DELNEIGH), ndmsg),
}


def encode(kind: int, fields: Mapping[str, Any], attributes: Sequence[tuple[str, Any]]) -> bytes:
    """What follows a request's header; ``fields`` and ``attributes`` by pyroute2's names."""
    message = MESSAGES[kind]()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[HEADER.size :])


def decode(data: bytes) -> Any:
    """A message of the kernel's, as pyroute2's class for it."""
    kind = HEADER.unpack_from(data)[1]
    message = MESSAGES[kind](data)
    message.decode()
    return message
