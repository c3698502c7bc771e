"""Point to point between real processes: order, tags, any source, several threads, deaths."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from cluster import NARROW, SMALL, Cluster, Worker, results

import collectives as cc

pytestmark = pytest.mark.timeout(60)

LENGTHS = (0, 1, 1000, 2048, 2049, 50_000)  # 2048 of eight bytes travel with their offer


def content(sender: int, receiver: int, number: int) -> np.ndarray:
    return np.arange(LENGTHS[number % len(LENGTHS)]) + 1000 * sender + 10 * receiver + number


def everyone_to_everyone(worker: Worker, count: int) -> None:
    """A call: all pairs exchange messages of many lengths under two tags, received tag by tag."""
    comm = worker.comm
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    sends = [
        comm.send(content(comm.rank, to, number), to, tag=number % 2, async_op=True)
        for number in range(count)
        for to in others
    ]
    for tag in (1, 0):
        for source in others:
            for number in range(tag, count, 2):
                want = content(source, comm.rank, number)
                work = comm.recv(np.empty_like(want), source, tag=tag, async_op=True)
                assert (work.wait() == want).all()
                assert work.info.source == source
    assert [work.wait() for work in sends] == [None] * len(sends)


@pytest.mark.parametrize("options", [{}, {**SMALL, **NARROW}], ids=["default", "narrow"])
def test_everyone_to_everyone(options: dict[str, Any]) -> None:
    with Cluster(3, **options) as group:
        results([peer.start(everyone_to_everyone, 24) for peer in group.peers])


def threads_exchange(worker: Worker, rounds: int) -> None:
    """A call: each thread has a tag of its own, while another thread reduces."""
    comm, failed = worker.comm, []
    other = 1 - comm.rank

    def exchange(tag: int) -> None:
        try:
            for number in range(rounds):
                mine = np.full(300 * tag, number, np.int16)
                theirs = np.empty_like(mine)
                work = comm.send(mine, other, tag=tag, async_op=True)
                assert (comm.recv(theirs, other, tag=tag) == number).all()
                work.wait()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=exchange, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        assert (comm.all_reduce(np.full(5000, number)) == 2 * number).all()
    for thread in threads:
        thread.join(30)
    assert not failed, failed


def test_threads_with_tags_of_their_own() -> None:
    with Cluster(2, **SMALL) as group:
        results([peer.start(threads_exchange, 40) for peer in group.peers])


def strided(worker: Worker) -> None:
    """A call: strided arrays on both sides."""
    comm = worker.comm
    if comm.rank == 0:
        comm.send(np.arange(20.0).reshape(4, 5).T, 1)
    else:
        out = np.zeros((4, 10))[:, ::2].T
        assert comm.recv(out, 0) is out
        assert (out == np.arange(20.0).reshape(4, 5).T).all()


def test_strided() -> None:
    with Cluster(2) as group:
        results([peer.start(strided) for peer in group.peers])


def serve(worker: Worker) -> list[tuple[str, int | None]]:
    """A call: takes whatever comes, and something of rank 2, which dies."""
    comm, found = worker.comm, []
    lost = comm.recv(np.empty(100_000), 2, tag=1, async_op=True)
    stuck = comm.send(np.empty(100_000), 2, tag=9, async_op=True)
    worker.note("waiting")
    for work in (lost, stuck):
        try:
            work.wait(10)
        except cc.PeerLost as error:
            found.append((type(error).__name__, error.rank))
    out = np.empty(3)
    work = comm.recv(out, async_op=True)
    work.wait(10)
    found.append((f"{out[0]:g}", work.info.source))
    try:
        comm.send(out, 2)
    except cc.PeerLost as error:
        found.append((type(error).__name__, error.rank))
    return found


def give(worker: Worker) -> float:
    """A call: sends to rank 0; others have died meanwhile, and that is no matter."""
    worker.comm.send(np.full(3, 7.0), 0)
    return time.monotonic()


def test_a_death_fails_what_goes_to_and_from_it() -> None:
    with Cluster(3) as group:
        call = group.peers[0].start(serve)
        group.peers[0].wait_note()
        group.peers[2].kill()
        group.peers[1].call(give)
        assert call.result() == [("PeerLost", 2), ("PeerLost", 2), ("7", 1), ("PeerLost", 2)]


def wrong(worker: Worker) -> list[str]:
    """A call: what cannot be."""
    comm, x, found = worker.comm, np.ones(3), []
    attempts: list[Any] = [
        lambda: comm.send(x, comm.rank),
        lambda: comm.recv(x, comm.size),
        lambda: comm.send(x, -1),
        lambda: comm.send(x, 1 - comm.rank, tag=-1),
        lambda: comm.recv(x, tag=2**31),
        lambda: comm.recv([1.0]),
        lambda: comm.send(x, 1 - comm.rank, algorithm="ring"),
        lambda: comm.send(x, 1 - comm.rank, timeout=-1),
        lambda: comm.recv(x, timeout=0.01),
    ]
    for attempt in attempts:
        try:
            attempt()
            found.append("ok")
        except (ValueError, TypeError, cc.CollectivesError) as error:
            found.append(type(error).__name__)
    comm.barrier()
    return found


def test_wrong_arguments() -> None:
    with Cluster(2) as group:
        want = ["ValueError"] * 5 + ["TypeError"] * 2 + ["ValueError", "TimedOut"]
        assert group.each(wrong) == [want] * 2
