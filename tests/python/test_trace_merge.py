"""How traces are drawn and merged, where chance decides too much in a real group.

Goal: clocks are aligned by the best that two peers have in common, and overlapping operations stay
readable. Method: events by hand, with clocks whose error is known.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from chrome import bars, check, named, operations

from collectives._core import lib
from collectives.trace_draw import About, Event, chrome
from collectives.trace_merge import merge

US = 1000
RUN = "a run"


def event(kind: int, at_us: float, **fields: Any) -> Event:
    values = dict.fromkeys(Event._fields, 0) | {"peer": bytes(8), "group": 1} | fields
    return Event(**values | {"kind": kind, "time_ns": round(at_us * US)})


def sum_of(sequence: int, posted: float, moved: float, done: float, ended: float) -> list[Event]:
    """The events of an operation, in microseconds."""
    shared = {"sequence": sequence, "what": lib.CC_ALL_REDUCE, "more": round(posted * US)}
    return [
        event(lib.CC_TRACE_POSTED, posted, **shared),
        event(lib.CC_TRACE_MOVED, moved, epoch=1, **shared),
        event(lib.CC_TRACE_DONE, done, epoch=1, code=lib.CC_RING, **shared),
        event(lib.CC_TRACE_ENDED, ended, epoch=1, code=lib.CC_OK, **shared),
    ]


def installed(epoch: int, at: float) -> Event:
    return event(lib.CC_TRACE_INSTALLED, at, epoch=epoch, code=lib.CC_CAUSE_FORMED, value=2)


def draw(
    rank: int | None, events: list[Event], *, clock: str = "", ahead: float = 0, **fields: Any
) -> dict[str, Any]:
    """The trace of a peer whose clock is ahead by so many microseconds. Its time of day is right
    unless `wall_ns` says otherwise."""
    events.sort(key=lambda e: e.time_ns)
    values: dict[str, Any] = {
        "peer": bytes([1 + (rank or 0)]) * 16,
        "name": "",
        "rank": rank,
        "run": RUN,
        "process": 1,
        "clock": clock or f"clock of {rank}",
        "wall_ns": -round(ahead * US),
        "now_ns": round(1e7 * US),
    }
    shifted = [
        e._replace(
            number=i + 1,
            time_ns=e.time_ns + round(ahead * US),
            more=e.more + round(ahead * US) if e.more else 0,
        )
        for i, e in enumerate(events)
    ]
    return chrome(shifted, About(**values | fields))


# ---- drawn ---------------------------------------------------------------------------------------


def test_operations_that_overlap_get_rows() -> None:
    events = [e for i in range(3) for e in sum_of(i + 1, 10 + i, 20 + i, 30 + i, 40 + i)]
    events += sum_of(4, 41, 42, 43, 44)
    found = draw(0, events)
    entries = check(found)
    titles = {
        e["tid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"
    }
    rows = [titles[bar["tid"]] for bar in operations(entries)]
    lane = "group 1 lane 0"
    assert rows == [lane, f"{lane} +1", f"{lane} +2", lane]


def test_the_phases_of_an_operation() -> None:
    entries = check(draw(0, sum_of(1, 10, 20, 40, 70)))
    (bar,) = operations(entries)
    assert (bar["ts"], bar["dur"]) == (10, 60)
    phases = [(e["name"], e["ts"], e["dur"]) for e in bars(entries) if e["cat"] == "phase"]
    assert phases == [("waits", 10, 10), ("moves", 20, 20), ("votes", 40, 30)]


def test_what_is_under_way_reaches_to_the_end() -> None:
    posted, moved, *_ = sum_of(1, 10, 20, 0, 0)
    for events, phases in (([posted], ["waits"]), ([posted, moved], ["waits", "moves"])):
        entries = check(draw(0, list(events), now_ns=100 * US))
        (bar,) = operations(entries)
        assert (bar["args"]["status"], bar["dur"]) == ("open", 90)
        assert [e["name"] for e in bars(entries) if e["cat"] == "phase"] == phases


def test_only_the_last_attempt_has_phases() -> None:
    events = sum_of(1, 10, 20, 40, 70)
    again = event(
        lib.CC_TRACE_AGAIN, 35, epoch=1, sequence=1, what=lib.CC_ALL_REDUCE, more=10 * US, code=2
    )
    late = events[1]._replace(time_ns=38 * US, epoch=2)
    entries = check(draw(0, [*events, again, late]))
    (bar,) = operations(entries)
    assert bar["args"]["attempts"] == 2
    assert (bar["args"]["waits_us"], bar["args"]["moves_us"]) == (3, 2)
    (mark,) = named(entries, "begun again")
    assert mark["ts"] == 35


# ---- merged --------------------------------------------------------------------------------------


def two_peers(rng: random.Random, count: int) -> tuple[list[Event], list[Event]]:
    """Operations of two peers, one of which is late by up to 3 ms each time: its process had to
    wait for a core. A vote travels for 30 us, so that nobody ends before the other's vote is in."""
    first, second, now = [], [], 100.0
    for sequence in range(1, count + 1):
        late = rng.uniform(0, 3000) if rng.random() < 0.8 else 0
        done = now + 10, now + 10 + late
        ended = max(done) + 30, max(done) + 30 + (rng.uniform(0, 3000) if late else 0)
        first += sum_of(sequence, now, now + 5, done[0], ended[0])
        second += sum_of(sequence, now, now + 5, done[1], ended[1])
        now = max(ended) + 50
    return first, second


