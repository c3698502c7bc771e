"""Goal: who ends in order disturbs nobody, calls after the end say so, and a signal's handler may
call the communicator whose call it interrupts.

Method: real processes over TCP.
"""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from cluster import Cluster, Worker, close
from test_api import total

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def settle(worker: Worker, seconds: float) -> int:
    """The epoch after some time in which anything that went wrong would be noticed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and worker.comm.epoch == 1:
        time.sleep(0.01)
    return worker.comm.epoch


def test_an_orderly_end_disturbs_nobody() -> None:
    """Those who need nothing of the peer that closes do not even change their epoch."""
    with Cluster(3) as group:
        assert group.each(total) == [3] * 3
        group.peers[0].call(close)
        assert group.each(settle, 0.5, peers=group.peers[1:]) == [1, 1]
        assert group.each(total, peers=group.peers[1:]) == [2, 2]


def send_last(worker: Worker) -> None:
    worker.comm.send(np.arange(1000), 1)


def receive_and_close(worker: Worker) -> int:
    got = worker.comm.recv(np.empty(1000, np.int64), 0)
    worker.comm.close()
    return int(got[-1])


def test_who_closes_right_behind_a_receive_has_said_that_it_took_it() -> None:
    with Cluster(2) as group:
        calls = [group.peers[0].start(send_last), group.peers[1].start(receive_and_close)]
        assert calls[1].result() == 999
        assert calls[0].result() is None


def ended_agent(worker: Worker) -> str:
    """The coordinator was lost, say: then nobody answers any more."""
    agent = worker.comm._agent
    agent._closing.set()
    agent._wake()
    agent._thread.join(10)
    try:
        worker.comm.subgroup([worker.comm.rank])
    except cc.CollectivesError as error:
        return type(error).__name__
    return "ok"


def test_subgroups_of_a_peer_that_is_out() -> None:
    with Cluster(1) as group:
        assert group.peers[0].call(ended_agent, limit=5) == "Closed"


def handler_calls(worker: Worker) -> tuple[float, float]:
    """A handler runs a collective, alone in a group of its own, while another one waits."""
    solo = worker.kept["solo"]
    seen = []

    def handler(*_: object) -> None:
        seen.append(float(solo.all_reduce(np.ones(8))[0]) + float(solo.all_gather(1.0)[0]))
        worker.note("handled")

    signal.signal(signal.SIGALRM, handler)
    worker.note("waiting")
    result = worker.comm.all_reduce(np.full(8, 1.0 + worker.comm.rank))
    return float(result[0]), seen[0]


def connect_solo(worker: Worker, url: str) -> None:
    worker.kept["solo"] = cc.connect(url, group="solo")


def plain(worker: Worker) -> float:
    return float(worker.comm.all_reduce(np.full(8, 1.0 + worker.comm.rank))[0])


def test_a_signal_handler_may_call() -> None:
    with Cluster(2) as group:
        one, two = group.peers
        one.call(connect_solo, group.url)
        call = one.start(handler_calls)
        one.wait_note()
        one.signal(signal.SIGALRM)
        assert one.wait_note() == "handled"
        assert two.call(plain) == 3.0
        assert call.result() == (3.0, 2.0)
