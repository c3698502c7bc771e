"""What a Chrome trace must be, whoever made it: checked by the tests of traces."""

from __future__ import annotations

import json
from typing import Any

NUMBER = (int, float)


def check(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks a trace object as the format's description has it, and that bars of one track lie in
    each other or apart. Returns its entries without the titles."""
    assert json.loads(json.dumps(trace)) == trace
    titled, entries = set(), []
    for entry in trace["traceEvents"]:
        assert isinstance(entry["name"], str) and entry["name"]
        assert type(entry["pid"]) is int and type(entry["tid"]) is int
        if entry["ph"] == "M":
            assert not entries, "titles come first"
            titled.add((entry["name"], entry["pid"], entry["tid"]))
            continue
        assert isinstance(entry["ts"], NUMBER)
        assert entry["ph"] in "Xi"
        if entry["ph"] == "X":
            assert isinstance(entry["dur"], NUMBER) and entry["dur"] >= 0
        else:
            assert entry["s"] in ("t", "p", "g") and "dur" not in entry
        assert ("process_name", entry["pid"], 0) in titled
        assert ("thread_name", entry["pid"], entry["tid"]) in titled
        entries.append(entry)
    times = [entry["ts"] for entry in entries]
    assert times == sorted(times)
    for track in {(entry["pid"], entry["tid"]) for entry in entries}:
        check_nested([e for e in bars(entries) if (e["pid"], e["tid"]) == track])
    return entries


def check_nested(track: list[dict[str, Any]]) -> None:
    around: list[float] = []
    for bar in track:
        start, end = bar["ts"], bar["ts"] + bar["dur"]
        while around and start >= around[-1] - 1e-3:
            around.pop()
        assert not around or end <= around[-1] + 1e-3, f"{bar} reaches out of the one it is in"
        around.append(end)


def bars(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["ph"] == "X"]


def operations(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in bars(entries) if entry["cat"] == "operation"]


def named(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Those of this name, with or without a peer behind it."""
    return [entry for entry in entries if entry["name"].partition(":")[0] == name]
