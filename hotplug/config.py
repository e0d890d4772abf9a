"""/etc/xen-hotplug.toml, read once into frozen values.

Every key has a default; an unknown key or a wrong type is an error that names the file, the key
and the problem. The commented defaults are in ``etc/xen-hotplug.toml``.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from hotplug.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/etc/xen-hotplug.toml"
DEFAULT_RUNDIR = "/run/xen-hotplug"
MAX_RUNDIR = 99  # bytes; with "/control" behind it, it is a socket's path, see unix(7)
MAX_DEADLINE = 35.0  # libxl kills a script after 40 s and then does not read hotplug-error
ANTISPOOF = ("auto", "always", "never")
BLOCK_SIZES = (0, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class DiskRule:
    """Options for the disks whose path matches a shell pattern."""

    match: str
    direct_io: bool = False
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one run."""

    deadline: float = MAX_DEADLINE  # seconds an event may take
    log_file: str = "/var/log/xen/xen-hotplug.log"
    syslog: str = "/dev/log"  # the daemon's datagram socket
    scripts: str = "/etc/xen/scripts"  # where foreign block-* helpers are looked for
    udev: bool = False  # listen for xen-backend uevents (xend, hosts without libxl)
    antispoof: str = "auto"  # whether guests are held to their addresses: one of ANTISPOOF
    disks: tuple[DiskRule, ...] = field(default=())
    rundir: str = DEFAULT_RUNDIR

    def disk(self, path: str) -> DiskRule:
        """The first rule that matches a disk's path; the defaults if none does."""
        for rule in self.disks:
            if fnmatch.fnmatchcase(path, rule.match):
                return rule
        return DiskRule(path)


def load(environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file that XEN_HOTPLUG_CONFIG names, or the default one if it exists."""
    path = environ.get("XEN_HOTPLUG_CONFIG") or DEFAULT_FILE
    rundir = environ.get("XEN_HOTPLUG_RUNDIR") or DEFAULT_RUNDIR
    if len(os.fsencode(rundir)) > MAX_RUNDIR:
        raise ConfigError(
            f"XEN_HOTPLUG_RUNDIR: {rundir} is too long for a socket in it,"
            f" it may have {MAX_RUNDIR} bytes"
        )
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        if "XEN_HOTPLUG_CONFIG" in environ:
            raise ConfigError(f"{path}: no such configuration file") from None
        return Config(rundir=rundir)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    import tomllib  # noqa: PLC0415 - most hosts have no file, and a one-shot run must start fast

    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(path, table, rundir)


def parse(path: str, table: Mapping[str, Any], rundir: str = DEFAULT_RUNDIR) -> Config:
    """Turn a TOML table into a Config; ``path`` is for the errors."""
    known = {f.name for f in fields(Config)} - {"disks", "rundir"}
    values: dict[str, Any] = {"rundir": rundir}
    for key, value in table.items():
        if key == "disk":
            values["disks"] = _disks(path, value)
        elif key in known:
            values[key] = _typed(path, key, value, type(getattr(Config(), key)))
        else:
            raise ConfigError(f"{path}: {key}: there is no such setting")
    config = Config(**values)
    if not 0 < config.deadline <= MAX_DEADLINE:
        raise ConfigError(
            f"{path}: deadline: {config.deadline} is not between 0 and {MAX_DEADLINE:.0f} seconds;"
            " the toolstack gives up after 40"
        )
    if config.antispoof not in ANTISPOOF:
        raise ConfigError(f"{path}: antispoof: must be one of {ANTISPOOF}")
    return config


def _disks(path: str, rules: object) -> tuple[DiskRule, ...]:
    if not isinstance(rules, list):
        raise ConfigError(f"{path}: disk: write [[disk]], with two brackets, for each pattern")
    return tuple(_disk(path, f"disk {index + 1}", rule) for index, rule in enumerate(rules))


def _disk(path: str, where: str, rule: object) -> DiskRule:
    if not isinstance(rule, dict):
        raise ConfigError(f"{path}: {where}: {rule!r} is not a table of settings")
    kinds = {"match": str, "direct_io": bool, "block_size": int}
    for key, value in rule.items():
        if key not in kinds:
            raise ConfigError(f"{path}: {where}: {key}: there is no such setting")
        _typed(path, f"{where}: {key}", value, kinds[key])
    if "match" not in rule:
        raise ConfigError(f"{path}: {where}: match is missing; it is a pattern of disk paths")
    if rule.get("block_size", 0) not in BLOCK_SIZES:
        raise ConfigError(f"{path}: {where}: block_size: must be one of {BLOCK_SIZES[1:]}")
    return DiskRule(**rule)


def _typed(path: str, key: str, value: object, kind: type) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(
            f"{path}: {key}: {value!r} is not of the right type, it must be a {kind.__name__}"
        )
    return value