@pytest.mark.parametrize("ahead", [0.0, 5e6, -40.0, 3.6e9])
def test_aligned_by_votes(ahead: float, seed: int) -> None:
    """To a few votes' time, though ends differ by milliseconds, always in one direction."""
    first, second = two_peers(random.Random(seed), 100)
    merged = merge({"a": draw(0, first), "b": draw(1, second, ahead=ahead, wall_ns=12345 * US)})
    told = merged["otherData"]["files"]["b"]
    assert told["by"] == "operations" and told["within_us"] <= 100
    entries = check(merged)
    posted = {0: [], 1: []}
    for bar in operations(entries):
        posted[bar["pid"]].append(bar["ts"])
    assert posted[0] == pytest.approx(posted[1], abs=told["within_us"] + 0.01)


def test_aligned_by_epochs() -> None:
    """Who has ended no operation together: the median tells, whatever one install was late by."""
    first = [installed(epoch, 1000 * epoch) for epoch in (1, 2, 3)]
    second = [installed(epoch, 1000 * epoch + (epoch == 2) * 400) for epoch in (1, 2, 3)]
    merged = merge({"a": draw(0, first), "b": draw(1, second, ahead=700, wall_ns=0)})
    assert merged["otherData"]["files"]["b"]["by"] == "epochs"
    times = [e["ts"] for e in named(check(merged), "epoch installed") if e["pid"] == 1]
    assert times == [0, 1400, 2000]


def test_aligned_over_a_third_one() -> None:
    """The dead and the joiner have nothing in common but the survivor."""
    dead, survivor = two_peers(random.Random(1), 5)
    joiner = [installed(9, 90_000)]
    merged = merge(
        {
            "dead": draw(0, dead),
            "joiner": draw(2, joiner, ahead=-5e6, wall_ns=0),
            "survivor": draw(1, [*survivor, installed(9, 90_000)], ahead=1e6, wall_ns=0),
        }
    )
    told = merged["otherData"]["files"]
    assert [told[f]["by"] for f in ("dead", "survivor", "joiner")] == [
        *("its clock", "operations", "epochs")
    ]
    times = [e["ts"] for e in named(check(merged), "epoch installed")]
    assert times[0] == pytest.approx(times[1], abs=0.01)


def test_aligned_by_the_time_of_day() -> None:
    merged = merge(
        {
            "a": draw(0, [installed(1, 1000)]),
            "b": draw(1, [installed(2, 3000)], ahead=7e6),
        }
    )
    told = merged["otherData"]["files"]["b"]
    assert (told["by"], told["shifted_us"]) == ("time of day", 0)
    assert [e["ts"] for e in check(merged)] == [0, 2000]


def test_one_machine_has_one_clock() -> None:
    """Nothing is shifted there, whatever the events say."""
    first, second = two_peers(random.Random(2), 3)
    merged = merge({"a": draw(0, first, clock="x"), "b": draw(1, second, clock="x", wall_ns=999)})
    assert merged["otherData"]["files"]["b"]["by"] == "its clock"
    posted = [bar["ts"] for bar in operations(check(merged))]
    assert posted[0::2] == posted[1::2]


def test_the_last_trace_of_a_peer_counts() -> None:
    early, late = draw(0, sum_of(1, 1, 2, 3, 4)), draw(0, [*sum_of(1, 1, 2, 3, 4), installed(2, 9)])
    merged = merge({"a": late, "b": early})
    assert "left_out" in merged["otherData"]["files"]["b"]
    assert len(operations(check(merged))) == 1


def test_two_peers_of_one_rank_stay_apart() -> None:
    """Such as one that died, and the joiner that has its rank now."""
    before = draw(1, [installed(1, 10)])
    after = draw(1, [installed(2, 20)], peer=b"x" * 16)
    entries = check(merge({"a": before, "b": after}))
    assert {entry["pid"] for entry in entries} == {1, 2}


def test_other_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="a and b are traces of different runs"):
        merge({"a": draw(0, []), "b": draw(1, [], run="another")})
