"""The benchmark of the mailing-list thread on a real Xen (``make lab-bench``).

A paravirtual guest of 400 MB with four disks in files and one network card is restored from a save
file in memory, by the stock scripts and by ours, in one boot, in turns. The stock scripts are those
that ``xen-hotplug install`` has put aside, and no agent runs meanwhile. What libxl runs to restore
memory is Xen's own in both, but in the cases that are about it. Compare the two columns of one run
with each other: emulation makes processes dearer than hardware does.

build/bench/lab.json (lab-4.20.json for another release than the default; lab-core.json and
lab-memory.json for a part) holds

    machine   xen, kernel (dom0's), rounds (of most cases)
    note      which part of ours is still a stock script
    restore   {"stock": {"wall_s": [...], "processes": [...], "hotplug_cpu_s": [...]}, "ours": {the
              same}, "ratio": median wall of stock by median wall of ours}
    restore_with_40_others, restore_four_at_once     the same; and "restored", how many guests each
                run has restored: libxl gives a script 40 s, and stock's may need more together
    restore_without_devices                          {"wall_s", "processes", "hotplug_cpu_s"}
    helper      {"full": {"stock": {"wall_s": [...], "cpu_s": [...]}, "ours": {the same}},
                "full_ratio": .., "compact": the same, "compact_ratio": ..}: what libxl runs to
                restore memory; Xen's own from the full file, ours from that and from the compacted
    savefile    {"bytes": what the compacted file takes of the disk}
    everything  {"stock", "ours", "ratio"}: all that is Xen's from the full file, with its disks and
                its card; all that is ours from the compacted one
    guest_disk   {"stock": {"read_s": [...], "write_s": [...]}, "ours": {the same}}
    driver_domain   {"devd": {"connected_s": [...], "p50_s", "processes" (per card)}, "ours": {the
                    same}, "ratio": p50 of devd by p50 of ours}; see driver_bench.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from lab import driver_bench, hotplug
from lab.guests import Disk, Guest
from lab.image import TREE, BuildError, image
from lab.machine import LabError, Machine
from lab.releases import chosen

ROUNDS = 3
RESTORES = 8  # at least, of the case that everything is compared with
MEMORY = 400  # MB
DISKS = 4
OTHERS = 40
AT_ONCE = 4
NAMES = "block,vif-bridge,block.stock,vif-bridge.stock"  # of the scripts
SAVE, COMPACT = "/tmp/bench.save", "/tmp/bench-compact.save"
THROUGHPUT, DD_ROUNDS = 48, 7  # MB; often, because it is about a small difference
FIGURES = ("wall_s", "processes", "hotplug_cpu_s")
NOTES = {
    False: "ours: disks natively; the network card by the stock vif-bridge",
    True: "ours: disks and network card natively",
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDES = {"stock": hotplug.stop_agent, "ours": hotplug.start_agent}


@dataclass(slots=True)
class Bench:
    """A booted host, and what was measured on it."""

    machine: Machine
    rounds: int
    results: dict[str, object] = field(default_factory=dict)
    cards: bool = False  # whether ours serve them
    stock_helper: str = ""

    def run(self, *, core: bool = False, memory: bool = False) -> dict[str, object]:
        """Play everything; ``core``: the restore alone; ``memory``: what guests' memory takes."""
        self.results["machine"] = {
            "xen": self.machine.do("xl info xen_version").strip(),
            "kernel": self.machine.do("uname -r").strip(),
            "rounds": self.rounds,
        }
        stock = f"/etc/xen/scripts/vif-bridge{hotplug.STOCK}"
        self.cards = self.machine.call("await_path", path=stock, limit=0)
        self.results["note"] = NOTES[self.cards]
        self.stock_helper = hotplug.stock_helper(self.machine)
        self.prepare()
        if memory:
            self.memory()
            return self.results
        if core:
            self.compare("restore", 1)
            return self.results
        self.play("ours", 1)  # what is read for the first time comes from the disk
        self.play("stock", 1)
        self.compare("restore", 1, rounds=max(self.rounds, RESTORES))
        bare = Guest(self.machine, "bench0", memory=MEMORY)
        took = self.measure([bare])
        assert took["restored"] == 1, took["said"]
        self.results["restore_without_devices"] = {name: took[name] for name in FIGURES}
        with self.others():
            self.compare(f"restore_with_{OTHERS}_others", 1)
        self.compare("restore_four_at_once", AT_ONCE)
        self.memory()
        self.results["guest_disk"] = self.throughput()
        self.results["driver_domain"] = driver_bench.measure(self.machine, self.rounds)
        return self.results

    def memory(self) -> None:
        """Save helpers, alone and in the whole."""
        taken = self.machine.do(f"stat -c '%b %B' {COMPACT}").split()
        self.results["savefile"] = {"bytes": int(taken[0]) * int(taken[1])}
        self.play("ours", 1, saved=COMPACT)  # of which nothing counts, as in ``run``
        found: dict[str, object] = {}
        for name, file in (("full", SAVE), ("compact", COMPACT)):
            found[name] = self.helpers(name, file)
            medians = [statistics.median(found[name][side]["wall_s"]) for side in ("stock", "ours")]
            found[f"{name}_ratio"] = round(medians[0] / medians[1], 2)
        self.results["helper"] = found
        self.compare("everything", 1, saved=COMPACT)

    def helpers(self, name: str, file: str) -> dict[str, dict[str, list[float]]]:
        """What libxl runs, of Xen from the full file and ours from another."""
        sides = {side: {"wall_s": [], "cpu_s": []} for side in SIDES}
        for number in range(self.rounds):
            for side in sorted(SIDES, reverse=bool(number % 2)):
                self.become(side)
                bare = Guest(self.machine, "bench0", memory=MEMORY)
                whole = self.measure([bare], "" if side == "stock" else file)
                assert whole["restored"] == 1, whole["said"]
                took = whole["helper"]
                say = f"{name} file, {side}: {took['wall_s']:.2f} s, CPU {took['cpu_s']:.2f} s"
                print(f"helper, {say}", file=sys.stderr, flush=True)
                for figure in sides[side]:
                    sides[side][figure].append(took[figure])
        return sides

    def become(self, side: str) -> None:
        SIDES[side](self.machine)
        if side == "ours":
            hotplug.await_workers(self.machine)

    def guest(self, number: int, side: str = "ours") -> Guest:
        suffix = hotplug.STOCK if side == "stock" else ""
        disks = [
            Disk(f"xvd{LETTERS[d]}", f"/tmp/bench-{number}-{d}.img", script=f"block{suffix}")
            for d in range(DISKS)
        ]
        card = f"bridge=xenbr0,script=vif-bridge{suffix if self.cards else ''}"
        name, address = f"bench{number}", "10.99.0.2"
        return Guest(self.machine, name, disks, memory=MEMORY, address=address, vifs=[card])

    def prepare(self) -> None:
        """Images, and a save file that all guests are restored from."""
        disks = [disk.target for number in range(AT_ONCE) for disk in self.guest(number).disks]
        self.machine.do("truncate -s 64M " + " ".join(disks))
        hotplug.start_agent(self.machine)
        first = self.guest(0)
        first.start()
        self.machine.do(f"LIBXL_SAVE_HELPER={self.stock_helper} xl save {first.name} {SAVE}")
        self.machine.do(f"xen-hotplug savefile compact {SAVE} {COMPACT}")

    @contextlib.contextmanager
    def others(self):
        """A guest with many disks, beside those that are measured. It need not run."""
        hotplug.start_agent(self.machine)
        names = [f"xvd{letter}" for letter in LETTERS] + [f"xvda{letter}" for letter in LETTERS]
        disks = [Disk(name, f"/tmp/other-{name}.img") for name in names[:OTHERS]]
        self.machine.do("truncate -s 1M " + " ".join(disk.target for disk in disks))
        other = Guest(self.machine, "others", disks)
        other.write_config()
        self.machine.do(f"xl create -p {other.config_path}")
        try:
            yield
        finally:
            other.destroy()

    def compare(self, case: str, count: int, saved: str = "", rounds: int = 0) -> None:
        """Both sides in turns; ``saved``: our helper restores from this file."""
        figures = (*FIGURES, "restored")
        found = {side: {name: [] for name in figures} for side in SIDES}
        for number in range(rounds or self.rounds):
            for side in sorted(SIDES, reverse=bool(number % 2)):
                took = self.play(side, count, saved)
                print(f"{case}, {side}: {took['wall_s']:.2f} s", file=sys.stderr, flush=True)
                for name in figures:
                    found[side][name].append(took[name])
        medians = {side: statistics.median(found[side]["wall_s"]) for side in SIDES}
        self.results[case] = {**found, "ratio": round(medians["stock"] / medians["ours"], 2)}

    def play(self, side: str, count: int, saved: str = "") -> dict[str, float]:
        self.become(side)
        guests = [self.guest(number, side) for number in range(count)]
        took = self.measure(guests, "" if side == "stock" else saved)
        if took["restored"] < count and (side == "ours" or count == 1):
            raise LabError(f"{took['restored']} of {count} restored: {took['said']}")
        return took

    def measure(self, guests: list[Guest], saved: str = "") -> dict[str, float]:
        """Restore guests at once, and destroy them; by our helper from a file, or by Xen's own."""
        machine = self.machine
        for guest in guests:
            guest.write_config()
        restores = [f"xl restore {guest.config_path} {saved or SAVE}" for guest in guests]
        command = " & ".join(restores)
        if len(guests) > 1:
            command += " & wait"
        if not saved:
            command = f"export LIBXL_SAVE_HELPER={self.stock_helper}; {command}"
        measured = machine.do(f"python3 -IS /lab/measure.py {NAMES} bash -c '{command}'", limit=400)
        took = json.loads(measured)
        took["restored"] = sum(guest.is_there for guest in guests)
        hotplug.destroy_guests(machine, "bench")
        left = {loop: path for loop, path in machine.call("loops").items() if "/bench-" in path}
        if left and took["restored"] == len(guests):
            raise LabError(f"still attached after their guests: {' '.join(left.values())}")
        for loop in left:  # of scripts that were killed
            machine.do(f"losetup --detach {loop}")
        return took

    def throughput(self) -> dict[str, dict[str, list[float]]]:
        """Seconds that a guest takes for a disk that ours attached, and for one of stock's."""
        hotplug.start_agent(self.machine)
        sides = {"ours": self.guest(0).disks[0], "stock": self.guest(0, "stock").disks[1]}
        guest = Guest(self.machine, "disks", list(sides.values()), memory=MEMORY)
        guest.start()
        found = {side: {"read_s": [], "write_s": []} for side in sides}
        for number in range(-1, DD_ROUNDS):  # the first is for the files' blocks to be there
            for side in sorted(sides, reverse=bool(number % 2)):
                took = dd(guest, sides[side].vdev)
                if number >= 0:
                    for name in took:
                        found[side][name].append(took[name])
        guest.destroy()
        return found


