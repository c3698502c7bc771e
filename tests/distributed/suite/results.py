"""Results of a run against the recorded ones: what must pass, and what may be skipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from case import FAILED, PASSED, SKIPPED, Result

Record = Mapping[str, str]
"""A test's name -> its verdict."""

BASELINE = "gloo"
"""What it skips, others may skip."""


def record_path(folder: Path, backend: str, ranks: int) -> Path:
    return folder / f"{backend}-{ranks}.txt"


def write_record(path: Path, results: Iterable[Result], about: str) -> None:
    lines = [f"# {about}. A test a line: verdict, name, and why it was skipped."]
    for result in sorted(results, key=lambda result: result.name):
        reason = result.reason if result.verdict == SKIPPED else ""
        lines.append(f"{result.verdict:7} {result.name}{'  ' if reason else ''}{reason}")
    path.write_text("\n".join(lines) + "\n")


def read_record(path: Path) -> Record:
    """Raises FileNotFoundError, or ValueError for a line that is none."""
    record = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        verdict, name = line.split(maxsplit=2)[:2]
        if verdict not in (PASSED, FAILED, SKIPPED):
            raise ValueError(f"{path}: no verdict: {line!r}")
        record[name] = verdict
    return record


def faults(results: Sequence[Result], recorded: Record, baseline: Record) -> list[str]:
    """What must not be: one line each."""
    verdicts = {result.name: result for result in results}
    found = []
    for name, verdict in recorded.items():
        result = verdicts.get(name)
        if result is None:
            found.append(f"{name} was not run: upstream has it no more")
        elif verdict == PASSED and result.verdict != PASSED:
            found.append(f"{name} must pass, but {result.verdict}: {result.reason}")
    for result in results:
        if result.verdict == SKIPPED and baseline.get(result.name) in (PASSED, FAILED):
            found.append(f"{result.name} is skipped, and {BASELINE} is not spared: {result.reason}")
        if result.name not in recorded:
            found.append(f"{result.name} is new: record the run")
    return found


def news(results: Sequence[Result], recorded: Record) -> list[str]:
    """What is better than recorded."""
    return [
        f"{result.name} passes now: record the run"
        for result in results
        if result.verdict == PASSED and recorded.get(result.name) in (FAILED, SKIPPED)
    ]


def summary(results: Sequence[Result], seconds: float) -> str:
    count = Counter(result.verdict for result in results)
    ran = count[PASSED] + count[FAILED]
    lines = [f"{count[PASSED]} of {ran} passed, {count[SKIPPED]} skipped, in {seconds:.0f} s"]
    lines += [
        f"  failed: {result.name}: {result.reason}"
        for result in results
        if result.verdict == FAILED
    ]
    reasons = Counter(result.reason for result in results if result.verdict == SKIPPED)
    lines += [f"  skipped: {number:3} {reason}" for reason, number in reasons.most_common()]
    slow = sorted(results, key=lambda result: -result.seconds)[:5]
    lines.append("  slowest: " + ", ".join(f"{r.name} {r.seconds:.1f} s" for r in slow))
    return "\n".join(lines)


def write_json(path: Path, results: Sequence[Result], about: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**about, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(whole, indent=1) + "\n")
