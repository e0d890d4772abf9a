"""ISC's DHCP server on this host: vif-nat tells it of guests, as the stock script does.

Each guest is one line in its configuration, ``host NAME { ... }``, and its link is a word in the
setting that lists the links to serve. Whatever else is in these files stays as it is, byte for
byte. Changes are made under the stock scripts' lock, and a file is replaced as a whole, so that a
server that starts just then finds the old content or the new.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hotplug.ports import Deadline, Host

# Where distributions have them; the first that is there counts.
CONFIGURATIONS = ("/etc/dhcp/dhcpd.conf", "/etc/dhcp3/dhcpd.conf", "/etc/dhcpd.conf")
SETTINGS = (
    "/etc/sysconfig/dhcpd",
    "/etc/defaults/dhcp",
    "/etc/default/dhcp-server",
    "/etc/default/dhcp3-server",
    "/etc/default/isc-dhcp-server",  # Debian's of today, which the stock script does not know
)
SERVICES = tuple(
    f"/etc/init.d/{name}"
    for name in ("isc-dhcp-server", "dhcp-server", "dhcp3-server", "dhcp", "dhcpd")
)
PRESENT = "/etc/dhcpd.conf"  # if this one is there, the server is told unless `dhcp` is "no"
LOCK = "vif-nat-dhcp"

# NAME=VALUE at the beginning of a line, the value quoted or a word.
SETTING = re.compile(
    rb"^(DHCPDARGS|DHCPD_INTERFACE|INTERFACES|INTERFACESv4)="
    rb"(?:\"([^\"\\\n]*)\"|'([^'\n]*)'|([^\s\"'#;\\]*))(?=[\s#;]|\Z)",
    re.MULTILINE,
)
INERT = re.compile(r"[A-Za-z0-9._@+-]+")  # names that mean nothing else in these files


@dataclass(frozen=True, slots=True)
class Server:
    """The server's files."""

    configuration: str
    settings: str
    service: str


@dataclass(frozen=True, slots=True)
class Guest:
    """What the server is to know of a guest."""

    name: str
    mac: str
    address: str
    router: str

    @property
    def line(self) -> bytes:
        return (
            f"host {self.name} {{ hardware ethernet {self.mac}; fixed-address {self.address};"
            f' option routers {self.router}; option host-name "{self.name}"; }}\n'
        ).encode()


def is_wanted(wish: str) -> bool:
    """Whether the server is to be told; ``wish`` is the parameter ``dhcp``, if it was given."""
    return (wish or ("yes" if os.path.isfile(PRESENT) else "no")) != "no"


def find() -> Server:
    """The server's files; HotplugError names what is missing."""
    configuration = first(CONFIGURATIONS, os.path.isfile)
    settings = first(SETTINGS, os.path.isfile)
    service = first(SERVICES, lambda path: os.access(path, os.X_OK))
    for found, tried in (
        (configuration, CONFIGURATIONS),
        (settings, SETTINGS),
        (service, SERVICES),
    ):
        if not found:
            raise HotplugError(
                f"the DHCP server cannot be told of the guest: there is none of {', '.join(tried)};"
                " install ISC's dhcpd, or give the script dhcp=no"
            )
    return Server(configuration, settings, service)


def first(paths: Sequence[str], is_it: Callable[[str], bool]) -> str:
    return next((path for path in paths if is_it(path)), "")


def add(host: Host, server: Server, guest: Guest, link: str) -> None:
    """Tell the server of a guest and its link, in the place of what it knew of them."""
    if not INERT.fullmatch(link):
        raise HotplugError(f"the DHCP server's settings cannot hold the interface name {link}")
    with host.locks.hold(LOCK, host.deadline):
        edit(server.configuration, lambda content: with_guest(content, guest))
        if not edit(server.settings, lambda content: with_link(content, link)):
            host.note(f"{server.settings} has no list of interfaces to put {link} into")
    restart(host, server, host.deadline)


def remove(host: Host, server: Server, name: str, link: str, deadline: Deadline) -> None:
    """Have the server forget a guest, and its link if that has a name of its own."""
    with host.locks.hold(LOCK, deadline):
        changed = edit(server.configuration, lambda content: without_guest(content, name))
        if link:
            changed |= edit(server.settings, lambda content: without_link(content, link))
    if changed:
        restart(host, server, deadline)


def restart(host: Host, server: Server, deadline: Deadline) -> None:
    """Have it read its files. That this fails is normal where it has nothing to serve yet."""
    deadline.stage(f"running {server.service} restart")
    try:
        finished = host.programs.run([server.service, "restart"], deadline)
    except OSError as error:
        host.note(f"{server.service} cannot be run: {error.strerror}")
        return
    if finished.status:
        host.note(f"{server.service} restart ended with status {finished.status}")


# The content of the files.


def entry_of(name: str) -> re.Pattern[bytes]:
    """A whole line with one guest of this name and nothing else."""
    words = rb"^[ \t]*host[ \t]+" + re.escape(os.fsencode(name))
    return re.compile(words + rb"[ \t]*\{[^{}\n]*\}[ \t]*(?:\n|\Z)", re.MULTILINE)


def without_guest(content: bytes, name: str) -> bytes:
    return entry_of(name).sub(b"", content)


def with_guest(content: bytes, guest: Guest) -> bytes:
    content = without_guest(content, guest.name)
    return content + (b"\n" if content and not content.endswith(b"\n") else b"") + guest.line


def without_link(content: bytes, link: str) -> bytes:
    """A link's name taken from the lists, each time with the blank behind it."""
    word = re.compile(rb"(?<!\S)" + re.escape(os.fsencode(link)) + rb"(?: |(?!\S))")
    return SETTING.sub(lambda match: rewritten(match, word.sub(b"", value_of(match))), content)


def with_link(content: bytes, link: str) -> bytes:
    """A link's name as the last word of each list."""

    def longer(match: re.Match[bytes]) -> bytes:
        value = value_of(match)
        blank = b" " if value and not value[-1:].isspace() else b""
        return rewritten(match, value + blank + os.fsencode(link) + b" ")

    return SETTING.sub(longer, without_link(content, link))


def value_of(match: re.Match[bytes]) -> bytes:
    return next((value for value in match.groups()[1:] if value is not None), b"")


def rewritten(match: re.Match[bytes], value: bytes) -> bytes:
    """A setting with another value; the same setting if it has it already."""
    if value == value_of(match):
        return match[0]
    quote = b"'" if match[3] is not None else b'"'
    return match[1] + b"=" + quote + value + quote


def edit(path: str, change: Callable[[bytes], bytes]) -> bool:
    """Replace a file by what ``change`` makes of it; whether that is something else."""
    with open(path, "rb") as file:
        content = file.read()
        changed = change(content)
        if changed == content:
            return False
        replace(os.path.realpath(path), changed, os.fstat(file.fileno()))
    return True


def replace(path: str, content: bytes, like: os.stat_result) -> None:
    """A new file under an old name, with owner and mode of the old one."""
    temporary = f"{path}.xen-hotplug"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), like.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
