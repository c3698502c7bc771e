"""Sharded models, tensors and checkpoints over our backend. Skipped without torch.

Goal: FSDP in both versions, hybrid sharding, DTensor and distributed checkpoints give what one
process has without them. Method: the same model is trained alone, or the same tensor is made whole;
sizes do not divide by the number of ranks where that is allowed.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import models  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from cluster import Worker  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import (  # noqa: E402
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import Linear  # noqa: E402

pytestmark = pytest.mark.timeout(90)


def mine(step: int) -> Any:
    return models.part(step, dist.get_rank())


def adam(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.01)


# ---- FSDP ----------------------------------------------------------------------------------------


def trains_fsdp1(worker: Worker, strategy: str) -> None:
    """A call: FSDP, with all its parameters looked at in the end."""
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, size // 2)) if "HYBRID" in strategy else None
    model = FullyShardedDataParallel(
        models.perceptron(),
        auto_wrap_policy=ModuleWrapPolicy({Linear}),
        sharding_strategy=ShardingStrategy[strategy],
        device_mesh=mesh,
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    models.train(model, mine, adam)
    with FullyShardedDataParallel.summon_full_params(model):
        models.check(models.values(model), models.alone(size, adam))


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"])
def test_fsdp1(strategy: str) -> None:
    with Ranks(4) as ranks:
        ranks.each(trains_fsdp1, strategy)


def saves_fsdp1(worker: Worker) -> None:
    """A call: whole and sharded state of model and optimizer, out of one model and into another."""
    size, rank = dist.get_world_size(), dist.get_rank()

    def wrapped() -> Any:
        policy = ModuleWrapPolicy({Linear})
        return FullyShardedDataParallel(
            models.perceptron(), auto_wrap_policy=policy, device_id=torch.device("cpu")
        )

    model = wrapped()
    optimizer = models.train(model, mine, adam)
    expected = models.alone(size, adam)
    for kind in (StateDictType.FULL_STATE_DICT, StateDictType.SHARDED_STATE_DICT):
        with FullyShardedDataParallel.state_dict_type(model, kind):
            state = model.state_dict()
            moments = FullyShardedDataParallel.optim_state_dict(model, optimizer)
        other = wrapped()
        their_optimizer = models.train(other, mine, adam, steps=1)
        with FullyShardedDataParallel.state_dict_type(other, kind):
            other.load_state_dict(state)
            moments = FullyShardedDataParallel.optim_state_dict_to_load(
                other, their_optimizer, moments
            )
            their_optimizer.load_state_dict(moments)
        with FullyShardedDataParallel.summon_full_params(other):
            models.check(models.values(other), expected)
        for one in (model, other):
            optimizer_of_one = optimizer if one is model else their_optimizer
            optimizer_of_one.zero_grad()
            one(models.part(9, rank)).square().mean().backward()
            optimizer_of_one.step()
        with (
            FullyShardedDataParallel.summon_full_params(other),
            FullyShardedDataParallel.summon_full_params(model),
        ):
            expected = models.values(model)
            models.check(models.values(other), expected)


def test_state_of_fsdp1() -> None:
    with Ranks(3) as ranks:
        ranks.each(saves_fsdp1)


def sharded(mesh: Any = None, **options: Any) -> Any:
    model = models.perceptron()
    for layer in model:
        if isinstance(layer, Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def full(model: Any) -> list[Any]:
    return [parameter.detach().full_tensor() for parameter in model.parameters()]


def trains_fsdp2(worker: Worker, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """A call: fully_shard. 12 rows do not divide by 5, and a bias has fewer for each rank."""
    size = dist.get_world_size()
    names = ("replicas", "shards")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = sharded(mesh, **options)
    optimizer = models.train(model, mine, adam)
    models.check(full(model), models.alone(size, adam))
    optimizer.zero_grad()
    model(mine(0)).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    other = models.perceptron()
    with torch.no_grad():
        for mine_, theirs in zip(other.parameters(), full(model), strict=True):
            mine_.copy_(theirs)
    other(models.whole(0, size)).square().mean().backward()
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    torch.testing.assert_close(norm.full_tensor(), expected, **models.CLOSE)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((3,), {}), ((5,), {"reshard_after_forward": False}), ((2, 2), {}), ((1, 2), {})],
    ids=["3", "5 kept", "hybrid", "hybrid of one"],
)
def test_fsdp2(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with Ranks(shape[0] * (shape[1] if len(shape) > 1 else 1)) as ranks:
        ranks.each(trains_fsdp2, shape, options)


def trains_in_bfloat16(worker: Worker) -> None:
    """A call: what is gathered is bfloat16, what is reduced is float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(mp_policy=policy)
    models.train(model, mine)
    models.check(full(model), models.alone(dist.get_world_size()), rtol=0.1, atol=0.02)


def test_fsdp2_with_mixed_precision() -> None:
    with Ranks(2) as ranks:
        ranks.each(trains_in_bfloat16)


# ---- DTensor -------------------------------------------------------------------------------------


