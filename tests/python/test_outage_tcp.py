"""The coordinator is killed in the middle of a run, and comes back by its journal.

Goal: operations go on without it; whatever needs it waits, and is dealt with once it is back: a
death, a joiner, a subgroup. Method: real processes; the coordinator is one too, ended by SIGKILL
and started again at the same address.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import QUICK, Cluster, Worker, outcomes, results, scaled

import collectives as cc
from collectives.coordinator.process import CoordinatorProcess

pytestmark = pytest.mark.timeout(90)

TIMES = scaled(QUICK, coordinator_lost=60.0, joiner_lost=5.0)
COMMAND = ("python", "-m", "collectives.cli.main", "coordinator")


class Coordinator:
    """A coordinator that can be killed and started again at its address."""

    def __init__(self, journal: Path | None) -> None:
        self._journal = journal
        self._process = CoordinatorProcess(journal=journal).start()
        self.url = self._process.url

    def kill(self) -> None:
        assert self._process.process is not None
        self._process.process.send_signal(signal.SIGKILL)
        self._process.stop()

    def start(self, recover: bool = False) -> float:
        """Returns when it was ready again."""
        listen = self.url.removeprefix("cc://")
        again = CoordinatorProcess(listen, journal=self._journal, recover=recover)
        self._process = again.start()
        return time.monotonic()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.stop()


def sums(worker: Worker, count: int, length: int = 3000) -> list[int]:
    """A call: the sums of as many ones as there are members."""
    return [int(worker.comm.all_reduce(np.ones(length))[0]) for _ in range(count)]


def sum_until_fewer(worker: Worker, members: int) -> list[int]:
    """A call: sums until one is of fewer members; returns that one and the next."""
    while (one := sums(worker, 1)[0]) == members:
        worker.kept["rounds"] = worker.kept.get("rounds", 0) + 1
    return [one, *sums(worker, 1)]


def epoch(worker: Worker) -> int:
    return worker.comm.epoch


def admit_until(worker: Worker, size: int) -> int:
    while sum(member.alive for member in worker.comm.members) < size:
        worker.comm.admit()
        time.sleep(0.002)
    return sums(worker, 1)[0]


def split(worker: Worker) -> tuple[int, int]:
    half = worker.comm.split(worker.comm.rank % 2)
    assert half is not None
    worker.kept["half"] = half
    return half.size, int(half.all_reduce(np.array([1]))[0])


def half_sum(worker: Worker) -> int:
    return int(worker.kept["half"].all_reduce(np.array([1]))[0])


def test_operations_go_on_and_a_death_is_decided_when_it_is_back(tmp_path: Path) -> None:
    with (
        Coordinator(tmp_path / "journal") as coordinator,
        Cluster(4, url=coordinator.url, timeouts=TIMES) as group,
    ):
        calls = group.start(sums, 200)
        coordinator.kill()
        assert results(calls) == [[4] * 200] * 4
        assert group.each(sums, 50) == [[4] * 50] * 4
        assert group.each(epoch) == [1] * 4
        survivors, victim = group.peers[:3], group.peers[3]
        calls = group.start(sum_until_fewer, 4, peers=survivors)
        victim.call(sums, 5)
        victim.kill()
        # Nobody can decide: they wait, longer than it takes to find out that it is dead.
        deadline = time.monotonic() + 2 * TIMES.dead
        while time.monotonic() < deadline:
            assert not any(call.over for call in calls)
        back = coordinator.start()
        assert results(calls) == [[3, 3]] * 3
        assert max(call.ended_at for call in calls) - back < 3.0
        assert group.each(epoch, peers=survivors) == [2] * 3


def test_a_joiner_that_came_meanwhile_is_admitted_within_three_seconds(tmp_path: Path) -> None:
    with (
        Coordinator(tmp_path / "journal") as coordinator,
        Cluster(3, url=coordinator.url, timeouts=scaled(TIMES, connect=30.0)) as group,
    ):
        members = list(group.peers)
        coordinator.kill()
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=3)
        calls = group.start(admit_until, 4, peers=members)
        back = coordinator.start()
        assert joining.result() == 3
        assert joining.ended_at - back < 3.0
        assert joiner.call(sums, 1) == [4]
        assert results(calls) == [4] * 3


def test_a_subgroup_asked_for_meanwhile_forms_and_both_recover(tmp_path: Path) -> None:
    with (
        Coordinator(tmp_path / "journal") as coordinator,
        Cluster(4, url=coordinator.url, timeouts=TIMES) as group,
    ):
        coordinator.kill()
        calls = group.start(split)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert not any(call.over for call in calls)
        coordinator.start()
        assert results(calls) == [(2, 2)] * 4
        coordinator.kill()
        coordinator.start()
        group.peers[3].kill()
        survivors = group.peers[:3]
        assert group.each(sum_until_fewer, 4, peers=survivors) == [[3, 3]] * 3
        assert group.each(half_sum, peers=survivors) == [2, 1, 2]


def test_many_restarts_under_way_change_nothing(tmp_path: Path) -> None:
    with (
        Coordinator(tmp_path / "journal") as coordinator,
        Cluster(3, url=coordinator.url, timeouts=TIMES) as group,
    ):
        victim = group.peers[2]
        calls = group.start(sum_until_fewer, 3)
        for _ in range(3):
            coordinator.kill()
            coordinator.start()
        coordinator.kill()
        victim.kill()
        coordinator.start()
        coordinator.kill()
        coordinator.start()
        assert results(calls[:2]) == [[2, 2]] * 2
        assert set(group.each(epoch, peers=group.peers[:2])) == {2}


def test_one_that_does_not_come_back_is_lost_in_time(tmp_path: Path) -> None:
    with (
        Coordinator(tmp_path / "journal") as coordinator,
        Cluster(3, url=coordinator.url, timeouts=scaled(TIMES, coordinator_lost=1.0)) as group,
    ):
        coordinator.kill()
        calls = group.start(sum_until_fewer, 3, peers=group.peers[:2])
        group.peers[2].kill()
        for end in outcomes(calls):
            assert isinstance(end, cc.CoordinatorLost), end


# ---- without its journal -------------------------------------------------------------------------


def how_it_ends(worker: Worker, members: int) -> str:
    """A call: sums until one fails; how."""
    try:
        while sums(worker, 1, 500_000) == [members]:
            pass
    except cc.CollectivesError as error:
        return f"{type(error).__name__}: {error}"
    return "fewer members"


def test_one_that_does_not_know_the_group_disturbs_nobody(tmp_path: Path) -> None:
    times = scaled(TIMES, coordinator_lost=1.5)
    with Coordinator(None) as coordinator, Cluster(3, url=coordinator.url, timeouts=times) as group:
        coordinator.kill()
        coordinator.start()
        deadline = time.monotonic() + 2.5  # for all to have dialled it
        while time.monotonic() < deadline:
            assert group.each(sums, 20) == [[3] * 20] * 3
        assert group.each(epoch) == [1] * 3
        calls = group.start(how_it_ends, 3, peers=group.peers[:2])
        group.peers[2].kill()
        for end in results(calls):
            assert end.startswith("CoordinatorLost"), end


def test_a_lost_journal_is_recovered_from_the_members(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with (
        Coordinator(journal) as coordinator,
        Cluster(4, url=coordinator.url, timeouts=TIMES) as group,
    ):
        survivors, victim = group.peers[:3], group.peers[3]
        calls = group.start(how_it_ends, 4, peers=survivors)
        victim.call(sums, 3, 500_000)
        coordinator.kill()
        victim.kill()
        journal.unlink()
        coordinator.start(recover=True)
        ends = results(calls)
        assert all(end.startswith("OutcomeUnknown") for end in ends), ends
        assert "lost what it had decided" in ends[0] and "its input is intact" in ends[0]
        assert set(group.each(epoch, peers=survivors)) == {2**32}
        assert group.each(sums, 20, peers=survivors) == [[3] * 20] * 3
        # From here on it is as ever: the new journal has the group, and joiners find it.
        coordinator.kill()
        coordinator.start()
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=4)
        calls = group.start(admit_until, 4, peers=survivors)
        joining.result()
        assert joiner.call(sums, 1) == [4]
        assert results(calls) == [4] * 3


def test_idle_groups_and_subgroups_are_recovered_too(tmp_path: Path) -> None:
    """Nobody has an operation open, so nothing is lost but the journal."""
    journal = tmp_path / "journal"
    with (
        Coordinator(journal) as coordinator,
        Cluster(4, url=coordinator.url, timeouts=TIMES) as group,
    ):
        assert group.each(split) == [(2, 2)] * 4
        coordinator.kill()
        journal.write_bytes(b"a disk that failed" * 100)
        coordinator.start(recover=True)
        deadline = time.monotonic() + 20
        while set(group.each(epoch)) != {2**32}:
            assert time.monotonic() < deadline
        assert group.each(sums, 5) == [[4] * 5] * 4
        assert group.each(half_sum) == [2] * 4
        assert "journal.damaged-1" in [path.name for path in tmp_path.iterdir()]


# ---- one journal, one coordinator ----------------------------------------------------------------


def test_two_coordinators_on_one_journal(tmp_path: Path, spawn: Callable[..., Any]) -> None:
    path = tmp_path / "journal"
    with CoordinatorProcess(journal=path):
        second = spawn(*COMMAND, "--listen", "127.0.0.1:0", "--journal", str(path))
        assert second.wait() == 1
        assert re.search(rf"error: the journal {path} is in use by another", second.output)
        assert second.output.count("\n") == 1
    with CoordinatorProcess(journal=path):
        pass


def test_a_damaged_journal_is_not_served(tmp_path: Path, spawn: Callable[..., Any]) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"something else entirely, but long enough for a header of a journal" * 9)
    child = spawn(*COMMAND, "--listen", "127.0.0.1:0", "--journal", str(path))
    assert child.wait() == 1
    assert str(path) in child.output and "--recover" in child.output
    assert child.output.count("\n") == 1
