"""ISC's DHCP server on a side's host: its files, and what they should hold by the contract."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = "dhcp/dhcpd.conf"
PRESENT = "dhcpd.conf"  # where it is, the server is told by default
SERVICE = "init.d/isc-dhcp-server"
RESTARTS = "restarts"
STOCKS_SETTINGS = "default/dhcp-server"
DEBIANS_SETTINGS = "default/isc-dhcp-server"
RESTART = '#!/bin/sh\necho "$*" >>/etc/restarts\nexit 1\n'  # as it does with nothing to serve
LISTS = "DHCPDARGS|DHCPD_INTERFACE|INTERFACES|INTERFACESv4"
LIST = re.compile(rf'^({LISTS})=("?)([^"\n]*)\2$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Server:
    """What an administrator has set up."""

    configuration: str = "subnet 10.0.0.0 netmask 255.0.0.0 { }\n"
    settings: str = 'INTERFACES="eth0 "\n'
    where: str = STOCKS_SETTINGS  # of the settings; "" for none
    by_default: bool = False  # whether /etc/dhcpd.conf is there


@dataclass(slots=True)
class Files:
    """Those of a server, in a side's /etc."""

    etc: Path | None
    server: Server | None

    @property
    def names(self) -> tuple[str, ...]:
        return (CONFIGURATION, STOCKS_SETTINGS, DEBIANS_SETTINGS, RESTARTS)

    def make(self) -> None:
        if self.server is None:
            return
        made = {CONFIGURATION: self.server.configuration, SERVICE: RESTART}
        if self.server.where:
            made[self.server.where] = self.server.settings
        if self.server.by_default:
            made[PRESENT] = ""
        for name, content in made.items():
            path = self.etc / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        (self.etc / SERVICE).chmod(0o755)

    def read(self) -> dict[str, object]:
        if self.etc is None:
            return {}
        paths = {name: self.etc / name for name in self.names}
        return {name: path.read_text() for name, path in paths.items() if path.exists()}

    def write(self, found: dict[str, object]) -> None:
        for name in self.names if self.etc is not None else ():
            if name in found:
                (self.etc / name).write_text(str(found[name]))
            else:
                (self.etc / name).unlink(missing_ok=True)

    def remove(self) -> None:
        for name in (*self.names, PRESENT, SERVICE) if self.etc is not None else ():
            (self.etc / name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Lease:
    """A guest, as the server is to know it."""

    name: str
    mac: str
    address: str
    router: str
    link: str

    @property
    def line(self) -> str:
        return (
            f"host {self.name} {{ hardware ethernet {self.mac}; fixed-address {self.address};"
            f' option routers {self.router}; option host-name "{self.name}"; }}\n'
        )


def told(files: dict[str, object], lease: Lease) -> dict[str, object]:
    """The files once the server knows a guest, and was started again."""
    with_none = forgotten(files, lease.name, lease.link)
    found = {name: str(content) for name, content in with_none.items()}
    settings = settings_in(found)
    added = LIST.sub(lambda match: listing(match, [*words(match), lease.link]), found[settings])
    return {
        **with_none,
        CONFIGURATION: found[CONFIGURATION] + lease.line,
        settings: added,
        RESTARTS: str(files.get(RESTARTS, "")) + "restart\n",
    }


def forgotten(files: dict[str, object], name: str, link: str) -> dict[str, object]:
    """The files once it knows it no more; it is started again if they changed."""
    settings = settings_in(files)
    lines = str(files[CONFIGURATION]).splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith(f"host {name} {{"))
    without = LIST.sub(
        lambda match: (
            listing(match, [word for word in words(match) if word != link])
            if link in words(match)
            else match[0]
        ),
        str(files[settings]),
    )
    left = {**files, CONFIGURATION: kept, settings: without}
    if left != files:
        left[RESTARTS] = str(files.get(RESTARTS, "")) + "restart\n"
    return left


def settings_in(files: dict[str, object]) -> str:
    return STOCKS_SETTINGS if STOCKS_SETTINGS in files else DEBIANS_SETTINGS


def words(match: re.Match[str]) -> list[str]:
    return match[3].split()


def listing(match: re.Match[str], names: list[str]) -> str:
    """The same list, of these links; each has a blank behind it."""
    return f'{match[1]}="{"".join(f"{name} " for name in names)}"'