def redistributes(worker: Worker) -> None:
    """A call: from each placement to each other one, in rows that do not divide."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for shape in ((7, 5), (2, 9), (1, 1)):
        whole = torch.arange(float(shape[0] * shape[1])).reshape(shape)
        placements = [Shard(0), Shard(1), Replicate()]
        for before, after in itertools.product(placements, placements):
            tensor = distribute_tensor(whole, mesh, [before])
            moved = tensor.redistribute(mesh, [after])
            assert torch.equal(moved.full_tensor(), whole), (shape, before, after)
        part = DTensor.from_local(whole * (dist.get_rank() + 1), mesh, [Partial()])
        total = sum(range(1, dist.get_world_size() + 1))
        for after in placements:
            found = part.redistribute(mesh, [after]).full_tensor()
            assert torch.equal(found, whole * total), (shape, after)
        mean = DTensor.from_local(whole * (dist.get_rank() + 1), mesh, [Partial("avg")])
        torch.testing.assert_close(mean.full_tensor(), whole * total / dist.get_world_size())


def redistributes_in_two_dimensions(worker: Worker) -> None:
    """A call: a mesh of 2 x 2, whose groups are subgroups of ours; and autograd through it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    whole = torch.arange(24.0, dtype=torch.float64).reshape(6, 4)
    placements = [Shard(0), Shard(1), Replicate()]
    for before in itertools.product(placements, placements):
        tensor = distribute_tensor(whole, mesh, before)
        for after in itertools.product(placements, placements):
            found = tensor.redistribute(mesh, after).full_tensor()
            assert torch.equal(found, whole), (before, after)
    x = distribute_tensor(whole.clone().requires_grad_(), mesh, [Shard(0), Shard(1)])
    (x * x).redistribute(mesh, [Replicate(), Shard(0)]).sum().full_tensor().backward()
    assert x.grad is not None and torch.equal(x.grad.full_tensor(), 2 * whole)


@pytest.mark.parametrize(
    ("size", "call"), [(3, redistributes), (4, redistributes_in_two_dimensions)]
)
def test_dtensor(size: int, call: Any) -> None:
    with Ranks(size) as ranks:
        ranks.each(call)


def trains_in_parallel(worker: Worker) -> None:
    """A call: tensor parallel in one dimension of the mesh, fully_shard in the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = models.perceptron()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])
    row = mesh["data"].get_local_rank()
    models.train(model, lambda step: models.part(step, row))
    models.check(full(model), models.alone(2))


def test_tensor_parallel_with_fsdp2() -> None:
    with Ranks(4) as ranks:
        ranks.each(trains_in_parallel)


# ---- checkpoints ---------------------------------------------------------------------------------


@contextmanager
def common_folder() -> Iterator[str]:
    """A folder of rank 0's that all have; removed when all have left it."""
    names: list[Any] = [None]
    with tempfile.TemporaryDirectory() as mine_:
        if dist.get_rank() == 0:
            names = [mine_]
        dist.broadcast_object_list(names, 0)
        yield names[0]
        dist.barrier()


def saves_and_loads(worker: Worker, how: str) -> None:
    """A call: a sharded model and its optimizer are saved while training goes on, and loaded into a
    model of another seed."""
    model = sharded()
    optimizer = models.train(model, mine, adam)
    saved = full(model)
    state_of_model, state_of_optimizer = get_state_dict(model, optimizer)
    state = {"model": state_of_model, "optimizer": state_of_optimizer, "step": 17}
    with common_folder() as folder:
        if how == "save":
            dcp.save(state, checkpoint_id=folder)
        else:  # a thread calls collectives beside those of training: it has a group of its own
            beside = dist.new_group(backend="gloo" if how == "async with gloo" else None)
            future = dcp.async_save(state, checkpoint_id=folder, process_group=beside)
        models.train(model, mine, steps=1)  # what is saved is copied
        if how != "save":
            future.result(timeout=30)
        other = sharded()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        their_optimizer = models.train(other, mine, adam, steps=1)
        model_state, optimizer_state = get_state_dict(other, their_optimizer)
        loaded = {"model": model_state, "optimizer": optimizer_state, "step": 0}
        dcp.load(loaded, checkpoint_id=folder)
        set_state_dict(
            other,
            their_optimizer,
            model_state_dict=loaded["model"],
            optim_state_dict=loaded["optimizer"],
        )
        assert loaded["step"] == 17
        for found, expected in zip(full(other), saved, strict=True):
            assert torch.equal(found, expected)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(other, options=options)
    if dist.get_rank() == 0:
        for found, expected in zip(whole.values(), saved, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["save", "async", "async with gloo"])
def test_checkpoints(how: str) -> None:
    with Ranks(3) as ranks:
        ranks.each(saves_and_loads, how)


def saves(worker: Worker, folder: str) -> list[Any]:
    """A call: saves a sharded model; returns it whole."""
    model = sharded()
    models.train(model, mine)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)
    return full(model)


def loads(worker: Worker, folder: str) -> list[Any]:
    """A call: loads it in another number of ranks."""
    model = sharded()
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder)
    return full(model)


def test_a_checkpoint_is_loaded_by_fewer_ranks() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Ranks(3) as ranks:
            saved = ranks.each(saves, folder)[0]
        with Ranks(2) as ranks:
            for loaded in ranks.each(loads, folder):
                assert all(torch.equal(a, b) for a, b in zip(loaded, saved, strict=True))
