"""What happened to which device: the values that travel from sources to handlers.

Nothing here does I/O. The names are xenstore's: a backend directory is
``<base>/<kind>/<domid>/<devid>``, and ``XENBUS_PATH`` holds it, usually relative to
``/local/domain/<own domid>``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from hotplug.errors import OutdatedError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a script for network cards may be told besides xenstore. Nothing of it is evaluated.
PARAMETERS = frozenset({"bridge", "dhcp", "ip", "netdev", "type_if"})

# A domid fits 16 bits; a devid is a 32-bit device number or a small handle.
BASE = "backend"
BACKEND = re.compile(
    r"(?P<base>backend|/local/domain/\d{1,5}/backend)/+(?P<kind>[a-z][a-z0-9_]*)/+(?P<domid>\d{1,5})/+(?P<devid>\d{1,10})/*"
)


class Action(enum.StrEnum):
    """What the toolstack or the kernel asks for."""

    ADD = "add"
    REMOVE = "remove"
    ONLINE = "online"
    OFFLINE = "offline"
    # Our own, which nobody may ask for
    RECLAIM = "reclaim"  # the backend went away and nobody asked for its removal
    GUARD = "guard"  # others may have deleted what holds a card's guest to its addresses

    @property
    def is_ours(self) -> bool:
        return self in (Action.RECLAIM, Action.GUARD)


@dataclass(frozen=True, slots=True)
class Device:
    """One backend device, named as xenstore names it.

    Two spellings of one backend (relative, absolute) are equal: ``base`` does not count. So what
    is not below our own domain's ``backend`` must not become an event: see ``refuse_elsewhere``.
    """

    kind: str
    domid: int
    devid: int
    base: str = field(default=BASE, compare=False)

    @classmethod
    def parse(cls, path: str) -> Device:
        """Read a backend path, relative or absolute, e.g. ``backend/vbd/5/51712``."""
        match = BACKEND.fullmatch(path)
        if match is None:
            raise UsageError(
                f"'{path}' is not a backend path; it should look like backend/vbd/5/51712"
            )
        return cls(match["kind"], int(match["domid"]), int(match["devid"]), match["base"])

    @property
    def path(self) -> str:
        """The backend directory, spelled as it was given."""
        return f"{self.base}/{self.kind}/{self.domid}/{self.devid}"

    @property
    def key(self) -> str:
        """A name for files and logs, e.g. ``vbd.5.51712``."""
        return f"{self.kind}.{self.domid}.{self.devid}"

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Event:
    """Something to be done for one device."""

    action: Action
    device: Device
    script: str = "/etc/xen/scripts/block"  # argv[0]: its name picks the handler, log lines show it
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"

    @property
    def parameters(self) -> Mapping[str, str]:
        """What the script was told: by its environment, and by KEY=VALUE beside the action."""
        return parameters(self.arguments, self.variables)


@dataclass(slots=True, eq=False)
class Known:
    """Keys of a backend that were read when it was made, before anybody asked for its device."""

    values: Mapping[str, bytes | None]
    is_true: bool = True  # until one of them changes; as of the store's last answer
    in_use: bool = False  # whether somebody goes by it, who is to confirm it

    def use(self) -> Mapping[str, bytes | None]:
        self.in_use = True
        return self.values

    def confirm(self) -> None:
        """Call it after a round trip, before anything is told. OutdatedError if it is not true.

        From then on the event is as any other that has read its keys: what changes now comes late.
        """
        if self.in_use and not self.is_true:
            raise OutdatedError("its keys changed in xenstore just when its device was made ready")
        self.in_use = False


def parameters(arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """Arguments win over the environment, and the last of a name over those before it."""
    found = {name: value for name, value in variables.items() if name in PARAMETERS}
    for argument in arguments:
        name, given, value = argument.partition("=")
        if given and name in PARAMETERS:
            found[name] = value
    return found
