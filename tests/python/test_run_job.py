"""What follows when a rank ends, as decisions alone: times and exit codes are given.

Goal: who is started again and when, when all is over, and the exit code in every case that
docs/launch.md tells. Method: a table of ends in their order.
"""

from __future__ import annotations

import signal

import pytest

from collectives.cli.run_job import FIRST_PAUSE, Job, how

KILL, ABORT = -signal.SIGKILL, -signal.SIGABRT


@pytest.mark.parametrize(
    ("ends", "exit_code"),
    [
        ([(0, 0), (1, 0), (2, 0)], 0),
        ([(1, KILL), (0, 0), (2, 0)], 0),
        ([(0, 0), (1, ABORT), (2, KILL)], 0),
        ([(1, 3), (0, 0), (2, 0)], 3),
        ([(0, 0), (1, 0), (2, 3)], 3),
        ([(1, KILL), (2, 5), (0, 3)], 5),
        ([(1, KILL), (2, ABORT), (0, KILL)], 128 + signal.SIGKILL),
        ([(1, KILL), (2, KILL), (0, ABORT)], 128 + signal.SIGABRT),
    ],
)
def test_the_exit_code(ends: list[tuple[int, int]], exit_code: int) -> None:
    job = Job(3)
    for rank, code in ends:
        assert not job.over
        job.end(rank, code, 0.0)
    assert job.over
    assert job.exit_code == exit_code
    assert job.next_due is None


def test_it_says_who_goes_on() -> None:
    job = Job(4)
    assert job.end(0, KILL, 0.0) == "3 ranks go on"
    assert job.end(1, 0, 0.0) == ""
    assert job.end(2, 1, 0.0) == "1 rank goes on"
    assert job.end(3, 1, 0.0) == "no rank runs any more"


@pytest.mark.parametrize("code", [KILL, 1])
def test_a_dead_rank_is_started_again_after_pauses_that_grow(code: int) -> None:
    job = Job(2, restarts_max=3)
    now = 10.0
    for count in range(3):
        text = job.end(1, code, now)
        assert f"({count + 1}/3)" in text
        assert job.next_due == now + FIRST_PAUSE * 2**count
        assert job.running == [0]
        assert job.take_due(job.next_due - 0.01) == []
        now = job.next_due
        assert job.take_due(now) == [1]
        assert job.running == [0, 1] and job.next_due is None
    assert job.end(1, code, now) == "1 rank goes on"
    assert job.next_due is None
    job.end(0, 0, now)
    assert job.over
    assert job.exit_code == (1 if code == 1 else 0)


def test_failures_that_a_restart_made_good_are_forgotten() -> None:
    job = Job(2, restarts_max=1)
    job.end(1, 7, 0.0)
    job.take_due(1.0)
    job.end(0, 0, 2.0)
    job.end(1, 0, 2.0)
    assert job.over and job.exit_code == 0


def test_a_newcomer_that_comes_too_late_does_not_count() -> None:
    job = Job(2, restarts_max=3)
    job.end(1, KILL, 0.0)
    job.take_due(1.0)
    job.end(0, 0, 2.0)
    assert job.end(1, 1, 3.0) == "no rank runs any more"
    assert job.over and job.exit_code == 0


def test_nobody_is_started_when_somebody_has_finished() -> None:
    job = Job(3, restarts_max=3)
    job.end(1, KILL, 0.0)
    job.end(0, 0, 0.1)
    assert job.next_due is None
    assert job.end(2, KILL, 0.2) == "no rank runs any more"
    assert job.over and job.exit_code == 0


@pytest.mark.parametrize(("code", "exit_code"), [(KILL, 137), (4, 4)])
def test_nobody_is_started_when_all_are_dead(code: int, exit_code: int) -> None:
    job = Job(3, restarts_max=3)
    for rank in range(3):
        assert not job.over
        job.end(rank, code, 0.0)
    assert job.over and job.next_due is None
    assert job.exit_code == exit_code


def test_a_job_that_is_stopped_starts_nobody() -> None:
    job = Job(3, restarts_max=3)
    job.end(1, KILL, 0.0)
    job.stop(signal.SIGTERM)
    assert job.next_due is None
    assert job.end(0, -signal.SIGTERM, 1.0) == ""
    assert not job.over
    job.end(2, 0, 1.0)
    assert job.over and job.exit_code == 143


def test_how_a_process_ended() -> None:
    assert how(3) == "exited with 3"
    assert how(KILL) == "was killed by SIGKILL"
    assert how(-(signal.SIGRTMIN + 1)) == f"was killed by signal {signal.SIGRTMIN + 1}"
