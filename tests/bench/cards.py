"""Network cards: their links, and both sides' vif-bridge for them.

A link is one end of a pair (veth), which stands for what the backend driver makes. The corner in
which all this runs has a network namespace of its own (see isolation.py), with one bridge, and
without bridge netfilter, as most hosts are: there stock's step for iptables has no effect, and
Debian's scripts leave it out.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import launch
from bench.launch import Command, Took
from bench.sides import SETTLE, Machine, ScriptFailedError, Side
from harness.guests import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.guests import Backend

BRIDGE = "xenbr0"
NETFILTER = Path("/proc/sys/net/bridge")


def ip(*lines: str) -> None:
    """Commands of ip(8), all in one process."""
    text = "\n".join(lines) + "\n"
    subprocess.run(["ip", "-batch", "-"], input=text, check=True, text=True, capture_output=True)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """The bridge of all guests."""
    for switch in NETFILTER.glob("bridge-nf-call-*"):
        switch.write_text("0\n")
    ip(f"link add name {BRIDGE} type bridge", f"link set dev {BRIDGE} up")
    try:
        yield
    finally:
        ip(f"link delete dev {BRIDGE}")


@contextlib.contextmanager
def cards(host: Machine, count: int, addresses: Sequence[str] = ()) -> Iterator[list[Backend]]:
    """Cards that wait for vif-bridge, of one guest each, held to these ``addresses``."""
    guests = [Guest(host.place.store) for _ in range(count)]
    keys = [{"ip": address} for address in addresses] or [{}] * count
    made = [guest.card(keys=own) for guest, own in zip(guests, keys, strict=True)]
    ip(*(f"link add name {card.link} type veth peer name peer{card.domid}" for card in made))
    try:
        yield made
    finally:
        ip(*(f"link delete dev {card.link}" for card in made))
        for guest in guests:
            guest.destroy()


@dataclass(frozen=True, slots=True)
class CardSide:
    """One set of scripts, for cards."""

    side: Side

    @property
    def name(self) -> str:
        return self.side.name

    def online(self, made: Sequence[Backend]) -> Took:
        """``online`` for all at once, as libxl starts a guest."""
        took = self._run("online", made)
        for card in made:
            if card.read("hotplug-status") != b"connected":
                raise ScriptFailedError(f"{self.name}: {card.relative} has {card.tree()}")
        self._refuse_unless(made, BRIDGE)
        return took

    def offline(self, made: Sequence[Backend]) -> Took:
        for card in made:
            card.close()
        took = self._run("offline", made)
        self._refuse_unless(made, None)
        return took

    def _run(self, action: str, made: Sequence[Backend]) -> Took:
        time.sleep(SETTLE)
        took = launch.run([self._command(card, action) for card in made])
        self.side.check_statuses(action, took)
        return took

    def _command(self, card: Backend, action: str) -> Command:
        block = self.side.command(card, action)
        script = str(Path(self.side.script).with_name("vif-bridge"))
        environment = {**block.environment, "script": script, "vif": card.link}
        return Command((script, action, "type_if=vif"), environment, block.log)

    def _refuse_unless(self, made: Sequence[Backend], master: str | None) -> None:
        """The kernel's word for it."""
        done = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True)
        found = {link["ifname"]: link.get("master") for link in json.loads(done.stdout)}
        for card in made:
            if found[card.link] != master:
                raise ScriptFailedError(f"{self.name}: {card.link} is in {found[card.link]}")
