"""What becomes of the operations that a sealed epoch interrupted: the commit rule.

Pure functions over the survivors' reports; docs/protocol.md, section 6, says why they are right.
The rule is one line, `committed = least done, failed = greatest posted`; the rest finds out whether
a boundary is to be carried out, and which reports cannot be true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from collectives.messages import WANT_JOIN, WANT_LEAVE, Epoch, LaneReport, Outcome, Report

Reports = Mapping[bytes, Report]
Pair = frozenset[bytes]


def by_lane(record: Epoch | None) -> dict[int, Outcome]:
    """What a record decided, by lane."""
    return {lane.lane: lane for lane in record.lanes} if record else {}


def contradiction(report: Report, decided: Mapping[int, Outcome]) -> str | None:
    """Why a report cannot be true, or None. `decided` is what the last record said by lane."""
    for lane in report.lanes:
        before = decided.get(lane.lane, Outcome(lane.lane, 0, 0, 0))
        # A member that was slow to post may report less than `failed`: those are decided anyhow.
        done, posted = max(lane.done, before.failed), max(lane.posted, before.failed)
        if lane.committed > done:
            return f"lane {lane.lane}: committed {lane.committed} but only done {lane.done}"
        if lane.done > posted:
            return f"lane {lane.lane}: done {lane.done} but only posted {lane.posted}"
        if min(lane.committed, lane.done) < before.committed:
            return (
                f"lane {lane.lane}: went back to {min(lane.committed, lane.done)} from "
                f"{before.committed}, which was decided"
            )
    return None


def _watermarks(report: Report, decided: Mapping[int, Outcome]) -> dict[int, LaneReport]:
    """By lane, for every lane that is reported or was decided. A lane that this member has not
    used, or is behind in, stands where the last record put it."""
    found = {lane.lane: lane for lane in report.lanes}
    marks = {}
    for number in found.keys() | decided.keys():
        base = decided[number].failed if number in decided else 0
        lane = found.get(number, LaneReport(number, base, base, base))
        marks[number] = LaneReport(
            number, max(lane.committed, base), max(lane.done, base), max(lane.posted, base)
        )
    return marks


def mismatches(reports: Reports) -> dict[int, int]:
    """By lane, the first operation that two members call differently. Their votes may never have
    met: with a third member dead, all the others may be done with their own idea of it."""
    known: dict[tuple[int, int], int] = {}
    first: dict[int, int] = {}
    for report in reports.values():
        for call in report.calls:
            if known.setdefault((call.lane, call.sequence), call.what) != call.what:
                first[call.lane] = min(first.get(call.lane, call.sequence), call.sequence)
    return first


def outcomes(
    reports: Reports, decided: Mapping[int, Outcome], *, retry: bool
) -> tuple[Outcome, ...]:
    """The commit rule, for every lane that is known. What is not committed fails, or with `retry`
    begins again in the next epoch."""
    differing = mismatches(reports)
    result = []
    for number, base, lanes in _all_lanes(reports, decided):
        committed = min(lane.done for lane in lanes)
        if number in differing:
            committed = max(base, min(committed, differing[number] - 1))
        posted = max(lane.posted for lane in lanes)
        posted = max(posted, committed)
        result.append(Outcome(number, committed, committed if retry else posted, posted))
    return tuple(result)


def known(reports: Reports, decided: Mapping[int, Outcome]) -> tuple[Outcome, ...]:
    """Instead of the commit rule, where another coordinator may have decided already and nobody
    knows what: a success that somebody returned stands, and all else that was posted fails."""
    result = []
    for number, _, lanes in _all_lanes(reports, decided):
        committed = max(lane.committed for lane in lanes)
        posted = max(committed, *(lane.posted for lane in lanes))
        result.append(Outcome(number, committed, posted, posted))
    return tuple(result)


def _all_lanes(
    reports: Reports, decided: Mapping[int, Outcome]
) -> Iterator[tuple[int, int, list[LaneReport]]]:
    """Each lane that is reported or was decided: its number, up to where it is decided, and where
    each member stands in it."""
    marks = [_watermarks(report, decided) for report in reports.values()]
    for number in sorted(set(chain.from_iterable(marks)) | decided.keys()):
        base = decided[number].failed if number in decided else 0
        unused = LaneReport(number, base, base, base)
        yield number, base, [member.get(number, unused) for member in marks]


def behind(reports: Reports, decided: Mapping[int, Outcome]) -> dict[bytes, str]:
    """Who is not done with what another one already returned as success. Votes make that
    impossible; if it happens all the same, the success cannot be taken back, so these must go."""
    marks = {peer: _watermarks(report, decided) for peer, report in reports.items()}
    returned: dict[int, int] = {}
    for lanes in marks.values():
        for number, lane in lanes.items():
            returned[number] = max(returned.get(number, 0), lane.committed)
    found = {}
    for peer, lanes in marks.items():
        for number, committed in sorted(returned.items()):
            base = decided[number].failed if number in decided else 0
            done = lanes[number].done if number in lanes else base
            if done < committed:
                found[peer] = (
                    f"lane {number}: done {done}, but another member committed {committed}"
                )
                break
    return found


@dataclass(frozen=True)
class Boundary:
    """A boundary that is to be carried out."""

    sequence: int
    leavers: frozenset[bytes]
    join: bool


def boundary(reports: Reports, decided: Mapping[int, Outcome]) -> Boundary | None:
    """The boundary to carry out, if the survivors were all done with one that wants something."""
    sequence = max((report.boundary for report in reports.values()), default=0)
    if not sequence or mismatches(reports).get(0, sequence + 1) <= sequence:
        return None
    wants = 0
    leavers = set()
    for peer, report in reports.items():
        lane = _watermarks(report, decided).get(0)
        # Somebody who posted beyond it has returned from it: it is not open any more.
        if lane is None or lane.done < sequence or lane.posted > sequence:
            return None
        if report.boundary == sequence:
            wants |= report.wants
            if report.wants & WANT_LEAVE:
                leavers.add(peer)
    if not wants:
        return None
    return Boundary(sequence, frozenset(leavers), bool(wants & WANT_JOIN))


def fewest_to_remove(
    pairs: Iterable[Pair], broken: Iterable[Pair], serials: Mapping[bytes, int]
) -> list[bytes]:
    """Who must go so that none of these pairs is left: who is in most of them first; of equals, in
    most of all that are broken, for it is rather its own fault; then the one who came later."""
    total = Counter(chain.from_iterable(broken))
    left = set(pairs)
    removed = []
    while left:
        count = Counter(chain.from_iterable(left))
        worst = max(count, key=lambda peer: (count[peer], total[peer], serials[peer]))
        removed.append(worst)
        left = {pair for pair in left if worst not in pair}
    return removed
