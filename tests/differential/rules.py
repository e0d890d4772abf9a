"""Where ours may, and then must, differ from stock: one rule for each line of the contract.

A rule sees a step and what stock left behind, and says what must be there instead, or None if it
does not apply. The rules are asked in order, each about what the ones before it made of it; what
comes out at the end is demanded of ours to the letter. A rule says first what stock did, so that
a difference of another kind finds no excuse here.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, TypeAlias

from differential import scenario as a
from differential import sharing
from differential.demands import added, outcome, refused, removed, shown, silent
from differential.noise import LOSETUP_FAILED
from differential.observation import BASE, Mentions, differences, vague

if TYPE_CHECKING:
    from collections.abc import Callable

    from differential.demands import Step
    from differential.observation import Observation
    from differential.sharing import Reading

    Rule: TypeAlias = Callable[[Step, Observation], Observation | None]

NEEDED = ("params", "mode", "frontend-id")  # in the order in which they are read
ODD = re.compile(rb"[^\x20-\x7e]|\\")
SPLIT = re.compile(rb"[ \t\n*?\[]")


def explain(step: Step) -> tuple[Observation, list[str]]:
    """What ours must have left behind, and the rules that made it differ from stock."""
    seen, fired = step.stock, []
    for name, rule in RULES.items():
        demanded = rule(step, seen)
        if demanded is not None:
            seen = demanded
            fired.append(name)
    return seen, fired


# What stock does.


def is_same(expected: Observation, seen: Observation) -> bool:
    return not differences(expected, seen)


def is_lie(step: Step, seen: Observation) -> bool:
    """``connected`` without a device, and exit 1."""
    return is_same(
        dataclasses.replace(outcome(step, 0, {"hotplug-status": b"connected"}), status=1), seen
    )


def is_generic(step: Step, seen: Observation, key: str = "") -> bool:
    """The sentence that says nothing; with a key, the one about it went to the log before."""
    text = b"{script} failed; error detected."
    expected = refused(step, text)
    if key:
        first = b"{script}: xenstore-read " + step.path + b"/" + key.encode() + b" failed."
        expected = dataclasses.replace(expected, errors=(first, *expected.errors))
    return is_same(expected, seen)


def is_nop(step: Step, seen: Observation) -> bool:
    return is_same(silent(step), seen)


def text_of(step: Step, seen: Observation) -> bytes:
    """Stock's; not what a rule demands of ours by now."""
    text = seen.store.get(f"{BASE}/{step.backend}/hotplug-error")
    return text if isinstance(text, bytes) else b""


def first_missing(step: Step, *keys: str) -> str:
    return next((key for key in keys if not step.key(key)), "")


def is_fresh_add(step: Step) -> bool:
    """An add of a backend that has all its keys and no device."""
    return (
        isinstance(step.operation, a.Add)
        and not first_missing(step, *NEEDED)
        and step.key("physical-device") is None
    )


# The rules.


def lock_file_removed(step: Step, seen: Observation) -> Observation | None:
    if seen.status == 1 and seen.litter - step.before.litter == {"block"}:
        return dataclasses.replace(seen, litter=step.before.litter)
    return None


def stale_error_cleared(step: Step, seen: Observation) -> Observation | None:
    path = f"{BASE}/{step.backend}/hotplug-error"
    done = isinstance(step.operation, a.Add) and seen.status == 0
    if done and seen.store != step.before.store and path in seen.store:
        store = {key: value for key, value in seen.store.items() if key != path}
        return dataclasses.replace(seen, store=store)
    return None


def not_resurrected(step: Step, seen: Observation) -> Observation | None:
    if not step.backend or step.before.has(step.backend) or not is_generic(step, seen, "params"):
        return None
    if isinstance(step.operation, a.Add):
        return silent(step, Mentions((step.path,)))
    return removed(step)


def missing_key_named(step: Step, seen: Observation) -> Observation | None:
    key = first_missing(step, *NEEDED)
    if isinstance(step.operation, a.Add) and key and is_generic(step, seen, key):
        return refused(step, Mentions((step.path + b"/" + key.encode(),)))
    return None


def partial_completed(step: Step, seen: Observation) -> Observation | None:
    device = step.key("physical-device")
    died = step.key("hotplug-status") != b"connected" and step.key("state") == b"2"
    half = device == b"" or (device is not None and died)
    if isinstance(step.operation, a.Add) and half and is_nop(step, seen):
        return added(step)
    return None


def state_checked(step: Step, seen: Observation) -> Observation | None:
    if is_fresh_add(step) and step.key("state") != b"2":
        return added(step) if b"Path closed" not in text_of(step, seen) else None
    return None


def absent_refused(step: Step, seen: Observation) -> Observation | None:
    if is_fresh_add(step) and step.target.kind == "none" and is_lie(step, seen):
        return added(step)
    return None


