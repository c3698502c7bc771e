"""DistributedDataParallel with its options, over our backend. Skipped without torch.

Goal: each option leads to what one process learns from the whole batch, and to the same bits on all
ranks. Method: the same model is trained alone; buckets are so small that a model has several, and
errors in their order show.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import models  # noqa: E402
import torch.distributed as dist  # noqa: E402
from cluster import Worker  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks import (  # noqa: E402
    ddp_zero_hook,
    default_hooks,
    powerSGD_hook,
)
from torch.distributed.algorithms.join import Join  # noqa: E402
from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

pytestmark = pytest.mark.timeout(90)

SMALL = 0.002  # megabytes: of a bucket, so that each layer has one


def parallel(model: Any, **options: Any) -> Any:
    return DistributedDataParallel(model, **{"bucket_cap_mb": SMALL, **options})


def mine(step: int) -> Any:
    return models.part(step, dist.get_rank())


def same_everywhere(found: list[Any]) -> None:
    """Bit by bit."""
    flat = torch.cat([value.reshape(-1) for value in found])
    all_of_them = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, flat)
    assert all(torch.equal(flat, other) for other in all_of_them)


def trains(worker: Worker, options: dict[str, Any]) -> None:
    """A call: a few steps with these options of DDP."""
    ddp = parallel(models.perceptron(), **options)
    models.train(ddp, mine)
    models.check(models.values(ddp), models.alone(dist.get_world_size()))
    same_everywhere(models.values(ddp))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_options(options: dict[str, Any]) -> None:
    with Ranks(3) as ranks:
        ranks.each(trains, options)


class Branches(nn.Module):
    """Which branch is used depends on the rank and the step; one is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([models.perceptron(layers=1) for _ in range(4)])
        self.last = models.perceptron(layers=1)

    def forward(self, x: Any, which: int) -> Any:
        return self.last(self.branches[which](x))


def trains_branches(worker: Worker) -> None:
    """A call: a parameter that some ranks do not use counts as one with a zero gradient there."""
    size, rank = dist.get_world_size(), dist.get_rank()
    model, other = Branches(), Branches()
    ddp = parallel(model, find_unused_parameters=True)
    mean, together = models.sgd(model.parameters()), models.sgd(other.parameters())
    for step in range(4):
        mean.zero_grad()
        together.zero_grad()
        ddp(mine(step), (rank + step) % 3).square().mean().backward()
        for r in range(size):
            loss = other(models.part(step, r), (r + step) % 3).square().mean() / size
            loss.backward()
        mean.step()
        together.step()
    models.check(models.values(model), models.values(other))
    assert model.branches[3][0].weight.grad is None, "used nowhere"
    same_everywhere(models.values(model))


def trains_another_order(worker: Worker) -> None:
    """A call: layers are used in another order than they were made in, so that DDP makes its
    buckets anew after the first step; and no_sync adds up gradients."""
    size = dist.get_world_size()
    layers = [models.perceptron(layers=1)[0] for _ in range(5)]

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Any) -> Any:
            for i in (3, 0, 4, 1, 2):
                x = torch.tanh(self.layers[i](x))
            return x

    import copy

    model = Shuffled()
    other = copy.deepcopy(model)
    ddp = parallel(model)
    optimizer = models.sgd(model.parameters())
    for step in range(0, 6, 2):
        optimizer.zero_grad()
        with ddp.no_sync():
            ddp(mine(step)).square().mean().backward()
        ddp(mine(step + 1)).square().mean().backward()
        optimizer.step()
    reference = models.sgd(other.parameters())
    for step in range(0, 6, 2):
        reference.zero_grad()
        for i in (0, 1):
            other(models.whole(step + i, size)).square().mean().backward()
        reference.step()
    models.check(models.values(model), models.values(other))
    assert ddp._get_ddp_logging_data()["has_rebuilt_buckets"]
    same_everywhere(models.values(model))


@pytest.mark.parametrize("call", [trains_branches, trains_another_order])
def test_which_gradients_come_when(call: Any) -> None:
    with Ranks(3) as ranks:
        ranks.each(call)


