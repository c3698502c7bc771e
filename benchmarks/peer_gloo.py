"""A rank of Gloo, through torch.distributed, which is how it comes to a machine today.

Tensors share the memory of the numpy arrays that are filled and checked. What can be in place is in
place: Gloo's all_reduce, broadcast and reduce have no other form.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any

import peer
import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(seconds=120)
ROOT: int = peer.trial.ROOT


class Gloo:
    def __init__(self, rank: int, ranks: int, words: list[str]) -> None:
        self.rank, self.ranks = rank, ranks
        (self.store,) = words
        torch.set_num_threads(1)
        warnings.simplefilter("ignore", FutureWarning)  # names that torch is about to change

    def start(self) -> None:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.store}",
            rank=self.rank,
            world_size=self.ranks,
            timeout=TIMEOUT,
        )

    def operation(self, op: str, given: Any, out: Any) -> Callable[[], Any]:
        given, out = torch.from_numpy(given), torch.from_numpy(out)
        is_root = self.rank == ROOT
        if op == "all_reduce":
            return lambda: dist.all_reduce(given)
        if op == "broadcast":
            return lambda: dist.broadcast(given, ROOT)
        if op == "reduce":
            return lambda: dist.reduce(given, ROOT)
        if op == "barrier":
            return self.barrier
        if op == "all_gather":
            return lambda: dist.all_gather_into_tensor(out, given)
        if op == "reduce_scatter":
            return lambda: dist.reduce_scatter_tensor(out, given)
        if op == "all_to_all":
            return lambda: dist.all_to_all_single(out, given)
        if op == "gather":
            rows = list(out.view(self.ranks, -1)) if is_root else None
            return lambda: dist.gather(given, rows, ROOT)
        if op == "scatter":
            rows = list(given.view(self.ranks, -1)) if is_root else None
            return lambda: dist.scatter(out, rows, ROOT)
        if op == "send_recv":
            return self._there_and_back(given, out)
        raise peer.Absent(f"{op} is not known here")

    def _there_and_back(self, given: Any, out: Any) -> Callable[[], Any]:
        other = 1 - self.rank

        def run() -> None:
            if self.rank == 0:
                dist.send(given, other)
                dist.recv(out, other)
            else:
                dist.recv(out, other)
                dist.send(given, other)

        return run

    def barrier(self) -> None:
        dist.barrier()

    def notes(self, op: str, given: Any, out: Any) -> str:
        return ""

    def close(self) -> None:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    peer.serve(Gloo)
