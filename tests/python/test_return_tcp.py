"""Who was evicted by mistake hears why, and comes back as a new peer: a process that was stopped
for longer than the dead time goes on, and connects again."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from cluster import QUICK, Cluster, Worker, results

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def sums_until_evicted(worker: Worker) -> str:
    """A call: computes until it is told that it is no member any more; returns what it is told."""
    worker.note("begun")
    try:
        while True:
            worker.comm.all_reduce(np.ones(1000, np.int64))
    except cc.Evicted as error:
        worker.comm.close()
        return str(error)


def sums_until_fewer(worker: Worker, size: int) -> int:
    """A call: computes until fewer than so many contribute; returns how many do."""
    while True:
        count = int(worker.comm.all_reduce(np.ones(1000, np.int64))[0])
        if count < size:
            return count


def come_back(worker: Worker, url: str) -> tuple[int, int]:
    """A call: connects again; returns rank and size."""
    old = worker.comm
    worker.comm = cc.connect(url, size=3, timeouts=QUICK, timeout=20)
    assert worker.comm.members[worker.comm.rank].id not in [m.id for m in old.members]
    return worker.comm.rank, worker.comm.size


def admit_one(worker: Worker) -> int:
    """A call: admits until somebody has come; returns the size."""
    while not worker.comm.admit().joined:
        pass
    return worker.comm.size


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


def test_a_stopped_process_is_evicted_told_so_and_comes_back() -> None:
    with Cluster(3, timeouts=QUICK) as cluster:
        *others, sleeper = cluster.peers
        computing = sleeper.start(sums_until_evicted)
        calls = cluster.start(sums_until_fewer, 3, peers=others)
        assert sleeper.wait_note() == "begun"
        sleeper.signal(signal.SIGSTOP)
        assert results(calls) == [2, 2]
        sleeper.signal(signal.SIGCONT)
        told = computing.result()
        assert "rank 2" in told and "taken for dead" in told, told
        coming = sleeper.start(come_back, cluster.url)
        assert cluster.each(admit_one, peers=others) == [3, 3]
        assert coming.result() == (2, 3)
        assert cluster.each(total) == [3, 3, 3]