def trains_unevenly(worker: Worker) -> None:
    """A call: rank r has r + 2 batches; who is out of them shadows the others' collectives."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model, other = models.perceptron(), models.perceptron()
    ddp = parallel(model)
    optimizer = models.sgd(model.parameters())
    steps = 0
    with ddp.join(divide_by_initial_world_size=False):
        for step in range(rank + 2):
            optimizer.zero_grad()
            ddp(mine(step)).square().mean().backward()
            optimizer.step()
            steps += 1
    assert steps == rank + 2
    reference = models.sgd(other.parameters())
    for step in range(size + 1):
        present = [r for r in range(size) if step < r + 2]
        reference.zero_grad()
        batch = torch.cat([models.part(step, r) for r in present])
        other(batch).square().mean().backward()
        reference.step()
    models.check(models.values(model), models.values(other))
    same_everywhere(models.values(model))


def trains_both_unevenly(worker: Worker) -> None:
    """A call: ZeRO's steps are shadowed as well. It ends, and all have the same model; it is not
    that of one process, with no backend: who has joined steps without the others' gradients."""
    ddp = parallel(models.perceptron())
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.SGD, lr=0.1)
    with Join([ddp, optimizer]):
        for step in range(2 * dist.get_rank() + 1):
            optimizer.zero_grad()
            ddp(mine(step)).square().mean().backward()
            optimizer.step()
    same_everywhere(models.values(ddp))


def throws_unevenly(worker: Worker) -> None:
    """A call: with throw_on_early_termination all end at the first one's end."""
    ddp = parallel(models.perceptron())

    def train() -> None:
        with Join([ddp], throw_on_early_termination=True):
            for step in range(dist.get_rank() + 2):
                ddp(mine(step)).square().mean().backward()

    with pytest.raises(RuntimeError, match="exhausted"):
        train()
    dist.barrier()


@pytest.mark.parametrize("call", [trains_unevenly, trains_both_unevenly, throws_unevenly])
def test_join(call: Any) -> None:
    with Ranks(3) as ranks:
        ranks.each(call)


# ---- communication hooks -------------------------------------------------------------------------


def hooked(worker: Worker, name: str) -> None:
    """A call: a hook of torch's that moves gradients in some other way. (Those in bfloat16 want
    NCCL.)"""
    hook = getattr(default_hooks, name)
    if name.endswith("wrapper"):
        hook = hook(default_hooks.allreduce_hook)
    ddp = parallel(models.perceptron())
    ddp.register_comm_hook(dist.group.WORLD, hook)
    models.train(ddp, mine)
    tolerance = {"rtol": 0.05, "atol": 0.01} if "16" in name else models.CLOSE
    models.check(models.values(ddp), models.alone(dist.get_world_size()), **tolerance)
    same_everywhere(models.values(ddp))


@pytest.mark.parametrize("name", ["allreduce_hook", "fp16_compress_hook", "fp16_compress_wrapper"])
def test_hooks(name: str) -> None:
    with Ranks(2) as ranks:
        ranks.each(hooked, name)


def in_order(hook: Any) -> Any:
    """As docs/torch.md has it."""

    def run(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future = hook(state, bucket)
        future.wait()
        return future

    run.__annotations__ = hook.__annotations__  # as DDP sees it, not as text
    return run


def compresses(worker: Worker, several: bool) -> None:
    """A call: PowerSGD, of a rank so high that nothing is lost: gradients of 12 x 12 have no more
    than 12."""
    size, steps = dist.get_world_size(), 20
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=12, start_powerSGD_iter=3, min_compression_rate=0.01
    )
    ddp = parallel(models.perceptron(), bucket_cap_mb=SMALL if several else 25)
    hook = powerSGD_hook.powerSGD_hook
    ddp.register_comm_hook(state, in_order(hook) if several else hook)
    models.train(ddp, mine, steps=steps)
    same_everywhere(models.values(ddp))
    models.check(models.values(ddp), models.alone(size, steps=steps), rtol=1e-3, atol=1e-4)
    assert state.compression_stats()[1] > 0, "it has compressed"


@pytest.mark.parametrize("several", [False, True], ids=["one bucket", "several buckets"])
def test_power_sgd(several: bool) -> None:
    """Its callbacks call other collectives, and wait for them."""
    with Ranks(2) as ranks:
        ranks.each(compresses, several)


