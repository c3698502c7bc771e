"""What faults cost, and what it costs to be safe from them: four ranks, 64 MiB all-reduce.

    make bench-recovery                               everything, about ten minutes
    make bench-recovery RECOVERY="--kills 5 --silent 2 --down 5 --rounds 3"      a look

One run measures: the time from a SIGKILL in mid-operation to the correct result on the last
survivor; the same with one survivor whose interpreter is busy; from a SIGSTOP and a blackhole; what
happens while the coordinator is away, and how soon after its return a joiner is let in; joins; and,
interleaved and without any fault, what the safe variants of an operation cost beside the others.
Every result is compared with the exact one. What the machine or this version cannot do is said in
the report instead of a figure.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "chaos"))

import recovery_report
from arena import Loopback, Namespaces, why_no_namespaces
from process import Failed
from recovery_group import Group
from recovery_rank import VARIANTS

from collectives.cli import bench
from collectives.cli.progress import Progress

RANKS = 4
SMALL_BYTES = 4
SMALL_COUNT = 300  # operations of a round, of the small ones
MISSES_MAX = 3  # of each strike that is to count, so many may come too late


class Run:
    """One run; `results` is what the report is made of."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.rng = random.Random(args.seed)
        self.joins: list[float] = []
        self.results: dict[str, Any] = {"ranks": RANKS, "bytes": args.bytes, "seed": args.seed}

    def group(self, arena: Loopback) -> Group:
        return Group(arena, self.folder, RANKS, self.args.bytes, self.joins)

    def strikes(self, name: str, arena: Loopback, how: str, count: int, busy_s: float = 0) -> None:
        """So many that struck in mid-operation."""
        found: list[dict[str, Any]] = []
        misses = 0
        with self.group(arena) as group:
            while len(found) < count:
                with Progress(f"{name}: {len(found)} of {count}"):
                    struck = group.strike(how, self.rng, busy_s)
                if struck is not None:
                    found.append(struck)
                    continue
                misses += 1
                if misses > MISSES_MAX * count:
                    raise Failed(f"{name}: {misses} strikes came after the operation was over")
        self.results[name] = {
            "seconds": [each["seconds"] for each in found],
            "busy_s": [each["busy_s"] for each in found],
            "contributors": [each["contributors"] for each in found],
            "misses": misses,
        }

    def run(self) -> None:
        args, here = self.args, Loopback(RANKS + 2, self.folder)
        self.cost(here)
        self.strikes("kill", here, "kill", args.kills)
        self.results["join_s"] = list(self.joins)
        self.strikes("kill_busy", here, "kill", args.kills, busy_s=args.busy)
        self.strikes("stop", here, "stop", args.silent)
        if missing := why_no_namespaces():
            self.results["cut_absent"] = f"no network namespaces: {missing}"
        else:
            with Namespaces(RANKS + 2, self.folder) as arena:
                self.strikes("cut", arena, "cut", args.silent)
        self.coordinator(here)

    def coordinator(self, arena: Loopback) -> None:
        with self.group(arena) as group, Progress("the coordinator is away"):
            self.results["coordinator"] = group.without_coordinator(self.args.down)

    def cost(self, arena: Loopback) -> None:
        """Rounds in which each variant has its turn, every second one backwards. Of each the
        median of the slowest rank."""
        found: dict[str, dict[str, list[float]]] = {}
        sizes = {SMALL_BYTES: SMALL_COUNT, self.args.bytes: 1}
        with self.group(arena) as group:
            for number in range(self.args.rounds):
                for size_bytes, count in sizes.items():
                    for variant in list(VARIANTS)[:: 1 if number % 2 == 0 else -1]:
                        with Progress(f"without faults: round {number + 1}, {variant}"):
                            answers = group.ask(
                                "time", variant.replace(" ", "_"), size_bytes, count
                            )
                        us = max(statistics.median(answer["us"]) for answer in answers)
                        found.setdefault(str(size_bytes), {}).setdefault(variant, []).append(us)
        self.results["cost_us"] = found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recovery", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--kills", type=bench.positive, default=50, help="default: %(default)s")
    add("--silent", type=bench.positive, default=10, help="stops, and cuts (%(default)s)")
    add("--busy", type=float, default=2.0, help="seconds of a busy interpreter (%(default)g)")
    add("--down", type=float, default=60.0, help="seconds without coordinator (%(default)g)")
    add("--rounds", type=bench.positive, default=20, help="without faults (%(default)s)")
    add("--bytes", type=int, default=64 << 20, help="of a message (%(default)s)")
    add("--seed", type=int, default=1, help="of victims and moments (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="where to keep what was measured")
    add("--markdown", type=Path, metavar="FILE", help="where to write the report, too")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    stop: Callable[..., Any] = lambda number, frame: sys.exit(128 + number)  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        run = Run(args, Path(folder))
        try:
            run.run()
        except Failed as why:
            print(f"recovery: {why}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    text = recovery_report.text(run.results)
    if args.json:
        args.json.write_text(json.dumps(run.results, indent=1))
    if args.markdown:
        args.markdown.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
