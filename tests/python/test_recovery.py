"""The recovery benchmark: its arithmetic, its tables, and a real run of one fault of each kind.

Goal: a figure of the report is what was measured, and what could not be measured is said. Method:
invented results whose medians are known, and a short run, whose times are nobody's business here,
but whose results the ranks compare and whose processes must be gone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts, not a package

import recovery_report  # noqa: E402

RESULTS = {
    "ranks": 4,
    "bytes": 64 << 20,
    "kill": {"seconds": [0.1, 0.2, 0.3], "contributors": [3, 4, 3], "misses": 2},
    "kill_busy": {"seconds": [0.15], "busy_s": [0.001]},
    "stop": {"seconds": [2.0, 2.5]},
    "cut_absent": "no network namespaces: tests/wan needs root",
    "coordinator": {"down_s": 60.0, "operations": 700, "failed": 0, "membership_s": 1.5},
    "join_s": [0.02, 0.03, 0.5],
    "cost_us": {"4": {"out of place": [10.0, 20.0], "in place": [11.0, 24.0]}},
}


def test_quantiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert recovery_report.quantile(values, 0.99) == 99
    assert recovery_report.quantile(values, 0.5) == 50
    assert recovery_report.quantile([3.0, 1.0, 2.0], 0.99) == 3
    assert recovery_report.quantile([5.0], 0.5) == 5


def test_the_report_says_what_was_measured_and_what_was_not() -> None:
    text = recovery_report.text(RESULTS)
    assert "| SIGKILL | p50 200 ms, p99 300 ms (3) |" in text
    assert "Of 3 kills 2 left a result without the\nvictim's part" in text
    assert "| blackhole | no network namespaces: tests/wan needs root |" in text
    assert "| coordinator away for 60 s: failed operations | 0 of 700 | 0 |" in text
    assert "| membership works after its return | 1.50 s |" in text
    assert "| join | p50 30.0 ms, p99 500 ms (3) |" in text
    assert "| 4 B | in place | 17.5 µs | 1.15 (1.10 – 1.20) |" in text
    assert "448 – 727 ms" in text and "never" in text  # the others' rows


@pytest.mark.timeout(120)
def test_one_fault_of_each_kind(spawn, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    words = ("--kills", 1, "--silent", 1, "--down", 1, "--rounds", 1, "--bytes", 32 << 20)
    child = spawn("python", BENCHMARKS / "recovery.py", *words, "--json", path)
    assert child.wait(110) == 0, child.output
    assert "| SIGKILL | p50" in child.output
    results = json.loads(path.read_text())
    assert results["coordinator"]["failed"] == 0 < results["coordinator"]["operations"]
    for how in ("kill", "stop"):
        assert results[how]["seconds"][0] > 0
        assert results[how]["contributors"][0] in (3, 4)
    assert set(results["cost_us"]) == {"4", str(32 << 20)}
