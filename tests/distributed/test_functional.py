"""Functional collectives and those with gradients, over our backend. Skipped without torch.

Goal: what torch calls through its dispatcher, from C++, gives the same values as the calls of
torch.distributed, and the gradients of the same function of all ranks' inputs. Method: rank r's
input is made from r, so each rank knows all inputs and computes results and gradients alone.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.distributed._functional_collectives as functional  # noqa: E402
import torch.distributed.nn.functional as differentiable  # noqa: E402
from cluster import Worker  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore::FutureWarning")]


def given(rank: int, rows: int = 6) -> Any:
    return (torch.arange(float(rows * 4)) + 100 * rank).reshape(rows, 4)


def everyone(rows: int = 6) -> list[Any]:
    return [given(rank, rows) for rank in range(dist.get_world_size())]


def equal(found: Any, expected: Any) -> None:
    assert torch.equal(functional.wait_tensor(found), expected)


def values(worker: Worker) -> None:
    """A call: each functional collective."""
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    x, xs = given(rank), everyone()
    equal(functional.all_reduce(x, "sum", group), sum(xs))
    equal(functional.all_reduce(x, "avg", group), sum(xs) / size)
    equal(functional.all_reduce(x, "max", group), xs[-1])
    equal(functional.all_reduce(x.t(), "sum", group), sum(xs).t())
    equal(functional.broadcast(x, size - 1, group), xs[-1])
    for axis in (0, 1):
        equal(functional.all_gather_tensor(x, axis, group), torch.cat(xs, axis))
    equal(functional.all_gather_tensor(x.t(), 0, group), torch.cat([x.t() for x in xs]))
    equal(functional.reduce_scatter_tensor(x, "sum", 0, group), sum(xs).chunk(size)[rank])
    equal(
        functional.reduce_scatter_tensor(x[:, :3], "sum", 1, group),
        sum(xs)[:, :3].chunk(3, 1)[rank],
    )
    equal(
        functional.all_to_all_single(x, None, None, group),
        torch.cat([x.chunk(size)[rank] for x in xs]),
    )
    splits = [0, 2, 4]
    equal(
        functional.all_to_all_single(x, [splits[rank]] * size, splits, group),
        torch.cat([x.split(splits)[rank] for x in xs]),
    )
    shifted = [(i + 1) % size for i in range(size)]
    flat = functional.permute_tensor(x.reshape(-1), shifted, group)  # torch's own is right in 1-d
    equal(flat, xs[(rank - 1) % size].reshape(-1))
    assert torch.equal(x, given(rank)), "inputs are as they were"


def values_of_many(worker: Worker) -> None:
    """A call: those of several tensors at once; results that are used without waiting; results that
    nobody looks at."""
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    xs, small = everyone(), everyone(3)
    sums = functional.all_reduce_coalesced([given(rank), given(rank, 3)], "sum", group)
    equal(sums[0], sum(xs))
    equal(sums[1], sum(small))
    gathered = functional.all_gather_into_tensor_coalesced([given(rank), given(rank, 3)], group)
    equal(gathered[0], torch.cat(xs))
    equal(gathered[1], torch.cat(small))
    parts = functional.reduce_scatter_tensor_coalesced(
        [given(rank), given(rank, 3)], "sum", [0, 0], group
    )
    equal(parts[0], sum(xs).chunk(size)[rank])
    equal(parts[1], sum(small).chunk(size)[rank])
    lazy = functional.all_reduce(given(rank), "sum", group)
    assert isinstance(lazy, functional.AsyncCollectiveTensor)
    assert torch.equal(lazy * 2 + 1, sum(xs) * 2 + 1)
    for _ in range(100):
        functional.all_reduce(given(rank), "sum", group)
    gc.collect()
    many = [functional.all_reduce(given(rank) + i, "sum", group) for i in range(100)]
    for i, one in reversed(list(enumerate(many))):
        assert torch.equal(one + 0, sum(xs) + i * size)


def in_place(worker: Worker) -> None:
    """A call: what a compiler makes of the calls of torch.distributed."""
    rank = dist.get_rank()
    name, xs = dist.group.WORLD.group_name, everyone()
    x = given(rank)
    result = torch.ops._c10d_functional.all_reduce_(x, "sum", name)
    equal(result, sum(xs))
    assert torch.equal(x, sum(xs))
    both = torch.ops._c10d_functional.all_reduce_coalesced_([given(rank), x], "max", name)
    equal(both[0], xs[-1])
    equal(both[1], sum(xs))


def gradient(function: Any, rank: int, seed: Any) -> Any:
    """Of rank's input in the sum over ranks r of seed(r) times rank r's result."""
    inputs = [x.requires_grad_() for x in everyone()]
    total = sum((seed(r) * out).sum() for r, out in enumerate(function(inputs)))
    return torch.autograd.grad(total, inputs[rank])[0]


def gradients(worker: Worker) -> None:
    """A call: backward of each, against autograd on all ranks' inputs at once."""
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    splits = [1, 2, 3]
    cases = [
        (
            lambda x: functional.all_gather_tensor_autograd(x, 0, group),
            lambda xs: [torch.cat(xs)] * size,
        ),
        (
            lambda x: functional.reduce_scatter_tensor_autograd(x, "sum", 0, group),
            lambda xs: sum(xs).chunk(size),
        ),
        (
            lambda x: functional.all_to_all_single_autograd(
                x, [splits[rank]] * size, splits, group
            ),
            lambda xs: [torch.cat([x.split(splits)[r] for x in xs]) for r in range(size)],
        ),
        (lambda x: differentiable.all_reduce(x.clone()), lambda xs: [sum(xs)] * size),
        (lambda x: torch.cat(differentiable.all_gather(x)), lambda xs: [torch.cat(xs)] * size),
        (
            lambda x: differentiable.reduce_scatter(torch.empty(2, 4), list(x.chunk(size))),
            lambda xs: sum(xs).chunk(size),
        ),
        (
            lambda x: differentiable.all_to_all_single(torch.empty(6, 4), x),
            lambda xs: [torch.cat([x.chunk(size)[r] for x in xs]) for r in range(size)],
        ),
    ]
    for number, (ours, alone) in enumerate(cases):
        x = given(rank).requires_grad_()
        result = ours(x)
        expected = alone(everyone())[rank]
        assert torch.equal(result.detach() + 0, expected), number
        (result * (rank + 1.0)).sum().backward()
        wanted = gradient(alone, rank, lambda r: r + 1.0)
        torch.testing.assert_close(x.grad, wanted, msg=f"case {number}")


@pytest.mark.parametrize("call", [values, values_of_many, in_place, gradients])
def test_functional(call: Any) -> None:
    with Ranks(3) as ranks:
        ranks.each(call)


def loses(worker: Worker) -> str:
    """A call: a result whose operation has failed is an error when it is used."""
    x = functional.all_reduce(torch.ones(4), "sum", dist.group.WORLD)
    worker.note("under way")
    with pytest.raises(RuntimeError, match="rank 1 was lost") as caught:
        print(x + 1)
    with pytest.raises(cc.PeerLost):
        dist.barrier()
    return str(caught.value)


def test_a_lost_rank_is_an_error_where_the_result_is_used() -> None:
    with Ranks(2) as ranks:
        call = ranks.peers[0].start(loses)
        ranks.peers[0].wait_note()
        ranks.peers[1].kill()
        assert "all_reduce" in call.result()
