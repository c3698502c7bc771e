"""Several peers' traces on one time line.

Peers of one machine read the same clock. Clocks of different machines differ, and the time of day
is not exact; but a member can end an operation only after every other one has voted for it, which
says of each operation that both have ended by how much one clock is at least, and at most, ahead of
the other. Of these bounds the narrowest count. Without such operations the epochs that both have
installed tell: the median of the differences. Without either there is the time of day.

Pure: trace objects in, one out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = "collectives-trace-1"

Key = tuple[int, ...]


@dataclass
class _Trace:
    """One file. Times are microseconds of its own clock."""

    file: str
    about: dict[str, Any]
    entries: list[dict[str, Any]]
    ended: dict[Key, tuple[float, float]] = field(default_factory=dict)  # vote and end
    installed: dict[Key, float] = field(default_factory=dict)

    @property
    def order(self) -> tuple[Any, ...]:
        rank = self.about["rank"]
        return (math.inf if rank is None else rank, self.about["peer"], self.file)


@dataclass
class _Clock:
    """The traces of one machine."""

    traces: list[_Trace]
    shift: float = 0.0  # what is added to its times
    by: str = ""
    within: float = 0.0  # by so much the shift may be wrong, where that is known

    @property
    def wall(self) -> float:
        return float(self.traces[0].about["wall_ns"]) / 1000


def merge(traces: Mapping[str, Any]) -> dict[str, Any]:
    """One Chrome trace object of several, by their names. Of several of one peer it takes the
    latest. The clock of the lowest rank counts; ``otherData`` says how the others were shifted.

    Raises ValueError: one is no trace of ours, or not all are of one run.
    """
    read = sorted((_read(file, trace) for file, trace in traces.items()), key=lambda t: t.order)
    runs = {trace.about["run"]: trace.file for trace in read}
    if len(runs) > 1:
        raise ValueError(f"{' and '.join(sorted(runs.values()))} are traces of different runs")
    latest: dict[str, _Trace] = {}
    for trace in read:
        known = latest.setdefault(trace.about["peer"], trace)
        if trace.about["last_event"] > known.about["last_event"]:
            latest[trace.about["peer"]] = trace
    clocks = _aligned(latest.values())
    starts = [e["ts"] + clock.shift for clock in clocks for t in clock.traces for e in t.entries]
    start = min(starts, default=0.0)
    pids = _pids(latest.values())
    titles: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for clock in clocks:
        for trace in clock.traces:
            pid = pids[trace.about["peer"]]
            for entry in traces[trace.file]["traceEvents"]:
                moved = entry | {"pid": pid}
                if entry["ph"] == "M":
                    titles.append(moved)
                else:
                    moved["ts"] = round(entry["ts"] + clock.shift - start, 3)
                    entries.append(moved)
    titles.sort(key=lambda e: (e["pid"], e["tid"], e["name"]))
    entries.sort(key=lambda e: (e["ts"], -e.get("dur", 0), e["pid"], e["tid"], e["name"]))
    told: dict[str, Any] = {t.file: {"left_out": "a later one of this peer is there"} for t in read}
    told |= {t.file: _told(t, clock, clocks[0]) for clock in clocks for t in clock.traces}
    return {
        "displayTimeUnit": "ns",
        "otherData": {
            "format": f"{FORMAT} merged",
            "run": read[0].about["run"] if read else "",
            "start_wall_ns": round((clocks[0].wall + start) * 1000) if clocks else 0,
            "files": told,
        },
        "traceEvents": titles + entries,
    }


def _read(file: str, trace: Any) -> _Trace:
    try:
        about = trace["otherData"]
        if about["format"] != FORMAT:
            raise ValueError
        entries = [entry for entry in trace["traceEvents"] if entry["ph"] != "M"]
        found = _Trace(file, about, entries)
        for entry in entries:
            args, ts = entry["args"], float(entry["ts"])
            if entry["cat"] == "operation" and args.get("status") == "ok":
                key = (args["group"], args["lane"], args["sequence"], args["epoch"])
                end = ts + entry["dur"]
                found.ended[key] = (end - args["votes_us"], end)
            elif entry["cat"] == "epoch":
                found.installed[args["group"], args["epoch"]] = ts
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is no trace of a peer, or of another version") from None
    return found


# ---- clocks --------------------------------------------------------------------------------------


def _aligned(traces: Iterable[_Trace]) -> list[_Clock]:
    """The clocks there are, shifted to the first one's time."""
    by_name: dict[str, _Clock] = {}
    for trace in traces:
        by_name.setdefault(trace.about["clock"], _Clock([])).traces.append(trace)
    clocks = list(by_name.values())
    placed, left = clocks[:1], clocks[1:]
    while left:
        clock = next((c for c in left if _align(c, placed)), left[0])
        if not clock.by:
            clock.by, clock.shift = "time of day", clock.wall - clocks[0].wall
        clock.shift = round(clock.shift, 3)  # nanoseconds, so that all its times stay whole ones
        left.remove(clock)
        placed.append(clock)
    return clocks


def _align(clock: _Clock, placed: Sequence[_Clock]) -> bool:
    """Whether it has anything in common with those that are placed."""
    low, high = -math.inf, math.inf
    differences = []
    for other in placed:
        for theirs in other.traces:
            for ours in clock.traces:
                for key in theirs.ended.keys() & ours.ended.keys():
                    (their_vote, their_end), (vote, end) = theirs.ended[key], ours.ended[key]
                    low = max(low, their_vote + other.shift - end)
                    high = min(high, their_end + other.shift - vote)
                for key in theirs.installed.keys() & ours.installed.keys():
                    when = theirs.installed[key] + other.shift
                    differences.append(when - ours.installed[key])
    if low > -math.inf:
        # Clocks that drift apart may leave nothing between the bounds; their middle still holds.
        clock.by, clock.shift, clock.within = "operations", (low + high) / 2, abs(high - low) / 2
    elif differences:
        clock.by, clock.shift = "epochs", statistics.median(differences)
    return bool(clock.by)


# ---- who is who ----------------------------------------------------------------------------------


def _pids(traces: Iterable[_Trace]) -> dict[str, int]:
    """A number for each peer: its rank, or where another one has had that, one behind all ranks."""
    found: dict[str, int] = {}
    traces = list(traces)
    behind = 1 + max((t.about["rank"] or 0 for t in traces), default=0)
    for trace in traces:
        rank = trace.about["rank"]
        if rank is None or rank in found.values():
            rank, behind = behind, behind + 1
        found[trace.about["peer"]] = rank
    return found


def _told(trace: _Trace, clock: _Clock, first: _Clock) -> dict[str, Any]:
    """How a trace was shifted, compared with the time of day that it tells."""
    about = trace.about
    told = {"peer": about["peer"], "name": about["name"], "rank": about["rank"], "by": "its clock"}
    told["shifted_us"] = 0.0
    if clock is not first:
        told["by"] = clock.by
        told["shifted_us"] = round(clock.shift - (clock.wall - first.wall), 3)
        if clock.by == "operations":
            told["within_us"] = round(clock.within, 3)
    return told
