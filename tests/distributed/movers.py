"""Calls of processes whose group is reconfigured, for tests: see `cluster` and `ranks`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import ranks  # noqa: F401 (from then on, processes have torch imported)
import torch
import torch.distributed as dist
from cluster import Cluster, Peer, Worker, results

import collectives.torch


def come(worker: Worker, url: str | None) -> str:
    """A call: makes a group without members, and returns its handle."""
    os.environ.pop("COLLECTIVES_COORDINATOR", None)
    if url is not None:
        os.environ["COLLECTIVES_COORDINATOR"] = url
    torch.set_num_threads(1)
    worker.kept["group"] = collectives.torch.reconfigurable(timedelta(seconds=20))
    return collectives.torch.get_reconfigure_handle(worker.kept["group"])


def move(worker: Worker, uuid: int, handles: Any, seconds: float | None = None) -> tuple[int, int]:
    """A call: reconfigures, and returns rank and size."""
    group = worker.kept["group"]
    timeout = None if seconds is None else timedelta(seconds=seconds)
    work = collectives.torch.reconfigure(uuid, handles, group, timeout)
    assert work.wait() and work.is_success() and work.get_future().wait() == []
    return group.rank(), group.size()


def add_up(worker: Worker) -> float:
    """A call: the sum of 1, 10, 100 and so on, by rank."""
    group = worker.kept["group"]
    x = torch.full((3,), 10.0 ** group.rank())
    dist.all_reduce(x, group=group)
    assert x.unique().numel() == 1
    return x[0].item()


class Movers(Cluster):
    """Processes with a group each, none of which has members yet.

    Args:
        own_coordinator: the first one of each group starts one, as it does for users; else one in
            this process is used.

    Attributes:
        handles: by process.
    """

    def __init__(self, count: int, *, own_coordinator: bool = False) -> None:
        super().__init__(0)
        self._count, self._own = count, own_coordinator
        self.handles: dict[Peer, str] = {}

    def __enter__(self) -> Movers:
        super().__enter__()
        try:
            self.invite(self._count)
        except BaseException:
            self.end()
            raise
        return self

    def invite(self, count: int) -> list[Peer]:
        new = self.add(count)
        url = None if self._own else self.url
        self.handles.update(zip(new, self.each(come, url, peers=new), strict=True))
        return new

    def of(self, peers: Iterable[Peer]) -> list[str]:
        return [self.handles[peer] for peer in peers]

    def unite(self, uuid: int, *peers: Peer) -> None:
        """Makes these one group, in this order, and has them do their first operation."""
        calls = self.start(move, uuid, self.of(peers), peers=peers)
        assert results(calls) == [(rank, len(peers)) for rank in range(len(peers))]
        total = (10.0 ** len(peers) - 1) / 9
        assert self.each(add_up, peers=peers) == [total] * len(peers)