def dd(guest: Guest, vdev: str) -> dict[str, float]:
    """Write a disk and read it."""
    seconds = {}
    for name, files in (
        ("write_s", f"if=/dev/zero of=/dev/{vdev} conv=fsync"),
        ("read_s", f"if=/dev/{vdev} of=/dev/null"),
    ):
        guest.run("echo 3 >/proc/sys/vm/drop_caches")
        said = guest.run(f"time dd {files} bs=1M count={THROUGHPUT} 2>&1")
        minutes, rest = re.search(r"real\s+([0-9]+)m ([0-9.]+)s", said).groups()
        seconds[name] = 60 * int(minutes) + float(rest)
    return seconds


def table(results: dict[str, object]) -> str:
    """For people."""
    machine = results["machine"]
    host = f"Xen {machine['xen']}, Linux {machine['kernel']}, emulated, {machine['rounds']} rounds"
    head = ("stock, s", "ours, s", "ratio", "processes", "CPU of hotplug, s")
    lines = [f"{host}; medians. {results['note']}.", ""]
    lines += ["{:28}{:>10}{:>10}{:>9}{:>13}{:>20}".format("", *head)]
    for case, value in results.items():
        if not case.startswith(("restore", "everything")):
            continue
        title = case.replace("_", " ")
        if "ours" not in value:
            lines.append(f"{title:28}{value['wall_s']:>10.2f}{'':>19}{value['processes']:>13}")
            continue
        medians = {
            side: {name: statistics.median(value[side][name]) for name in FIGURES} for side in SIDES
        }
        stock, ours = medians["stock"], medians["ours"]
        processes = f"{stock['processes']:.0f} / {ours['processes']:.0f}"
        cpu = f"{stock['hotplug_cpu_s']:.2f} / {ours['hotplug_cpu_s']:.2f}"
        lines.append(
            f"{title:28}{stock['wall_s']:>10.2f}{ours['wall_s']:>10.2f}"
            f"{value['ratio']:>7.2f} x{processes:>13}{cpu:>20}"
        )
    lines += [lost for case in results if (lost := unrestored(case, results[case]))]
    for name in ("full", "compact") if "helper" in results else ():
        sides = results["helper"][name]
        stock, ours = (statistics.median(sides[side]["wall_s"]) for side in ("stock", "ours"))
        ratio = results["helper"][f"{name}_ratio"]
        lines.append(f"{f'helper, {name} file':28}{stock:>10.2f}{ours:>10.2f}{ratio:>7.2f} x")
    if "savefile" in results:
        lines.append(f"the compacted file takes {results['savefile']['bytes'] / 1e6:.1f} MB")
    if "guest_disk" in results:
        for name in ("read_s", "write_s"):
            stock, ours = (
                THROUGHPUT / statistics.median(results["guest_disk"][side][name])
                for side in ("stock", "ours")
            )
            lines.append(f"guest's disk, {name[:-2]:14}{stock:>7.1f} MB/s{ours:>7.1f} MB/s")
    if "driver_domain" in results:
        lines += driver_bench.lines(results["driver_domain"])
    return "\n".join(lines)


