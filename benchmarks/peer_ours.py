"""A rank of collectives, from Python, as a program would use it: with a coordinator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peer

import collectives as cc
from collectives.cli import bench_worker


class Ours:
    comm: cc.Communicator
    barrier: Callable[[], Any]

    def __init__(self, rank: int, ranks: int, words: list[str]) -> None:
        self.rank, self.ranks = rank, ranks
        (self.url,) = words

    def start(self) -> None:
        self.comm = cc.connect(self.url, group="compare", size=self.ranks, rank=self.rank)
        self.barrier = self.comm.barrier

    def operation(self, op: str, given: Any, out: Any) -> Callable[[], Any]:
        return bench_worker.operation(self.comm, op, given, out)

    def notes(self, op: str, given: Any, out: Any) -> str:
        """The algorithm, from a run of its own that is not timed."""
        if op == "send_recv":
            return ""
        work = bench_worker.operation(self.comm, op, given, out)(async_op=True)
        work.wait()
        algorithm: str = work.info.algorithm
        return algorithm

    def close(self) -> None:
        self.comm.barrier()
        self.comm.close()


if __name__ == "__main__":
    peer.serve(Ours)
