"""Real processes that come late or stand still: the others can tell for whom they wait.

Goal: from a call's Work, from the log and from the message of a deadline an operator learns who
holds the group up, and whether that one has called the operation. Method: one of three does not
call until it is told to; one of two is stopped after it has called.
"""

from __future__ import annotations

import logging
import signal
import time

import numpy as np
import pytest
from cluster import QUICK, Cluster, Worker, results, scaled
from test_faults_tcp import one_sum

import collectives as cc

pytestmark = pytest.mark.timeout(60)

TIMES = scaled(QUICK, suspect=0.25, stalled=0.6)


def waits(worker: Worker, elements: int, seconds: float) -> tuple[dict[int, str], str, list[str]]:
    """A call: whom an all_reduce waits for, once that is known, what `wait` says of it then, and
    what was logged by the time that it is complete."""
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("collectives").addHandler(handler)
    work = worker.comm.all_reduce(np.ones(elements), async_op=True)
    worker.note("called")
    end = time.monotonic() + 20
    while not (found := work.waits_for()) or not logged:
        assert time.monotonic() < end and not work.done, (found, logged)
        time.sleep(0.01)
    with pytest.raises(cc.TimedOut) as error:
        work.wait(0.01)
    worker.note("known")
    work.wait(seconds)
    assert work.waits_for() == {}
    logging.getLogger("collectives").removeHandler(handler)
    return found, str(error.value), logged


def test_who_has_not_called_is_named() -> None:
    with Cluster(0, timeouts=TIMES) as group:
        group.add(3)
        joins = [
            group.start_join(peer, rank=rank, size=3, name=f"node{rank}")
            for rank, peer in enumerate(group.peers)
        ]
        results(joins)
        *early, late = group.peers
        calls = group.start(waits, 1_000, 20.0, peers=early)
        for peer in early:
            assert [peer.wait_note(), peer.wait_note()] == ["called", "known"]
        last = late.start(one_sum_of, 1_000)
        for found, message, logged in results(calls):
            assert found == {2: "late"}
            assert message == (
                "all_reduce is not complete after 0.01 s, waiting for rank 2, which has not called "
                "it yet; it goes on"
            )
            assert logged[0].startswith("group 'default': operation 1, all_reduce(float64, op=sum,")
            assert logged[0].endswith(
                "has waited 1 s for rank 2 ('node2'), which has not called it yet"
            )
        assert last.result() == 3


def one_sum_of(worker: Worker, elements: int) -> int:
    return int(worker.comm.all_reduce(np.ones(elements))[0])


def test_who_has_called_and_is_stopped_is_named() -> None:
    """It is not taken for dead for a while, so that it can be seen to stand still. It has said that
    it called before it is stopped: that leaves with the call itself."""
    elements = 1_000_000
    with Cluster(2, timeouts=scaled(TIMES, dead=60.0)) as group:
        one, other = group.peers
        slow = other.start(noted_sum, elements)
        assert other.wait_note() == "called"
        other.signal(signal.SIGSTOP)
        call = one.start(waits, elements, 20.0)
        assert [one.wait_note(), one.wait_note()] == ["called", "known"]
        other.signal(signal.SIGCONT)
        found, message, logged = call.result()
        assert found == {1: "stalled"}
        assert "waiting for rank 1, which called it and does not move" in message
        assert any("s for rank 1, which called it and does not move" in line for line in logged)
        assert slow.result() == 2
        assert group.each(one_sum) == [2, 2]


def noted_sum(worker: Worker, elements: int) -> int:
    work = worker.comm.all_reduce(np.ones(elements), async_op=True)
    worker.note("called")
    return int(work.wait()[0])


def deadline(worker: Worker, timeout: float) -> str:
    with pytest.raises(cc.TimedOut) as error:
        worker.comm.barrier(timeout=timeout)
    return str(error.value)


def test_a_deadline_names_who_was_waited_for() -> None:
    """To all members: also to the one that comes only then."""
    with Cluster(3, timeouts=TIMES) as group:
        calls = group.start(deadline, 1.5, peers=group.peers[:2])
        texts = [*results(calls), group.peers[2].call(deadline, 9.0)]
        for text in texts:
            assert "; rank 2 had not called it; inputs are intact" in text
        assert group.each(one_sum) == [3] * 3
