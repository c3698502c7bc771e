"""Chaos: eight real processes over TCP, which are killed, stopped and cut off while they compute.

    make chaos                                        1,000 faults
    make chaos CHAOS="--faults 60"
    make chaos CHAOS="--seed 7 --faults 60"           that plan again
    make chaos CHAOS="--loopback"                     without namespaces, and so without blackholes
    COLLECTIVES_TRACE_DIR=DIR make chaos              with a trace of each failure; drawing these
                                                      takes memory, which is called a leak then

Goal: what the library promises holds with real processes, sockets and signals: whoever survives
gets the one correct result of every operation, inside the call. Method: peers (member.py) call what
a seed says (script.py) and write every outcome to a mapped file that outlives them (ledger.py); the
driver (driver.py) strikes them by a plan (faults.py) in network namespaces of their own (arena.py)
and replaces who died; the checker (checker.py) computes every result again from the contributors'
inputs and compares all outcomes, also those that only the dead have seen.

It ends with one line and a report in JSON, and with 1 if any promise was broken; ledgers and logs
are then kept. The plan is the same for the same seed; where exactly a blow falls is up to the
machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import faults
from arena import Loopback, Namespaces, why_no_namespaces
from checker import Checker, Story, Verdict
from driver import Driver
from faults import Kind
from process import Failed

ROOT = Path(__file__).resolve().parents[2]
TOLD_EVERY_S = 10.0


class Run:
    """One run, from the arguments to the report."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.skip: dict[Kind, str] = {}
        missing = "--loopback" if args.loopback else why_no_namespaces()
        self.arena_class = Loopback if missing else Namespaces
        if missing:
            self.skip[Kind.CUT] = f"no network namespaces: {missing}"
        args.folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{args.seed}-", dir=args.folder))
        self.began = self._told = time.monotonic()
        self.driver: Driver | None = None
        self.verdict = Verdict()

    def strike(self) -> None:
        """Raises Failed."""
        plan = faults.plan(self.args.seed, self.args.faults)
        with self.arena_class(self.args.peers + 1, self.folder) as arena:
            self.driver = Driver(
                arena,
                self.folder,
                self.args.seed,
                self.args.peers,
                self.skip,
                self.args.limit,
                self.args.plant,
            )
            with self.driver:
                self.driver.run(plan, self.tell)

    def tell(self, done: int) -> None:
        if time.monotonic() - self._told >= TOLD_EVERY_S:
            self._told = time.monotonic()
            assert self.driver is not None
            lines = max(p.ledger.word("ended") for p in self.driver.peers if p.ledger)
            print(f"{self._told - self.began:6.0f} s  {done} faults, operation {lines}", flush=True)

    def check(self) -> None:
        assert self.driver is not None
        stories = [
            Story(p.number, p.ledger.lines, p.ledger.word("begun"), p.fault is not None)
            for p in self.driver.peers
            if p.ledger
        ]
        book = self.driver.book
        self.verdict = Checker(self.args.seed, stories, book.members).check()
        self.verdict.wrong += book.contradictions

    # ---- what is told ----------------------------------------------------------------------------

    def recoveries(self, alone: bool) -> dict[str, dict[str, float]]:
        """By kind, seconds from a fault to the outcome, on the last of those to whom nothing was
        done, of the operation that the victim was in. `alone`: only where the group was whole
        before, and nothing else was done until then."""
        assert self.driver is not None
        found: dict[str, list[float]] = {}
        unharmed = [p.ledger.lines for p in self.driver.peers if p.ledger and p.fault is None]
        times = [at for at, _, _ in self.driver.tally.at]
        for at, fault, number in self.driver.tally.at:
            victim = self.driver.peers[number].ledger if number >= 0 else None
            if victim is None or not len(victim.lines):
                continue
            begun = victim.word("begun")
            if fault.kind is not Kind.KILL:  # what it did when it was let go on is no matter
                begun = int(victim.lines["number"][victim.lines["at"] <= at].max(initial=0)) + 1
            lines = [lines[lines["number"] == begun] for lines in unharmed]
            end = max((float(line["at"][0]) for line in lines if len(line)), default=0.0)
            if end <= at or (alone and not fault.calm):
                continue
            if not alone or not any(at < other < end for other in times):
                name = f"partial {fault.kind.value}" if fault.partial else fault.kind.value
                found.setdefault(name, []).append(end - at)
        return {
            name: {"p50_s": statistics.median(each), "max_s": max(each), "of": len(each)}
            for name, each in found.items()
        }

    def report(self, broken: str) -> dict[str, Any]:
        assert self.driver is not None
        tally, verdict = self.driver.tally, self.verdict
        done = {kind.value: count for kind, count in tally.done.items()}
        return {
            "seed": self.args.seed,
            "faults": self.args.faults,
            "peers": self.args.peers,
            "namespaces": self.arena_class is Namespaces,
            "seconds": time.monotonic() - self.began,
            "done": done,
            "skipped": {
                kind.value: {"count": tally.skipped[kind], "why": why}
                for kind, why in self.skip.items()
            },
            "kills_in_operation": tally.struck,
            "processes": len(self.driver.peers),
            "operations": verdict.operations,
            "recomputed": verdict.recomputed,
            "began_again": verdict.again,
            "agreed_losses": verdict.lost,
            "boundaries": verdict.boundaries,
            "epochs": verdict.epochs,
            "contributors_unknown": verdict.anonymous,
            "contributors_in_journal": verdict.in_journal,
            "recovery_alone": self.recoveries(alone=True),
            "recovery": self.recoveries(alone=False),
            "measured": tally.measured,
            "growth_mib": tally.growth_mib,
            "broken": broken,
            "wrong": verdict.wrong,
        }