def averages_models(worker: Worker) -> None:
    """A call: post-local SGD, whose gradients are averaged in a group of two, and models by all."""
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
        PostLocalSGDState,
        post_localSGD_hook,
    )
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    halves, _ = dist.new_subgroups(2)
    ddp = parallel(models.perceptron())
    state = PostLocalSGDState(dist.group.WORLD, halves, start_localSGD_iter=2)
    ddp.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(period=2, warmup_steps=2)
    models.train(
        ddp, mine, lambda found: PostLocalSGDOptimizer(torch.optim.SGD(found, lr=0.1), averager)
    )
    dist.barrier()
    rank, size = dist.get_rank(), dist.get_world_size()
    others = [models.perceptron() for _ in range(size // 2)]  # one for each half
    optimizers = [torch.optim.SGD(other.parameters(), lr=0.1) for other in others]
    for step in range(models.STEPS):
        for half, (other, optimizer) in enumerate(zip(others, optimizers, strict=True)):
            optimizer.zero_grad()
            seen = range(2 * half, 2 * half + 2) if step >= 2 else range(size)
            batch = torch.cat([models.part(step, r) for r in seen])
            other(batch).square().mean().backward()
            optimizer.step()
        if step >= 2 and (step - 2) % 2 == 0:
            for same in zip(*(other.parameters() for other in others), strict=True):
                mean = sum(p.data for p in same) / len(same)
                for p in same:
                    p.data.copy_(mean)
    models.check(models.values(ddp), models.values(others[rank // 2]))


def test_post_local_sgd() -> None:
    with Ranks(4) as ranks:
        ranks.each(averages_models)


# ---- what goes around it -------------------------------------------------------------------------


def adam(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.01)


def shards_the_optimizer(worker: Worker, bucket_view: bool) -> None:
    """A call: ZeroRedundancyOptimizer, and its state brought together on rank 0."""
    ddp = parallel(models.perceptron())
    optimizer = models.train(
        ddp,
        mine,
        lambda found: ZeroRedundancyOptimizer(
            found, torch.optim.AdamW, lr=0.01, parameters_as_bucket_view=bucket_view
        ),
    )
    models.check(models.values(ddp), models.alone(dist.get_world_size(), adam))
    same_everywhere(models.values(ddp))
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        other = models.perceptron()
        reference = models.train(other, lambda s: models.whole(s, dist.get_world_size()), adam)
        found, expected = optimizer.state_dict()["state"], reference.state_dict()["state"]
        assert found.keys() == expected.keys()
        for key, state in expected.items():
            torch.testing.assert_close(found[key]["exp_avg"], state["exp_avg"], **models.CLOSE)
    dist.barrier()


@pytest.mark.parametrize("bucket_view", [False, True])
def test_zero_redundancy_optimizer(bucket_view: bool) -> None:
    with Ranks(3) as ranks:
        ranks.each(shards_the_optimizer, bucket_view)


def overlaps_the_optimizer(worker: Worker) -> None:
    """A call: ZeRO whose steps are part of DDP's communication."""
    ddp = parallel(models.perceptron(), static_graph=False)
    optimizer = ZeroRedundancyOptimizer(
        ddp.parameters(), torch.optim.SGD, lr=0.1, overlap_with_ddp=True
    )
    ddp.register_comm_hook(
        None,
        ddp_zero_hook.hook_with_zero_step(default_hooks.allreduce_hook, ddp, optimizer),
    )
    steps = 6
    for step in range(steps):
        ddp(mine(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    same_everywhere(models.values(ddp))


def has_buffers(worker: Worker) -> None:
    """A call: a forward begins with rank 0's buffers on all, whatever the others have seen."""
    norm, alone = nn.BatchNorm1d(12).double(), nn.BatchNorm1d(12).double()
    ddp = parallel(nn.Sequential(norm, models.perceptron()))
    for step in range(3):
        ddp(mine(step)).square().mean().backward()
    for step in range(2):
        alone(models.part(step, 0))
    alone(mine(2))  # what the last forward has added here
    for (name, found), expected in zip(norm.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def synchronises_batches(worker: Worker) -> None:
    """A call: SyncBatchNorm refuses CPU tensors, so its backend's part is in the group."""
    layer = nn.SyncBatchNorm(3)
    with pytest.raises(ValueError, match="expected input tensor to be on"):
        layer(torch.ones(4, 3, 2))


def is_profiled(worker: Worker) -> None:
    """A call: DDP's operations are in the profile, by name and number."""
    ddp = parallel(models.perceptron())
    models.train(ddp, mine, steps=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        models.train(ddp, mine, steps=1)
        dist.broadcast(torch.ones(3), 0)
        dist.all_gather([torch.empty(1) for _ in range(2)], torch.ones(1))
    names = {event.key: event.count for event in profile.key_averages()}
    assert names["collectives:all_reduce"] >= 2, names
    assert names["collectives:broadcast"] >= 1 and names["collectives:all_gather"] == 1


def trains_in_debug_mode(worker: Worker) -> None:
    """A call: as with TORCH_DISTRIBUTED_DEBUG=DETAIL, in a group made under it."""
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    group = dist.new_group()
    ddp = parallel(models.perceptron(), process_group=group, find_unused_parameters=True)
    models.train(ddp, mine)
    models.check(models.values(ddp), models.alone(dist.get_world_size()))


@pytest.mark.parametrize(
    "call",
    [
        overlaps_the_optimizer,
        has_buffers,
        synchronises_batches,
        is_profiled,
        trains_in_debug_mode,
    ],
)
def test_around(call: Any) -> None:
    with Ranks(2) as ranks:
        ranks.each(call)
