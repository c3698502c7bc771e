"""A smoke test for sanitizers, run as a program: several peers of one process, so that one
sanitizer sees all of the core. Each peer works with several threads at once: lanes of the group, a
subgroup, messages; in the end one peer goes without a word in the middle of an operation. Prints
one line and exits 0 if all went well."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable

import numpy as np

import collectives as cc
from collectives.coordinator.server import CoordinatorServer

PEERS = 3
ROUNDS = 20
TOTAL = PEERS * (PEERS + 1) / 2


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def lane_of_sums(comm: cc.Communicator, lane: int) -> None:
    """Large sums in flight together, and small ones in between."""
    work = []
    for i in range(ROUNDS):
        x = np.full(1 + 3000 * (i % 4), comm.rank + 1.0, np.float32)
        work.append((comm.all_reduce(x, async_op=True, lane=lane), x))
        small = comm.all_reduce(np.ones(4, np.int64), lane=lane)
        check(small.tolist() == [PEERS] * 4, "small sum")
    for item, _ in work:
        check(bool((item.wait() == TOTAL).all()), "large sum")


def lane_of_all_kinds(comm: cc.Communicator, lane: int) -> None:
    rank, size = comm.rank, comm.size
    for _ in range(ROUNDS // 4):
        rows = comm.all_gather(np.array([rank]), lane=lane)
        check(rows.ravel().tolist() == list(range(size)), "all_gather")
        blocks = comm.reduce_scatter(np.ones((size, 1000)), lane=lane)
        check(bool((blocks == size).all()), "reduce_scatter")
        turned = comm.all_to_all(np.full((size, 500), rank), lane=lane)
        check(turned[:, 0].tolist() == list(range(size)), "all_to_all")
        comm.broadcast(np.zeros(9000), root=1, algorithm="ring", lane=lane)
        x = np.full(4000, rank + 1.0)
        comm.all_reduce(x, out=x, lane=lane)
        check(bool((x == TOTAL).all()), "sum in place")
        comm.barrier(lane=lane)


def messages(comm: cc.Communicator, _: int) -> None:
    """Around the ring, short and long ones."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for i in range(ROUNDS):
        count = 10 if i % 2 else 9000
        sending = comm.send(np.full(count, i), after, tag=i, async_op=True)
        got = comm.recv(np.empty(count, np.int64), before, tag=i)
        check(bool((got == i).all()), "message")
        sending.wait()


def subgroup(comm: cc.Communicator, lane: int) -> None:
    for i in range(3):
        with comm.split(int(comm.rank == i), lane=lane) as sub:  # type: ignore[union-attr]
            for _ in range(ROUNDS // 2):
                check(float(sub.all_reduce(np.ones(2000))[-1]) == sub.size, "sum of a subgroup")


def run_together(failures: list[str], jobs: list[Callable[[], None]]) -> None:
    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def peer(url: str, failures: list[str]) -> None:
    with cc.connect(url, size=PEERS, segment_bytes=4096, streams=2) as comm:
        parts = (lane_of_sums, lane_of_all_kinds, messages, subgroup, lane_of_sums)
        run_together(
            failures, [lambda part=part, i=i: part(comm, i) for i, part in enumerate(parts)]
        )
        if failures:
            return
        if comm.rank == PEERS - 1:
            comm.all_reduce(np.ones(50_000), async_op=True)
            comm.abort()
            return
        work = comm.all_reduce(np.ones(50_000), async_op=True)
        check(float(work.wait()[-1]) in (PEERS - 1, PEERS), "sum over the survivors")


def main() -> int:
    failures: list[str] = []
    with CoordinatorServer() as server:
        run_together(failures, [lambda: peer(server.url, failures)] * PEERS)
    print("smoke: FAILED\n" + "\n".join(failures) if failures else "smoke: ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