def relative_found(step: Step, seen: Observation) -> Observation | None:
    relative = not (step.key("params") or b"").startswith((b"/", b"{folder}", b"{loop "))
    device = step.target.kind == "device"
    return (
        added(step) if is_fresh_add(step) and relative and device and is_lie(step, seen) else None
    )


def bytes_kept(step: Step, seen: Observation) -> Observation | None:
    odd = ODD.search(step.key("params") or b"") and step.target.kind != "none"
    return added(step) if is_fresh_add(step) and odd and is_lie(step, seen) else None


def words_kept(step: Step, seen: Observation) -> Observation | None:
    if is_fresh_add(step) and (step.key("params") or b"").startswith(b"-"):
        is_silent = is_same(dataclasses.replace(silent(step), status=1), seen)
        return added(step) if is_silent else None  # taken for an option of xenstore-write
    if not is_fresh_add(step) or step.target.kind != "device" or not SPLIT.search(step.target.path):
        return None
    text, path = text_of(step, seen), vague(shown(step.target))
    if seen.status == 0:
        of_another = seen.key(step.backend, "physical-device-path") != shown(step.target)
    else:
        absent = text.endswith((b" does not exist.", b" is not a block device."))
        of_another = absent or not text.startswith(b"Device " + path + b" is mounted ")
    return added(step) if of_another else None


def access_tried(step: Step, seen: Observation) -> Observation | None:
    writes = sharing.canonical(step.key("mode") or b"") != "r"
    if is_fresh_add(step) and step.target.sealed and writes:
        return added(step) if LOSETUP_FAILED.fullmatch(text_of(step, seen)) else None
    return None


def orphan_taken_back(step: Step, seen: Observation) -> Observation | None:
    old = step.owned()
    if is_fresh_add(step) and old is not None and seen.status == 0 and old in seen.loops:
        return dataclasses.replace(seen, loops=seen.loops - {old})
    return None


def reads(**better: bool) -> Rule:
    """A rule for one thing that stock's sharing check gets wrong."""
    (name,) = better

    def rule(step: Step, seen: Observation) -> Observation | None:
        if not is_fresh_add(step) or step.key("state") != b"2" or step.target.kind == "none":
            return None
        worse = reading_before(name, step)
        now = dataclasses.replace(worse, **better)
        before, after = added(step, worse), added(step, now)
        return after if differences(before, after) and is_same(before, seen) else None

    return rule


def reading_before(name: str, step: Step) -> Reading:
    """Stock's reading, corrected in everything that comes before ``name``."""
    names = [field.name for field in dataclasses.fields(sharing.Reading)]
    right = dict.fromkeys(names[: names.index(name)], True)
    if step.finds_files:
        right["files"] = True
    return sharing.Reading(**right)


def detached_by_record(step: Step, seen: Observation) -> Observation | None:
    if not isinstance(step.operation, a.Remove) or is_same(removed(step), silent(step)):
        return None
    key = first_missing(step, "params", "mode")
    left = is_generic(step, seen, key) if key else is_nop(step, seen)
    return removed(step) if left else None


def removal_without_device(step: Step, seen: Observation) -> Observation | None:
    key = first_missing(step, "params", "mode", "node")
    if isinstance(step.operation, a.Remove) and key and is_generic(step, seen, key):
        return removed(step)
    return None


def only_own_detached(step: Step, seen: Observation) -> Observation | None:
    if not isinstance(step.operation, a.Remove):
        return None
    again = step.node() is None and is_generic(step, seen)
    foreign = seen.status == 0 and (step.before.loops - seen.loops) & removed(step).loops
    return removed(step) if again or foreign else None


def orphan_reclaimed(step: Step, seen: Observation) -> Observation | None:
    owned = step.owned()
    if isinstance(step.operation, a.Delete | a.Create) and step.watched and owned in seen.loops:
        return dataclasses.replace(seen, loops=seen.loops - {owned})
    return None


RULES: dict[str, Rule] = {
    "D26": lock_file_removed,
    "D21": stale_error_cleared,
    "D18": not_resurrected,
    "D04": missing_key_named,
    "D20": partial_completed,
    "D17": state_checked,
    "D01": absent_refused,
    "F34": relative_found,
    "D30": bytes_kept,
    "D28": words_kept,
    "D55": access_tried,
    "D07": orphan_taken_back,
    "D02": reads(files=True),
    "D03": reads(offsets=True),
    "D10": reads(absent=True),
    "D11": reads(forced=True),
    "D12": reads(suffix=True),
    "D13": reads(environment=True),
    "3.4 kinds": reads(kinds=True),
    "3.4 beneath": reads(beneath=True),
    "D06": detached_by_record,
    "F63": removal_without_device,
    "D09": only_own_detached,
    "D56": orphan_reclaimed,
}
