"""Connections of real processes break while both ends live: nobody sees it.

A process breaks connections of its own: a descriptor that is shut down is what both kernels see
when a middlebox resets a connection.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cluster import SMALL, Cluster, Worker, results

import collectives as cc

pytestmark = pytest.mark.timeout(90)

OPERATIONS = 60
BROKEN = 20
"""Connections that each member breaks, at least."""
SEED = 5


def connections() -> list[int]:
    """This process's descriptors that are TCP connections, to peers or to the coordinator."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), opened(int(name)) as copy:  # no socket, or not connected
            if copy.family == socket.AF_INET and copy.getpeername():
                found.append(int(name))
    return found


@contextlib.contextmanager
def opened(number: int) -> Iterator[socket.socket]:
    """A socket object of a descriptor, for a moment."""
    copy = os.dup(number)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with sock:
        yield sock


def shut(number: int) -> None:
    with contextlib.suppress(OSError), opened(number) as copy:  # it may be gone already
        copy.shutdown(socket.SHUT_RDWR)


def saboteur(rng: random.Random, over: threading.Event, broken: list[int]) -> None:
    while not over.wait(rng.random() * 0.02):
        open_ones = connections()
        if open_ones:
            shut(rng.choice(open_ones))
            broken[0] += 1


def reduce_one(comm: cc.Communicator, number: int) -> int:
    x = np.full(200_000, comm.rank + number, np.int64)
    work = comm.all_reduce(x, out=x, async_op=True, algorithm="ring")
    work.wait()
    assert (x == sum(range(comm.size)) + comm.size * number).all(), f"operation {number}"
    return work.info.attempts


def pass_one_on(comm: cc.Communicator, number: int) -> int:
    source = (comm.rank - 1) % comm.size
    data = np.arange(50_000) * (comm.rank + 1) + number
    sent = comm.send(data, (comm.rank + 1) % comm.size, async_op=True)
    got = comm.recv(np.empty_like(data), source)
    sent.wait()
    assert np.array_equal(got, np.arange(50_000) * (source + 1) + number), f"message {number}"
    return sent.info.attempts


def work(worker: Worker, rank: int, kind: str) -> tuple[int, int, int]:
    """A call: operations one after another, while a thread breaks connections; until every member
    has broken some."""
    comm = worker.comm
    call = {"all_reduce": reduce_one, "messages": pass_one_on}[kind]
    over, broken = threading.Event(), [0]
    rng = random.Random(SEED * 100 + rank)
    thread = threading.Thread(target=saboteur, args=(rng, over, broken))
    thread.start()
    attempts = number = 0
    more = True
    try:
        while number < OPERATIONS or more:
            number += 1
            attempts = max(attempts, call(comm, number))
            if number >= OPERATIONS:
                few = np.array([broken[0] < BROKEN], np.int32)
                more = bool(comm.all_reduce(few, op="max")[0])
    finally:
        over.set()
        thread.join()
    return comm.epoch, attempts, broken[0]


@pytest.mark.parametrize("kind", ["all_reduce", "messages"])
def test_connections_that_break_cost_nothing(kind: str) -> None:
    print("seed", SEED)
    with Cluster() as cluster:
        peers = cluster.add(3)
        cluster.form(peers, **SMALL)
        calls = [peer.start(work, rank, kind) for rank, peer in enumerate(peers)]
        found = results(calls, 60)
        assert {epoch for epoch, _, _ in found} == {1}
        assert {attempts for _, attempts, _ in found} == {1}
