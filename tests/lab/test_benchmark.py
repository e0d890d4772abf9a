"""The benchmark works on every release; what it is about shows in counts that do not vary."""

from __future__ import annotations

import json
import os

import pytest
from lab import bench
from lab.image import TREE

pytestmark = pytest.mark.every_release

MOST = 20  # processes of a restore: 16, xl and its helper among them, and some of the host itself
CORE_ROUNDS = 1


def test_the_core_of_the_benchmark(lab, release):
    results = bench.Bench(lab, CORE_ROUNDS).run(core=True)
    print(bench.table(results))
    path = TREE / "build" / "bench" / f"lab-core-{release.xen}.json"
    os.makedirs(path.parent, exist_ok=True)
    path.write_text(json.dumps(results))
    stock, ours = (results["restore"][side] for side in ("stock", "ours"))
    assert max(ours["processes"]) <= MOST < min(stock["processes"])
    assert max(ours["hotplug_cpu_s"]) < min(stock["hotplug_cpu_s"])
    assert results["restore"]["ratio"] > 1
    lab.do(f"rm -f {bench.SAVE} {bench.COMPACT} /tmp/bench-*.img")
