"""Calls that never met: two survivors are done with different operations of one number, and the
member that would have seen both is dead. Nothing may be committed that they call differently."""

from __future__ import annotations

from collectives.coordinator import decide
from collectives.messages import Call, Cause, LaneReport, Outcome, Report


def report(done: int, *calls: int, boundary: int = 0, wants: int = 0) -> Report:
    """A report on lane 0 of a peer that has committed nothing; `calls` are operations 1, 2, ..."""
    return Report(
        group=1,
        epoch=1,
        cause=Cause.LOST,
        boundary=boundary,
        wants=wants,
        lanes=(LaneReport(0, 0, done, len(calls)),),
        evidence=(),
        calls=tuple(Call(0, i + 1, what) for i, what in enumerate(calls)),
    )


def test_equal_calls_commit_as_far_as_all_are_done() -> None:
    reports = {b"a": report(2, 10, 20, 30), b"b": report(3, 10, 20, 30)}
    assert decide.mismatches(reports) == {}
    assert decide.outcomes(reports, {}, retry=False) == (Outcome(0, 2, 3, 3),)
    assert decide.outcomes(reports, {}, retry=True) == (Outcome(0, 2, 2, 3),)


def test_what_two_call_differently_is_not_committed_though_both_are_done() -> None:
    reports = {b"a": report(3, 10, 20, 30), b"b": report(3, 10, 99, 30)}
    assert decide.mismatches(reports) == {0: 2}
    assert decide.outcomes(reports, {}, retry=False) == (Outcome(0, 1, 3, 3),)
    assert decide.outcomes(reports, {}, retry=True) == (Outcome(0, 1, 1, 3),)


def test_an_operation_that_only_one_has_posted_is_no_mismatch() -> None:
    reports = {b"a": report(1, 10), b"b": report(1, 10, 20)}
    assert decide.mismatches(reports) == {}
    assert decide.outcomes(reports, {}, retry=False) == (Outcome(0, 1, 2, 2),)
    assert decide.outcomes(reports, {}, retry=True) == (Outcome(0, 1, 1, 2),)


def test_a_boundary_that_another_calls_a_barrier_is_not_carried_out() -> None:
    same = {b"a": report(1, 10, boundary=1, wants=1), b"b": report(1, 10, boundary=1)}
    assert decide.boundary(same, {}) is not None
    different = {b"a": report(1, 10, boundary=1, wants=1), b"b": report(1, 77)}
    assert decide.boundary(different, {}) is None