def unrestored(case: str, found: object) -> str:
    """What stock did not get done, "" if it did."""
    restored = found.get("stock", {}).get("restored", []) if isinstance(found, dict) else []
    if not restored or min(restored) >= (AT_ONCE if case.endswith("at_once") else 1):
        return ""
    return f"{case.replace('_', ' ')}: of {AT_ONCE}, stock has restored {restored}"


def main() -> int:
    parser = argparse.ArgumentParser(description="The thread's benchmark on a real Xen.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--core", action="store_true", help="the restore alone")
    parser.add_argument("--memory", action="store_true", help="save helpers, and the whole")
    options = parser.parse_args()
    release = chosen()
    part = "-core" * options.core or "-memory" * options.memory
    name = f"lab{part}.json" if release.xen == "4.17" else f"lab-{release.xen}{part}.json"
    path = TREE / "build" / "bench" / name
    results: dict[str, object] = {}
    try:
        with Machine(image(release)) as machine:
            hotplug.use_ours(machine)
            bench = Bench(machine, options.rounds, results)
            bench.run(core=options.core, memory=options.memory)
    except (BuildError, LabError, AssertionError) as error:
        if "note" in results:
            print(f"{table(results)}\n\nThat is not all, and is not kept:", flush=True)
        print(f"lab-bench: {error}", file=sys.stderr)
        return 1
    print(table(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nEvery figure: {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
