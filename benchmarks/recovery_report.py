"""The report of the recovery benchmark, in Markdown.

The rows of PCCL and Gloo were measured elsewhere, by the same kind of fault on another two-core
machine, and do not change with this run: they say what to expect of a library, not how fast this
machine is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from report import size_text, time_text

OTHERS = """\
*Gloo* (torch 2.13) and *PCCL* (1.0) were measured on 2026-11-22 on another machine with two
processors, four ranks, 64 MiB; they are here for comparison and not part of this run."""

Results = dict[str, Any]


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of these that at least the share q of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-q * len(ordered) // 1) - 1)]


def seconds_text(seconds: float) -> str:
    return time_text(seconds * 1e6)


def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile and number."""
    middle, high = seconds_text(statistics.median(values)), seconds_text(quantile(values, 0.99))
    return f"p50 {middle}, p99 {high} ({len(values)})"


def faults(results: Results) -> list[list[str]]:
    """The rows of the table of faults."""
    busy, coordinator = results["kill_busy"], results["coordinator"]
    cut = spread(results["cut"]["seconds"]) if "cut" in results else results["cut_absent"]
    down = f"{coordinator['down_s']:g} s"
    back = seconds_text(coordinator["membership_s"])
    never = "never: the group is unusable"
    own = "448 – 727 ms, by the user's own retry loop"
    silent = "its timeout, 30 min by default"
    return [
        ["SIGKILL", spread(results["kill"]["seconds"]), "p50 200 ms, p99 500 ms", never, own],
        ["the same, an interpreter busy: others", spread(busy["seconds"]), "–", never, "–"],
        ["… the busy one, after it woke", spread(busy["busy_s"]), "–", never, "–"],
        ["SIGSTOP", spread(results["stop"]["seconds"]), "3.5 s", silent, "70 s, or for ever"],
        ["blackhole", cut, "3.5 s", silent, "70 s, or for ever"],
        [
            f"coordinator away for {down}: failed operations",
            f"{coordinator['failed']} of {coordinator['operations']}",
            "0",
            "–",
            "the run ends in 17 ms",
        ],
        ["membership works after its return", back, "3 s", "–", "–"],
        ["join", spread(results["join_s"]), "p50 50 ms", "–", "29 – 42 ms"],
    ]


def cost(results: Results) -> list[list[str]]:
    """Without faults: medians over the rounds, and what they are to the first."""
    rows = []
    for size_bytes, variants in results["cost_us"].items():
        base = next(iter(variants.values()))
        for name, times in variants.items():
            ratios = [us / first for us, first in zip(times, base, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
            rows.append(
                [
                    size_text(int(size_bytes)),
                    name,
                    time_text(statistics.median(times)),
                    "1" if times is base else ratio,
                ]
            )
    return rows


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(results: Results) -> str:
    struck = results["kill"]
    fewer = sum(count < results["ranks"] for count in struck["contributors"])
    return f"""\
## Recovery

{results["ranks"]} ranks, all_reduce of {size_text(results["bytes"])} of float32 over TCP. From the
fault, in the middle of the operation, to the correct result on the last survivor, inside the call;
in parentheses how often. Of {len(struck["seconds"])} kills {fewer} left a result without the
victim's part, in the others it was in already; {struck["misses"]} more came too late and do not
count.

{OTHERS}

{table(["fault", "collectives", "target", "Gloo", "PCCL"], faults(results))}

Without any fault, in turns: the median of the slowest rank, and its ratio to *out of place* in the
same round (range). *in place* keeps the input until the outcome is known; *preserve=False* and
*retry=False* give up beginning again.

{table(["bytes", "all_reduce", "time", "ratio"], cost(results))}
"""
