"""Elastic training: ranks die in the middle of a step, and the others go on. Skipped without torch.

Goal: whoever dies, and wherever in a step, the survivors complete that step with gradients that are
the average over those that contributed, the same bits on all, and train on as a smaller group.
Method: the victim kills itself at a point of the step that is chosen, rank 0 as well as the last
one; gradients are whole numbers, so that averages are known exactly; replicas are compared by all
their bits.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, results  # noqa: E402
from elastic_calls import KINDS, Net, die, prepare, train, train_through  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import collectives.torch as ct  # noqa: E402

pytestmark = pytest.mark.timeout(120)


# ---- exact gradients -----------------------------------------------------------------------------

LAYERS = 4
FACTORS = [12.0, 60.0, 36.0, 84.0]  # of ranks; any sum of them is divided by 2, 3 or 4 exactly


class Weighted(torch.nn.Module):
    """The gradient of each weight is what the factor says. The last layer's comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            [torch.zeros(5, dtype=torch.float64) for _ in range(LAYERS)]
        )

    def forward(self, factor: float) -> Any:
        return sum((w * factor * (i + 1)).sum() for i, w in enumerate(self.weights))


def a_step_with_a_death(worker: Worker, victim: int, layer: int, view: bool) -> dict[str, Any]:
    """A call: two whole steps, then one in which the victim dies at its gradient of this layer,
    when the others of its gradients have been reduced by all."""
    rank = dist.get_rank()
    model = DistributedDataParallel(Weighted(), bucket_cap_mb=1e-6, gradient_as_bucket_view=view)
    run = ct.elastic(model, state={"step": 0})

    def last_words(_: Any) -> None:
        if run.state["step"] == 2:
            for work in list(dist.group.WORLD.communicator._open):
                work.wait()
            die()

    if rank == victim:
        model.module.weights[layer].register_hook(last_words)
    gradients = []
    for step in range(4):
        run.state["step"] = step
        if step == 3:
            assert len(run.boundary().left) == 1
        else:
            assert not run.boundary()
        model.zero_grad()
        model(FACTORS[rank]).backward()
        gradients.append([w.grad.tolist() for w in model.module.weights])
    return {
        "gradients": gradients,
        "rank": dist.get_rank(),
        "size": dist.get_world_size(),
        "ranks": dist.get_process_group_ranks(None),
        "source": spread(dist.get_world_size() - 1),
    }


def spread(source: int) -> int:
    x = torch.tensor([dist.get_rank()])
    dist.broadcast(x, src=source)
    return int(x)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("victim", [0, 3])
def test_gradients_are_the_average_of_those_that_contributed(victim: int, view: bool) -> None:
    everyone, layer = range(4), 1
    others = [rank for rank in everyone if rank != victim]
    with Ranks(4) as ranks:
        calls = ranks.start(a_step_with_a_death, victim, layer, view)
        found = results([calls[rank] for rank in others])

    def average(of: list[int], i: int) -> list[float]:
        return [sum(FACTORS[rank] for rank in of) * (i + 1) / len(of)] * 5

    def averages(of: list[list[int]]) -> list[list[float]]:
        return [average(of[i], i) for i in range(LAYERS)]

    all_four, three = list(everyone), others
    mixed = [three if i <= layer else all_four for i in range(LAYERS)]
    want = [averages(of) for of in ([all_four] * 4, [all_four] * 4, mixed, [three] * 4)]
    for rank, one in enumerate(found):
        assert one["gradients"] == want
        assert (one["rank"], one["size"], one["source"]) == (rank, 3, 2)
        assert one["ranks"] == [0, 1, 2]


# ---- training ------------------------------------------------------------------------------------


SCHEDULES = [
    {0: (0, "last.bias"), 1: (4, "forward"), 3: (0, "middle"), 5: (2, "first.weight")},
    {0: (5, "first.weight"), 1: (0, "forward"), 2: (3, "end"), 4: (0, "last.weight")},
]
"""Rank 0 and the last one; in the iteration that DDP learns from, in the next one, and later."""


