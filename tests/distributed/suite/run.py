"""Runs torch's own distributed tests for a backend: `make test-suite RANKS=3 BACKEND=gloo`.

The exit status is 0 if all passes that is recorded to pass, and nothing is skipped that the
baseline, Gloo, does not skip. Nothing is deselected: what is skipped says why.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import case
import results as r
from case import FAILED, PASSED, SKIPPED, Result
from tree import Tree

RECORDS = Path(__file__).resolve().parent / "records"

Suites = Callable[[str, int, float], Iterator[type[unittest.TestCase]]]
"""(backend, ranks, limit in seconds) -> the tests behind each gate."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=r.BASELINE)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--only", metavar="TEXT", help="tests with this in their names; no check")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="of a test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all results go")
    parser.add_argument("--record", action="store_true", help="what comes out is right: keep it")
    parser.add_argument("--records", type=Path, default=RECORDS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def results(suites: Suites, options: argparse.Namespace) -> list[Result]:
    """Each test once: behind the first gate that is open for it."""
    ran: dict[str, Result] = {}
    shut: dict[str, Result] = {}
    tree = Tree()
    try:
        for suite in suites(options.backend, options.ranks, options.limit):
            threads = len(os.listdir("/proc/self/task"))
            assert threads == 1, f"{threads} threads after the imports: nothing can be forked off"
            for name in unittest.TestLoader().getTestCaseNames(suite):
                if (options.only or "") not in name or name in ran:
                    continue
                reason = getattr(getattr(suite, name), "__unittest_skip_why__", None)
                if reason is not None:
                    shut.setdefault(name, Result(name, SKIPPED, reason))
                    continue
                ran[name] = case.run(suite(name), name, options.limit, tree)
                tell(ran[name])
                blame(tree, ran)
        while not tree.is_empty:
            blame(tree, ran)
            time.sleep(0.01)
    finally:
        tree.kill_all()
    return [result for _, result in sorted({**shut, **ran}.items())]


def blame(tree: Tree, ran: dict[str, Result]) -> None:
    """Tests whose processes did not end fail after all."""
    for late in tree.overdue():
        reason = f"left a process behind: {late.command}"
        ran[late.test] = replace(ran[late.test], verdict=FAILED, reason=reason)
        tell(ran[late.test])


def tell(result: Result) -> None:
    reason = f": {result.reason}" if result.verdict == FAILED else ""
    print(f"{result.verdict:7} {result.seconds:5.1f} s  {result.name}{reason}", flush=True)


def check(found: Sequence[Result], options: argparse.Namespace) -> int:
    """Compares with the records; the exit status."""
    own = r.record_path(options.records, options.backend, options.ranks)
    base = r.record_path(options.records, r.BASELINE, options.ranks)
    for path in (own, base):
        if not path.exists():
            print(f"FAULT: there is no record {path} to compare with: make one with --record")
            return 1
    recorded = r.read_record(own)
    for result in found:
        if result.output and recorded.get(result.name) == PASSED:
            print(f"\n==== {result.name}: {result.reason}\n{result.output}")
    for line in r.news(found, recorded):
        print(f"better: {line}")
    faults = r.faults(found, recorded, r.read_record(base))
    for line in faults:
        print(f"FAULT: {line}")
    print(f"{len(faults)} faults" if faults else "all that must pass passed")
    return 1 if faults else 0


def main(argv: Sequence[str], suites: Suites | None = None, version: str = "") -> int:
    options = arguments(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if suites is None:
        import upstream

        suites, version = upstream.suites, upstream.version()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tree is killed
    began = time.monotonic()
    found = results(suites, options)
    about = f"{options.backend}, {options.ranks} ranks, {version}"
    print(f"\n{about}: {r.summary(found, time.monotonic() - began)}")
    if options.json:
        r.write_json(options.json, found, {"about": about})
    if options.only:
        return 0
    if options.record:
        path = r.record_path(options.records, options.backend, options.ranks)
        r.write_record(path, found, about)
    return check(found, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
