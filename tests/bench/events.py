"""How long a device event takes, the stock scripts beside ours (``make bench``).

Both sides run in the same minutes, round by round, each round in the other order. The stock
scripts are Debian's, the store is Xen's own daemon (without Xen below it), loop devices are real.
Nothing of this host's Xen is touched. What is measured is in cases.py, the output in report.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[0] = str(TESTS)  # where `bench` and `harness` are

from bench import cases, isolation, sides  # noqa: E402 - found thanks to the line above

ROUNDS, QUICK_ROUNDS = 31, 5
DEFAULT_JSON = TESTS.parent / "build" / "bench" / "events.json"


def main() -> int:
    options = arguments()
    bench = cases.Bench(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS))
    try:
        with isolation.isolated():
            report = bench.run()
    except (isolation.CannotRunError, sides.ScriptFailedError, OSError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it had started is stopped", file=sys.stderr)
        return 130
    report.print()
    report.write(options.json)
    print(f"\nEvery figure: {os.path.relpath(options.json)}")
    return int(options.strict and not all(target.reached for target in report.targets()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures how long device events take, with the stock scripts and with ours.",
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help=f"rounds per case (default: {ROUNDS})"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: rougher figures, soon"
    )
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, help="where the figures go")
    parser.add_argument(
        "--strict", action="store_true", help="exit with status 1 if a target is missed"
    )
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return number


if __name__ == "__main__":
    sys.exit(main())