@pytest.mark.parametrize("schedule", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_others_train_on_alike(kind: str, schedule: int) -> None:
    net, ddp = KINDS[kind]
    with Ranks(6) as ranks:
        ranks.each(prepare, net, **ddp)
        found = train_through(ranks, SCHEDULES[schedule])
    assert len(found) == 2
    assert len(set(found)) == 1


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["buffers", "static"])
def test_rank_0_dies_in_a_broadcast_of_the_forward(kind: str, number: int) -> None:
    """The second forward broadcasts the order of gradients, then buffers of two dtypes; with a
    static graph it is the third one that does the former."""
    net, ddp = KINDS[kind]
    with Ranks(3) as ranks:
        ranks.each(prepare, net, **ddp)
        found = train_through(ranks, {1: (0, f"broadcast {number}")})
    assert len(found) == 2
    assert len(set(found)) == 1


@pytest.mark.parametrize("victim", [0, 2])
def test_gradients_that_are_accumulated(victim: int) -> None:
    with Ranks(3) as ranks:
        ranks.each(prepare, {"norm": True})
        found = train_through(ranks, {1: (victim, "last.bias"), 4: (0, "forward")}, micro=3)
    assert len(set(found)) == 1


def survived_at(worker: Worker) -> float:
    return worker.kept["survived at"]


@pytest.mark.parametrize("victim", [0, 2])
def test_the_step_is_complete_soon_after_the_kill(victim: int) -> None:
    """Killed while the others wait for it in the middle of backward."""
    with Ranks(3) as ranks:
        ranks.each(prepare, {"norm": True})
        calls = ranks.start(train, 3, {2: (victim, "halt")})
        ranks.peers[victim].wait_note()
        killed_at = ranks.peers[victim].kill()
        others = [rank for rank in range(3) if rank != victim]
        results([calls[rank] for rank in others])
        took = max(ranks.peers[rank].call(survived_at) for rank in others) - killed_at
    print(f"from the kill to the survivors' completed step: {took * 1000:.0f} ms")
    assert took < 1.0


def sizes(worker: Worker) -> list[int]:
    return worker.kept["sizes"]


def test_the_size_follows_at_the_next_boundary() -> None:
    with Ranks(3) as ranks:
        ranks.each(prepare, {})
        train_through(ranks, {2: (0, "last.bias"), 4: (0, "first.weight")})
        assert ranks.peers[2].call(sizes) == [3, 3, 3, 2, 2, 1, 1, 1]


# ---- misuse --------------------------------------------------------------------------------------


def misuse(worker: Worker) -> list[str]:
    """A call: what is said to those who call it wrongly."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes a second

    said = []

    def refused(kind: type[Exception], *parts: Any) -> None:
        with pytest.raises(kind) as error:
            ct.elastic(*parts)
        said.append(str(error.value))

    hooked = DistributedDataParallel(Net())
    hooked.register_comm_hook(None, hook)
    refused(ValueError, hooked)
    small = DistributedDataParallel(Net(), process_group=dist.new_group([0, 1]))
    refused(ValueError, small)
    refused(TypeError, torch.zeros(3))
    parameters = Net().parameters()
    refused(ValueError, ZeroRedundancyOptimizer(parameters, torch.optim.SGD, lr=0.1))
    refused(ValueError, torch.nn.Sequential(fully_shard(torch.nn.Linear(2, 2))))
    flat = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    refused(ValueError, flat)
    assert not dist.group.WORLD.elastic
    ct.elastic(DistributedDataParallel(Net()))
    refused(RuntimeError)
    dist.destroy_process_group()
    refused(TypeError)
    return said


def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP looks at annotations
    raise AssertionError("never called")


def test_misuse_is_refused() -> None:
    words = ["of its own", "default group", "state_dict", *["sharded"] * 3]
    words += ["already", "init_process_group"]
    with Ranks(2) as ranks:
        for said in ranks.each(misuse):
            for word, text in zip(words, said, strict=True):
                assert word in text
