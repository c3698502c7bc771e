"""Lives many fleets, or one again: see fleet_life.py.

Examples:

    python tests/sim/fleet_run.py --seeds 10000
    python tests/sim/fleet_run.py --seed 4711 -v
    python tests/sim/fleet_run.py --seeds 2000 --mutant "majority"

Sets of bytes have another order in every process, and with them the messages of the coordinator;
so it starts itself anew with PYTHONHASHSEED=0: a seed is then the same life wherever it is lived.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from typing import Any

CHUNK = 20
FAILURES_MAX = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="live this one life")
    parser.add_argument("--seeds", type=int, default=2000, help="how many lives")
    parser.add_argument("--first", type=int, default=1, help="their first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--faultless", action="store_true", help="nothing goes wrong")
    parser.add_argument("--mutant", default="", help="a rule to replace, see fleet_mutants.py")
    parser.add_argument("--native", default="", help="another build of the C core")
    parser.add_argument("--points", default="", help="a file for the paths taken, as JSON")
    parser.add_argument("-v", action="store_true", help="every event")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    if options.native:
        use_native(options.native)
    if options.mutant:
        from fleet_mutants import plant

        plant(options.mutant)
    if options.seed is not None:
        lives([options.seed], options)
        return 0
    return many(options)


def use_native(path: str) -> None:
    """Puts another build of the C core in the place of the package's own."""
    spec = importlib.util.spec_from_file_location("collectives._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["collectives._native"] = module
    spec.loader.exec_module(module)


def lives(seeds: list[int], options: argparse.Namespace) -> tuple[list[int], Counter[str]]:
    """Lives these; returns the seeds that failed, which have told why, and the points."""
    from fleet_life import live

    points: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        try:
            points += live(seed, verbose=options.v, faultless=options.faultless)
        except Exception as error:
            if options.seed is not None:
                raise
            if not isinstance(error, AssertionError):
                print(f"  {error!r}")
            failures.append(seed)
            if len(failures) >= FAILURES_MAX or options.mutant or options.native:
                break
    return failures, points


def many(options: argparse.Namespace) -> int:
    end = options.first + options.seeds
    chunks = [
        (list(range(at, min(at + CHUNK, end))), options) for at in range(options.first, end, CHUNK)
    ]
    started = time.monotonic()
    failed: list[int] = []
    points: Counter[str] = Counter()
    lived = 0
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for failures, reached in pool.imap(work, chunks):
            failed += failures
            points += reached
            lived += CHUNK
            if len(failed) >= FAILURES_MAX or (failed and (options.mutant or options.native)):
                break
        pool.terminate()
    seconds = time.monotonic() - started
    for name, count in sorted(points.items()):
        print(f"{count:8}  {name}")
    count = min(lived, options.seeds)
    print(
        f"{count} lives in {seconds:.0f} s, {1000 * seconds / count:.0f} ms each; failed: {failed}"
    )
    if options.points:
        with open(options.points, "w", encoding="ascii") as file:
            json.dump({"failed": failed, "points": points}, file)
    return 1 if failed else 0


def work(chunk: tuple[list[int], Any]) -> tuple[list[int], Counter[str]]:
    found = lives(*chunk)
    sys.stdout.flush()
    return found


if __name__ == "__main__":
    sys.exit(main())
