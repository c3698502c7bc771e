"""A survivor whose interpreter is busy, in real processes.

Goal: while one survivor's interpreter does nothing but a long C call that keeps its lock, the
others get over a death as fast as ever, and the busy one has the same result when it wakes up.
Method: an operation is under way, one member is killed, another one holds the lock for seconds.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import pytest
from cluster import QUICK, Cluster, Worker, results
from test_faults_tcp import one_sum

pytestmark = pytest.mark.timeout(60)

HELD_S = 5.0
SOON_S = 1.0


def sum_in_flight(worker: Worker, held_s: float = 0.0) -> tuple[float, float, dict[str, Any]]:
    """A call: posts a sum, then waits for it, or holds the interpreter's lock first. Returns when
    it was free again, when the sum was there, and what became of it."""
    comm = worker.comm
    x = np.full(50_000, float(comm.rank + 1))
    work = comm.all_reduce(x, out=x, async_op=True)
    worker.note("posted")
    if held_s:
        ctypes.PyDLL(None).usleep(int(held_s * 1e6))
    woke = time.monotonic()
    total = work.wait(30)
    at = time.monotonic()
    info = work.info
    deadline = at + 10
    while comm.epoch < info.epoch:  # the core may be ahead of the thread that keeps the record
        assert time.monotonic() < deadline, "the record never came"
        time.sleep(0.001)
    return (
        woke,
        at,
        {
            "total": float(total.min()),
            "same": bool((total == total[0]).all()),
            "contributors": info.contributors,
            "epoch": comm.epoch,
            "alive": [member.alive for member in comm.members],
            "size": comm.size,
        },
    )


@pytest.mark.parametrize("n", [3, 4])
def test_a_busy_interpreter_stalls_nobody_after_a_death(n: int) -> None:
    with Cluster(n, timeouts=QUICK) as group:
        assert group.each(one_sum) == [n] * n
        *others, busy, victim = group.peers
        held = busy.start(sum_in_flight, HELD_S)
        calls = group.start(sum_in_flight, peers=others)
        for peer in (*others, busy):
            assert peer.wait_note() == "posted"
        killed = victim.kill()
        expected = {
            "total": sum(rank + 1.0 for rank in range(n - 1)),
            "same": True,
            "contributors": n - 1,
            "epoch": 2,
            "alive": [True] * (n - 1) + [False],
            "size": n,
        }
        for _, at, found in results(calls, 20):
            assert found == expected
            assert at - killed < SOON_S
            last = at
        woke, at, found = held.result(20)
        assert woke > last, "it was not busy for long enough to tell"
        assert at - woke < SOON_S
        assert found == expected
        assert group.each(one_sum, peers=[*others, busy]) == [n - 1] * (n - 1)
