"""Other users of loop devices on this machine, kept out of the comparison and out of harm.

Stock searches a free loop device and binds it in two steps (D16), and ``remove`` detaches whatever
has the number of ``node`` by now (D09). A guard around its losetup lets it touch only devices of
the scenario's folder, and notes when somebody else was in the way: then the scenario is played
again.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from differential.observation import Observation
    from harness.place import Place

LOSETUP_FAILED = re.compile(rb".*losetup (-r )?(/dev/loop\d+|\{loop .*\}) .* failed", re.DOTALL)
LOSETUP = "/usr/sbin/losetup"

GUARD = """#!/bin/sh
# $1: -d, -r, or what losetup knows else; foreign devices are as good as absent.
backing() {
    file=
    read -r file 2>/dev/null <"/sys/block/${1#/dev/}/loop/backing_file"
    [ -n "$file" ]
}
foreign() {
    case $file in
    "@folder@"/*) return 1 ;;
    esac
    echo "$file" >>"@noise@"
}
if [ "$1" = -d ]; then
    if ! backing "$2" || foreign; then
        echo "losetup: $2: detach failed: No such device or address" >&2
        exit 1
    fi
fi
"@real@" "$@" && exit 0
status=$?
for word; do
    case $word in
    /dev/loop*) backing "$word" && foreign ;;
    esac
done
exit $status
"""

BIND = 'mount --bind "$1" "$2"; shift 2; exec "$@"'


class DisturbedError(Exception):
    """Somebody else took or gave back a loop device at a moment that matters."""


def noise_file(place: Place) -> Path:
    return place.directory / "noise"


def guarded(place: Place, folder: Path) -> tuple[str, ...]:
    """A launcher for stock's runs: in a mount namespace, losetup is the guard."""
    real = place.directory / "losetup.real"
    shutil.copy(LOSETUP, real)
    guard = place.directory / "losetup.guard"
    text = GUARD.replace("@folder@", str(folder)).replace("@noise@", str(noise_file(place)))
    guard.write_text(text.replace("@real@", str(real)))
    guard.chmod(0o755)
    unshare = ("unshare", "--mount", "--propagation", "private", "--")
    return (*unshare, "sh", "-ec", BIND, "sh", str(guard), LOSETUP)


def refuse(place: Place, backend: str, seen: Observation, *, sealed: bool) -> None:
    """DisturbedError if somebody was in stock's way; a sealed file cannot be bound anyway."""
    noise = noise_file(place)
    noticed = noise.read_text(errors="replace").strip() if noise.exists() else ""
    noise.unlink(missing_ok=True)
    if sealed:
        return
    if noticed:
        raise DisturbedError(f"others were in the way: {noticed}")
    node = seen.key(backend, "node") or b""
    if seen.status == 0 and node.startswith(b"/dev/loop"):  # it would have a token
        raise DisturbedError(f"{node!r} was taken away as soon as it was bound")
    for text in seen.errors:
        if isinstance(text, bytes) and LOSETUP_FAILED.fullmatch(text):
            raise DisturbedError(f"a loop device went away: {text!r}")
