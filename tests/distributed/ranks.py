"""Ranks of torch process groups, for tests: each is a process of a `Cluster`, told what to call.

A call is a function of a test module, `fn(worker, *args)`, as `cluster` has it; torch.distributed
is initialised in it already. Whoever is killed is killed for real.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import cluster
from cluster import Cluster, Worker

from collectives.config import parse_url

# Importing torch takes seconds, and so does what models and optimizers import: once is enough.
cluster._context.set_forkserver_preload(
    [
        *("numpy", "zmq", "msgpack", "pytest"),
        *("torch", "torch.distributed", "torch._dynamo", "collectives.torch"),
        *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint"),
    ]
)


def initialise(
    worker: Worker, rank: int, size: int, store: str, environment: dict[str, str], **options: Any
) -> None:
    """A call: makes the default group, over a file."""
    os.environ.update(environment)
    import torch
    import torch.distributed as dist

    import collectives.torch  # noqa: F401 (registers the backend)

    torch.set_num_threads(1)
    settings = {"backend": "collectives", "timeout": timedelta(seconds=30), **options}
    dist.init_process_group(init_method=f"file://{store}", rank=rank, world_size=size, **settings)


def has_ended(url: str, limit: float = 15.0) -> bool:
    """Whether nobody listens there any more, within the limit."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if not is_up(url):
            return True
        time.sleep(0.02)
    return False


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(parse_url(url), 5):
        return True
    return False


class Ranks(Cluster):
    """A default group of `size` ranks. Use it in a `with` statement.

    Args:
        own_coordinator: rank 0 starts one, as it does for users; else one in this process is used.
        timeouts: of the coordinator in this process; the ranks have `LAN`.
        options: of `init_process_group`.
    """

    def __init__(self, size: int, *, own_coordinator: bool = False, **options: Any) -> None:
        super().__init__(0)
        self._ranks, self._own, self._group_options = size, own_coordinator, options
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Ranks:
        super().__enter__()
        try:
            self.add(self._ranks)
            self.initialise("store")
        except BaseException:
            self.end()
            raise
        return self

    def initialise(self, store: str) -> None:
        """Makes a default group of all peers, through a new file of this name."""
        environment = {} if self._own else {"COLLECTIVES_COORDINATOR": self.url}
        path = str(Path(self._folder.name) / store)
        calls = [
            peer.start(initialise, rank, len(self.peers), path, environment, **self._group_options)
            for rank, peer in enumerate(self.peers)
        ]
        cluster.results(calls)

    def rejoin(self, rank: int = 0, store: str = "store") -> cluster.Peer:
        """One more process, that is to join the group's run; started in the place of this rank."""
        (peer,) = self.add()
        path = str(Path(self._folder.name) / store)
        environment = {"COLLECTIVES_COORDINATOR": self.url, "COLLECTIVES_REJOIN": "1"}
        peer.call(initialise, rank, self._ranks, path, environment, **self._group_options)
        return peer

    def end(self) -> None:
        super().end()
        self._folder.cleanup()
