"""torchft's Manager over our process group, with its own lighthouse. Skipped without torchft.

Goal: training goes on when a replica dies in the middle of a step, and when it comes back; a step
that a death broke is committed by nobody, every other one with the mean over exactly those who took
part, and all have the same weights after it. Method: the real Manager and lighthouse on loopback,
replicas as processes, one of which kills itself where the others wait for it; each tells what
became of each step.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby
from typing import Any

import pytest

torch = pytest.importorskip("torch")
os.environ.setdefault("RUST_LOG", "error")
ft = pytest.importorskip("torchft", reason="to run this: pip install torchft-nightly, or torchft")

import torch.distributed as dist  # noqa: E402
from cluster import Call, Peer, Worker, results  # noqa: E402
from movers import Movers  # noqa: E402
from torchft.checkpointing.pg_transport import PGTransport  # noqa: E402
from torchft.coordination import LighthouseServer  # noqa: E402

pytestmark = pytest.mark.timeout(120)

LIMIT = timedelta(seconds=20)
COUNT = 1 << 18
LAST_STEPS = 5  # with all three again, after which everybody ends
Step = tuple[int, int, "float | None"]  # number, how many took part, mean; None: not committed


class Replica:
    """One replica of a model that is a single vector: each step adds the mean of what the replicas
    bring, which is their number plus one."""

    def __init__(self, worker: Worker, number: int, lighthouse: str, by_group: bool) -> None:
        group = worker.kept["group"]
        self.number = number
        self.told: list[Step] = []
        self.weights = torch.zeros(COUNT)
        self.history: list[int] = []  # how many took part in each step
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        transport = PGTransport(group, LIMIT, torch.device("cpu")) if by_group else None
        self.manager = ft.Manager(
            pg=group,
            load_state_dict=self._load,
            state_dict=self._state,
            min_replica_size=2,
            replica_id=f"replica_{number}",
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=self._store.port,
            lighthouse_addr=lighthouse,
            hostname="localhost",
            timeout=LIMIT,
            quorum_timeout=LIMIT,
            checkpoint_transport=transport,
        )

    def _state(self) -> dict[str, Any]:
        return {"weights": self.weights.clone(), "history": torch.tensor(self.history)}

    def _load(self, state: dict[str, Any]) -> None:
        self.weights.copy_(state["weights"])
        self.history = state["history"].tolist()

    def step(self, dies: bool) -> None:
        manager = self.manager
        manager.start_quorum()
        manager.wait_quorum()
        if dies and self.history[-3:] == [3, 3, 3]:
            os.kill(os.getpid(), signal.SIGKILL)
        gradient = torch.full((COUNT,), self.number + 1.0)
        manager.allreduce(gradient).wait()
        step, count = manager.current_step(), manager.num_participants()
        mean = None
        if manager.should_commit():
            self.weights += gradient
            self.history.append(count)
            assert gradient.unique().numel() == 1
            mean = gradient[0].item()
        self.told.append((step, count, mean))

    @property
    def is_over(self) -> bool:
        """Whether there were three, then two, and then three again for a while. All replicas have
        the same history, so all end after the same step."""
        phases = [count for count, _ in groupby(self.history)]
        return phases[-3:] == [3, 2, 3] and self.history[-LAST_STEPS:] == [3] * LAST_STEPS


def train(
    worker: Worker, number: int, lighthouse: str, by_group: bool, dies: bool
) -> tuple[list[Step], list[int], float]:
    """A call: trains until it is over. Returns what became of its steps, in how many replicas each
    step of the run was, and the weights."""
    logging.getLogger("torchft").setLevel(logging.CRITICAL)
    replica = Replica(worker, number, lighthouse, by_group)
    while not replica.is_over:
        replica.step(dies)
    assert replica.weights.unique().numel() == 1
    return replica.told, replica.history, replica.weights[0].item()


@pytest.fixture
def lighthouse() -> Iterator[str]:
    server = LighthouseServer(
        bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=300, heartbeat_timeout_ms=1000
    )
    yield server.address()
    server.shutdown()


@pytest.mark.parametrize("by_group", [False, True], ids=["state by HTTP", "state by our messages"])
def test_a_replica_dies_and_comes_back(lighthouse: str, by_group: bool) -> None:
    with Movers(3) as movers:

        def start(peer: Peer, number: int, dies: bool) -> Call:
            return peer.start(train, number, lighthouse, by_group, dies)

        calls = [start(peer, number, number == 2) for number, peer in enumerate(movers.peers)]
        with pytest.raises(EOFError):  # it is gone
            calls[2].result()
        (peer,) = movers.invite(1)
        back = start(peer, 2, False)
        ends = results([calls[0], calls[1], back])
    assert ends[0][1:] == ends[1][1:] == ends[2][1:]
    told = [steps for steps, _, _ in ends]
    broken = [[step for step, _, mean in steps if mean is None] for steps in told]
    assert len(broken[0]) == 1 and broken == [broken[0], broken[0], []]
    means: dict[int, set[tuple[int, float]]] = {}
    for step, count, mean in (step for steps in told for step in steps):
        if mean is not None:
            means.setdefault(step, set()).add((count, mean))
    assert all(len(seen) == 1 for seen in means.values()), "not the same on all"
    for step, seen in means.items():
        ((count, mean),) = seen
        if step:  # in the first one, all take the state of one, and some bring nothing
            of_two = {1.5} if step >= broken[0][0] else {1.5, 2.0, 2.5}
            assert mean in ({2.0} if count == 3 else of_two), (step, count, mean)
