"""The picture holds: who imports whom, and how long things are. There are no exceptions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2] / "hotplug"
MAX_MODULE = 400  # lines
MAX_FUNCTION = 60

# Values: everybody may import them, and they import only each other.
VALUES = {
    "hotplug",
    "hotplug.config",
    "hotplug.errors",
    "hotplug.events",
    "hotplug.ports",
    "hotplug.invocation",
    "hotplug.nbd",
    "hotplug.network",
}
WIRE = "hotplug.client.wire"
EVERYTHING = {"hotplug.*"}
POLICY = {"hotplug.agent.*", "hotplug.handlers.*", WIRE, *VALUES}
MECHANISM = {"hotplug.kernel.*", "hotplug.xenstore.*", "hotplug.sources.*"}

# Who may import what of ours; the first line that matches a module counts.
MAY_IMPORT = {
    "hotplug": set(),
    "hotplug.errors": set(),
    "hotplug.events": VALUES,
    "hotplug.ports": VALUES,
    "hotplug.nbd": VALUES,
    "hotplug.network": VALUES,
    "hotplug.config": VALUES,
    "hotplug.invocation": VALUES,
    "hotplug.listening": set(),
    "hotplug.__main__": {"hotplug.cli"},
    "hotplug.cli": EVERYTHING,
    "hotplug.commands": EVERYTHING,  # cli's
    "hotplug.disks": EVERYTHING,  # cli's
    "hotplug.cards": EVERYTHING,  # cli's
    "hotplug.cardfilters": EVERYTHING,  # cli's
    "hotplug.images": {"hotplug.restore.*", *VALUES},  # cli's
    "hotplug.image_options": set(),  # cli's
    "hotplug.aside": {"hotplug.client.child", *VALUES},  # cli's
    "hotplug.installation": {"hotplug.dropins", *VALUES},  # cli's
    "hotplug.dropins": VALUES,  # cli's
    "hotplug.client": set(),
    "hotplug.client.ask": {WIRE, *VALUES},
    "hotplug.client.wire": set(),
    "hotplug.client.child": set(),
    "hotplug.client.oneshot": EVERYTHING,
    "hotplug.agent.main": POLICY | MECHANISM | {"hotplug.listening"},  # start-up
    "hotplug.agent.host": POLICY | MECHANISM,  # start-up
    "hotplug.agent.guardian": {"hotplug.kernel.nft_monitor", *POLICY},
    "hotplug.agent.driverdomain": {"hotplug.sources.watches", *POLICY},
    "hotplug.agent.udevhost": {"hotplug.sources.udev", "hotplug.sources.watches", *POLICY},
    "hotplug.agent.*": POLICY,
    "hotplug.handlers.*": {"hotplug.handlers.*", *VALUES},
    "hotplug.kernel.*": {"hotplug.kernel.*", *VALUES},
    "hotplug.restore.server": {"hotplug.listening", "hotplug.restore.*", *VALUES},
    "hotplug.restore.*": {"hotplug.restore.*", *VALUES},
    "hotplug.sources.*": {"hotplug.sources.*", WIRE, *VALUES},
    "hotplug.xenstore.*": {"hotplug.xenstore.*"},
}

# Who may import what is foreign, and translates it: one module for one use.
FOREIGN = {
    "ctypes": {
        "hotplug.restore.loops_slow",
        "hotplug.restore.xenlibs",
        "hotplug.restore.xenstate",
    },
    "psutil": {"hotplug.commands", "hotplug.kernel.devd", "hotplug.kernel.lockfile"},
    "pyroute2": {"hotplug.kernel.rtnetlink_messages"},
    "pyudev": {"hotplug.sources.udev"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(TREE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(TREE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_bytes()) for module, path in MODULES.items()}


def matches(pattern: str, module: str) -> bool:
    """``a.b.*`` means a.b and all that is in it."""
    if pattern.endswith(".*"):
        return f"{module}.".startswith(pattern[:-1])
    return module == pattern


def imports(tree: ast.AST) -> set[str]:
    """The modules that a module imports, wherever in it, TYPE_CHECKING or not."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def forbidden(module: str, imported: set[str]) -> set[str]:
    """Those imports of ours that the table does not allow."""
    rules = [allowed for pattern, allowed in MAY_IMPORT.items() if matches(pattern, module)]
    assert rules, f"{module} is in no line of MAY_IMPORT"
    ours = {name for name in imported if matches("hotplug.*", name)}
    return {name for name in ours if not any(matches(allowed, name) for allowed in rules[0])}