def summary(report: dict[str, Any]) -> str:
    """One line."""
    done = ", ".join(f"{count} {kind}s" for kind, count in report["done"].items() if count)
    skipped = "".join(
        f"; {what['count']} {kind}s skipped: {what['why']}"
        for kind, what in report["skipped"].items()
        if what["count"]
    )
    growth = f"memory grew by {report['growth_mib']:.1f} MiB"
    if not report["measured"]:
        growth = "too short to tell whether memory grows"
    return (
        f"{done} ({report['kills_in_operation']} kills in an operation){skipped}; "
        f"{report['operations']} operations by {report['processes']} processes, "
        f"{report['recomputed']} results computed again, {report['began_again']} begun again, "
        f"{report['agreed_losses']} agreed losses; {growth}; "
        f"{report['seconds']:.0f} s; seed {report['seed']}"
    )


def stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)  # through all `with` statements, which end what was started


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--faults", type=int, default=1000, help="default: %(default)s")
    add("--seed", type=int, help="default: any; it is printed")
    add("--peers", type=int, default=8, help="default: %(default)s")
    add("--loopback", action="store_true", help="no namespaces, and so no blackholes")
    add("--folder", type=Path, default=ROOT / "build" / "chaos", help="for ledgers and logs")
    add("--json", type=Path, metavar="FILE", help="where to write the report")
    add("--keep", action="store_true", help="keep ledgers and logs though all is well")
    add("--limit", type=float, default=30.0, help="of a peer without progress, s (%(default)g)")
    # For its tests: a fault of a peer itself.
    add("--plant", choices=["", "wrong", "death", "hang", "descriptor"], help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(2**32)
    args.plant = args.plant or ""
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    signal.signal(signal.SIGTERM, stop)
    run = Run(args)
    where = "in network namespaces" if run.arena_class is Namespaces else "over loopback"
    print(f"chaos: seed {args.seed}, {args.faults} faults, {args.peers} peers {where}", flush=True)
    for kind, why in run.skip.items():
        print(f"chaos: {kind.value} faults are skipped: {why}", flush=True)
    broken = ""
    try:
        run.strike()
    except Failed as why:
        broken = str(why)
    except KeyboardInterrupt:
        return 130
    if run.driver is not None:
        run.check()
    report = run.report(broken)
    (args.json or run.folder / "report.json").write_text(json.dumps(report, indent=1))
    struck = report["kills_in_operation"] * 2 >= report["done"]["kill"]
    if broken or run.verdict.wrong or not struck:
        for line in filter(None, [broken, *run.verdict.wrong]):
            print(f"chaos: {line}")
        if not struck:
            print("chaos: fewer than half of the kills fell into an operation")
        print(f"chaos FAILED: {summary(report)}")
        print(f'that plan again: make chaos CHAOS="--seed {args.seed} --faults {args.faults}"')
        print(f"ledgers and logs: {run.folder}")
        return 1
    if not args.keep:
        shutil.rmtree(run.folder)
    print(f"chaos passed: {summary(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
