"""What was measured, as tables and plots.

    python benchmarks/report.py FILE...            prints the tables of what compare.py --json kept
    python benchmarks/report.py FILE... --docs     writes them, and plots, to docs/performance.md

A cell is the median over the rounds of each round's median. A speed-up is that of a round: the
fastest other library's time by ours, from measurements that were made one after the other; its
range over the rounds says how far it can be trusted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plot

COLUMNS = {
    "collectives": "collectives",
    "collectives_inplace": "in place",
    "core": "from C",
    "gloo": "Gloo",
    "openmpi": "Open MPI",
    "mpich": "MPICH",
}
OURS = "collectives"
OTHERS = ("gloo", "openmpi", "mpich")
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PLOTS = DOCS / "performance.md", DOCS / "performance"
BEGIN, END = "<!-- make bench writes from here -->", "<!-- to here -->"
METHOD = """\
`make bench`: all libraries in one run, measured in turns over loopback TCP, float32, one thread.
Medians of the slowest rank. *collectives* is from Python, out of place, into an array allocated
before; *in place* the same with the input preserved until the outcome is known; *from C* has no
Python at all. Gloo is that of torch, from Python; Open MPI and MPICH are called from C; all three
in place where that is possible. Bytes are those of the largest buffer of any rank, such as an
all_gather's output; a block has one element at least. A speed-up is the fastest other library's
time by that of *collectives*, with its range over the rounds. Of send_recv half the time there and
back is shown. The fastest is in bold."""

Row = dict[str, Any]
Cell = tuple[str, str, int, int]  # congestion control, operation, ranks, bytes


class Results:
    """Measurements, by cell and contender."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.machines: list[Row] = []
        self.medians: dict[Cell, dict[str, dict[int, float]]] = {}  # contender -> round -> us
        self.absent: dict[str, set[str]] = {}  # why -> where
        for row in rows:
            if "machine" in row:
                self.machines.append(row["machine"])
                continue
            cell = row["congestion"], row["op"], row["ranks"], row["bytes"]
            contenders = self.medians.setdefault(cell, {})
            if "absent" in row:
                where = f"{row['op']}, {row['ranks']} ranks, {size_text(row['bytes'])}"
                self.absent.setdefault(f"{COLUMNS[row['contender']]}: {row['absent']}", set()).add(
                    f"{where} ({row['congestion']})"
                )
            else:
                contenders.setdefault(row["contender"], {})[row["round"]] = row["median_us"]

    def median(self, cell: Cell, contender: str) -> float | None:
        found = self.medians[cell].get(contender)
        return statistics.median(found.values()) if found else None

    def speedup(self, cell: Cell) -> tuple[float, float, float] | None:
        """Median, lowest and highest over the rounds; None where nobody else was measured."""
        contenders = self.medians[cell]
        ratios = []
        for number, own in contenders.get(OURS, {}).items():
            others = [
                contenders[name][number]
                for name in OTHERS
                if name in contenders and number in contenders[name]
            ]
            if others:
                ratios.append(min(others) / own)
        return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def groups(self) -> list[tuple[str, str]]:
        """(operation, congestion control) in the order in which they were measured."""
        return list(dict.fromkeys((op, congestion) for congestion, op, _, _ in self.medians))

    def cells(self, op: str, congestion: str) -> list[Cell]:
        return sorted(cell for cell in self.medians if cell[:2] == (congestion, op))


# ---- text ---------------------------------------------------------------------------------------


def time_text(us: float) -> str:
    """Three digits and a unit."""
    for limit, divisor, unit in ((999.5, 1, "µs"), (999500, 1e3, "ms"), (float("inf"), 1e6, "s")):
        if us < limit:
            value = us / divisor
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("infinity is larger than any time")


def size_text(size_bytes: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << shift and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes} B" if size_bytes else "–"


def table(results: Results, op: str, congestion: str) -> str:
    cells = results.cells(op, congestion)
    present = [
        name for name in COLUMNS if any(results.median(cell, name) is not None for cell in cells)
    ]
    heads = ["ranks", "bytes", *(COLUMNS[name] for name in present), "speed-up", "range"]
    lines = [heads, ["---"] * len(heads)]
    for cell in cells:
        found = {name: results.median(cell, name) for name in present}
        fastest = min((us for us in found.values() if us is not None), default=None)
        shown = []
        for us in found.values():
            text = "–" if us is None else time_text(us)
            shown.append(f"**{text}**" if us is not None and us == fastest else text)
        speedup = results.speedup(cell)
        ratio = (
            ["–", "–"]
            if speedup is None
            else [f"{speedup[0]:.2f}", f"{speedup[1]:.2f} – {speedup[2]:.2f}"]
        )
        lines.append([str(cell[2]), size_text(cell[3]), *shown, *ratio])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(results: Results) -> str:
    lines = []
    for about in results.machines:
        versions = ", ".join(f"{COLUMNS[name]}: {v}" for name, v in about["versions"].items())
        lines.append(
            f"{about['date']}, {about['cpus']} processors ({about['cpu']}), Linux "
            f"{about['kernel']}, whose default congestion control is {about['congestion']}. "
            f"{versions}."
        )
        lines += about["notes"]
    for why, where in results.absent.items():
        places = sorted(where)
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        lines.append(f"{why}: {'; '.join(places[:3])}{more}.")
    return "\n".join(f"- {line}" for line in lines)


def tables(results: Results, pictures: dict[tuple[str, str], str] | None = None) -> str:
    parts = [METHOD, notes(results)]
    for op, congestion in results.groups():
        parts.append(f"### {op}, {congestion}")
        parts.append(table(results, op, congestion))
        if pictures and (op, congestion) in pictures:
            parts.append(f"![{op}, {congestion}]({pictures[op, congestion]})")
    return "\n\n".join(parts) + "\n"


# ---- docs/performance.md ------------------------------------------------------------------------


def lines_of(results: Results, op: str, congestion: str) -> dict[str, plot.Lines]:
    """The panels of a plot: for each number of ranks, time by size for each contender."""
    panels: dict[str, plot.Lines] = {}
    for cell in results.cells(op, congestion):
        panel = panels.setdefault(f"{cell[2]} ranks", {})
        for name, title in COLUMNS.items():
            us = results.median(cell, name)
            if us is not None and cell[3]:
                panel.setdefault(title, []).append((cell[3], us))
    return {title: lines for title, lines in panels.items() if lines}


def write_docs(results: Results, page: Path = PAGE, plots: Path = PLOTS) -> None:
    """Puts tables between the marks of the page, and plots beside it. Raises ValueError if there
    are no marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} needs the lines {BEGIN!r} and {END!r}: tables go between them")
    plots.mkdir(exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    pictures = {}
    for op, congestion in results.groups():
        panels = lines_of(results, op, congestion)
        if panels and any(len(line) > 1 for lines in panels.values() for line in lines.values()):
            path = plots / f"{op}-{congestion}.svg"
            path.write_text(plot.svg(f"{op}, {congestion}", panels, list(COLUMNS.values())))
            pictures[op, congestion] = path.relative_to(page.parent).as_posix()
    page.write_text(f"{before}{begin}\n\n{tables(results, pictures)}\n{end}{after}")


def load(paths: Sequence[Path]) -> Results:
    return Results(json.loads(line) for path in paths for line in path.read_text().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description="Tables and plots of what compare.py measured.")
    parser.add_argument("files", type=Path, nargs="+", help="of compare.py --json")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md")
    args = parser.parse_args()
    results = load(args.files)
    if args.docs:
        write_docs(results)
    else:
        print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