def test_imports_follow_the_picture():
    breaches = {module: forbidden(module, imports(tree)) for module, tree in TREES.items()}
    assert {module: names for module, names in breaches.items() if names} == {}


def test_foreign_libraries_have_one_door():
    breaches = []
    for module, tree in TREES.items():
        roots = {name.partition(".")[0] for name in imports(tree)} - {"hotplug"}
        foreign = {root for root in roots if root not in sys.stdlib_module_names}
        breaches += [
            f"{module} may not import {library}"
            for library in foreign | (roots & FOREIGN.keys())
            if module not in FOREIGN.get(library, ())
        ]
    assert breaches == []


def test_every_module_has_a_docstring():
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_nothing_is_long():
    long = []
    for module, tree in TREES.items():
        lines = MODULES[module].read_bytes().count(b"\n")
        if lines > MAX_MODULE:
            long.append(f"{module}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION:
                    long.append(f"{module}.{node.name}: {length} lines")
    assert long == []


def test_the_table_names_only_what_exists():
    patterns = set().union(MAY_IMPORT, *MAY_IMPORT.values(), *FOREIGN.values())
    for pattern in patterns:
        assert any(matches(pattern, module) for module in MODULES), pattern


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("hotplug.handlers.block", "import hotplug.kernel.loop"),
        ("hotplug.handlers.block", "def f():\n    from hotplug.kernel import loop"),
        ("hotplug.kernel.loop", "from hotplug.handlers import block"),
        ("hotplug.agent.dispatch", "from hotplug.kernel.loop import attach"),
        ("hotplug.xenstore.client", "from hotplug import ports"),
        ("hotplug.client.wire", "from hotplug import errors"),
        ("hotplug.sources.udev", "if TYPE_CHECKING:\n    from hotplug.agent import queues"),
        ("hotplug.ports", "from hotplug.agent.queues import Queues"),
    ],
)
def test_the_test_sees_a_breach(importer, source):
    assert forbidden(importer, imports(ast.parse(source)))


# What a one-shot run may load of ours, and of Python's own with what those bring along: each of
# them costs every disk of a host without an agent.
FOR_CARDS = (
    *("antispoof", "bridge_vlan", "conntrack", "firewall", "guards", "iptables", "links"),
    *("link_messages", "link_steps", "nfnetlink", "nft", "nft_abi", "nft_monitor", "openvswitch"),
    *("ovsdb", "rtnetlink", "rtnetlink_abi", "rtnetlink_request"),
)
ONESHOT = {
    "hotplug",
    "hotplug.agent",
    *(f"hotplug.agent.{name}" for name in ("deadline", "dispatch", "holders", "host", "journal")),
    "hotplug.agent.logs",
    *(f"hotplug.client{name}" for name in ("", ".child", ".oneshot", ".wire")),
    *(f"hotplug.{name}" for name in ("config", "errors", "events", "invocation", "nbd")),
    "hotplug.ports",
    *(f"hotplug.handlers{name}" for name in ("", ".block", ".disk", ".foreign", ".sharing")),
    "hotplug.handlers.table",
    "hotplug.handlers.transactions",
    *(f"hotplug.handlers.targets{name}" for name in ("", ".file", ".phy", ".table")),
    *(module for module in MODULES if module.startswith(("hotplug.kernel", "hotplug.xenstore"))),
} - {
    "hotplug.kernel.devd",
    "hotplug.kernel.uevents",
    "hotplug.xenstore.alarm",
    *(f"hotplug.kernel.{name}" for name in FOR_CARDS),
}
PYTHONS = (
    *("__future__", "_socket", "ast", "collections.abc", "contextlib", "dataclasses", "errno"),
    *("fcntl", "fnmatch", "functools", "json", "select", "signal", "struct", "threading", "typing"),
    "zlib",
)


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", f"import sys; {code}; print(*sys.modules)"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name for name in output.split() if name != "__main__"}


def test_a_oneshot_run_loads_what_it_needs():
    loaded = loaded_by(f"sys.path.append({str(TREE.parent)!r}); import hotplug.client.oneshot")
    ours = {name for name in loaded if name.partition(".")[0] == "hotplug"}
    assert ours - ONESHOT == set()
    allowed = loaded_by(f"import {', '.join(PYTHONS)}")
    assert loaded - ours - allowed == set()
