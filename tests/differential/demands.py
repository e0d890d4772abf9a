"""What ``add`` must do, by the contract: the outcome that the rules demand of ours.

From what is on the host before (an Observation), not from what either side did.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from differential import sharing
from differential.observation import BASE, Bound, Mentions, Observation, one_line, vague

if TYPE_CHECKING:
    from collections.abc import Mapping

    from differential.folder import Target
    from differential.observation import Value
    from differential.scenario import Operation
    from differential.sharing import Reading


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """An operation, done on both sides from equal states."""

    before: Observation
    operation: Operation
    backend: str  # vbd/1/51712; "" if the operation is not about a disk
    target: Target  # what its params lead to
    owners: Mapping[str, str]  # loop device -> the backend that ours attached it for
    mounted: Mapping[str, bool]  # loop device -> read-only
    users: Mapping[str, tuple[str, ...]]  # of stock's side: see Observation
    finds_files: bool  # stock's check happens to work on this file system, see D02
    watched: bool  # ours is an agent, which sees backends go
    stock: Observation
    ours: Observation

    def key(self, name: str) -> bytes | None:
        return self.before.key(self.backend, name)

    @property
    def path(self) -> bytes:
        return b"backend/" + self.backend.encode()

    def owned(self) -> Bound | None:
        """The loop device that ours attached for this backend."""
        for token, backend in self.owners.items():
            if backend == self.backend:
                return self.before.loop(token)
        return None

    def node(self) -> Bound | None:
        """The loop device that the backend's keys name, if it still is the one that was meant."""
        node = self.key("node") or b""
        return self.before.loop(node.decode(errors="replace")[len("{loop ") : -1])


def outcome(step: Step, status: int, keys: Mapping[str, Value | None], **changes) -> Observation:
    """The state before, with these keys of the backend written (None: deleted)."""
    store = dict(step.before.store)
    for name, value in keys.items():
        store.pop(f"{BASE}/{step.backend}/{name}", None)
        if value is not None:
            store[f"{BASE}/{step.backend}/{name}"] = value
    return dataclasses.replace(
        step.before, status=status, stdout=b"", errors=(), store=store, **changes
    )


def refused(step: Step, text: Value, word: bytes = b"error") -> Observation:
    """A text and a status, exit 1, one line in the log, and nothing else."""
    log = text
    if isinstance(text, bytes):
        text = vague(text)
        log = b"{script}: " + one_line(text)
    written = outcome(step, 1, {"hotplug-error": text, "hotplug-status": word})
    return dataclasses.replace(written, errors=(log,))


def silent(step: Step, *errors: Value) -> Observation:
    """Nothing is written: exit 0, or 1 with a line in the log."""
    return dataclasses.replace(outcome(step, 1 if errors else 0, {}), errors=errors)


def added(step: Step, reading: Reading = sharing.OURS) -> Observation:
    """What ``add`` leaves behind if the sharing check reads as ``reading`` says."""
    state, target = step.key("state"), step.target
    if state != b"2":
        word = state if state is not None else b"unknown"
        text = b"Path closed or removed during hotplug add: " + step.path + b" state: " + word
        return refused(step, text)
    if target.kind == "none":
        return refused(step, Mentions((step.key("params") or b"",)))
    mode = sharing.canonical(step.key("mode") or b"")
    if target.kind == "file" and mode == "w" and not target.has_write_bit:
        return refused(step, read_only(target), b"busy")
    if target.kind == "file" and mode != "r" and target.sealed:
        return refused(step, Mentions((read_only(target),)), b"busy")
    taken = conflict(step, reading)
    if taken is not None:
        lost = dataclasses.replace(step.before, loops=step.before.loops - {step.owned()})
        return refused(dataclasses.replace(step, before=lost), taken, b"busy")
    return connected(step, mode)


def read_only(target: Target) -> bytes:
    return (
        b"File " + target.real + b" is read-only, and so I will not\n"
        b"mount it read-write in a guest domain."
    )


def conflict(step: Step, reading: Reading) -> bytes | None:
    """The text of contract 3.4, if the disk is taken."""
    ours = reading == sharing.OURS
    facts = sharing.Facts(
        step.before,
        step.backend,
        step.target,
        mounted=step.mounted,
        users=step.before.users if ours else step.users,
        owners=step.owners if ours else {},
        bare=bool(getattr(step.operation, "bare", "")),
    )
    taken = sharing.verdict(facts, reading)
    if taken is None:
        return conflict_beneath(step, facts, reading)
    if step.target.kind == "file":
        file = step.target.token.encode()
        prefix = b"File " + step.target.real + b" is loopback-mounted through {number of " + file
        prefix += b"},\nwhich is mounted "
    else:
        prefix = b"Device " + shown(step.target) + b" is mounted "
    return prefix + sharing.BUSY[facts.wanted, taken]


def conflict_beneath(step: Step, facts: sharing.Facts, reading: Reading) -> bytes | None:
    """The text of ours if the file of a loop device is taken."""
    taken = sharing.verdict_beneath(facts, reading)
    if taken is None:
        return None
    prefix = b"Device " + shown(step.target) + b" is on a file that is loopback-mounted through"
    file = facts.host.loop(step.target.token).file.encode()
    prefix += b" {number of " + file + b"},\nwhich is mounted "
    return prefix + sharing.BUSY[facts.wanted, taken]


def shown(target: Target) -> bytes:
    """How a block device is called in keys and texts."""
    return target.real if target.is_link else target.path


def connected(step: Step, mode: str) -> Observation:
    """The disk's device is in the store, and a loop device of its own if it is a file."""
    done = {"hotplug-status": b"connected", "hotplug-error": None}
    if step.target.kind == "device":
        number = b"{number " + step.target.token.encode() + b"}"
        keys = {"physical-device": number, "physical-device-path": shown(step.target)}
        return outcome(step, 0, {**keys, **done})
    file = step.target.token
    half, old = step.node(), step.owned()
    loops, made = step.before.loops, step.before.made
    if half is not None and half != old and half.file == file:
        new = half
    else:
        loops = loops - {old} if old is not None else loops
        token = f"{file}#{made.get(file, 0) + 1}"
        new = Bound(token, file, mode == "r", 0, 0, autoclear=False)
    node = b"{loop " + new.token.encode() + b"}"
    number = b"{number " + new.token.encode() + b"}"
    keys = {"node": node, "physical-device": number, "physical-device-path": node}
    return outcome(step, 0, {**keys, **done}, loops=loops | {new})


def removed(step: Step) -> Observation:
    """What ``remove`` leaves behind: nothing is written, and what is this backend's is gone."""
    return dataclasses.replace(silent(step), loops=step.before.loops - {to_detach(step)})


def to_detach(step: Step) -> Bound | None:
    """Ours by record; what stock attached if ``node`` names it and it still is the disk's file."""
    owned, named = step.owned(), step.node()
    if owned is not None or named is None or named.token in step.owners:
        return owned
    is_file = step.target.kind == "file" and named.file == step.target.token
    if is_file or named.backing in {step.key("params"), step.target.real}:
        return named
    return None
