"""Every collective of torch.distributed, against what it should give. Skipped without torch.

Goal: each call gives the right values on every rank, for every dtype and reduction that torch has,
strided, empty and scalar tensors among them. Method: values that differ by rank and are exact in
every dtype; expectations computed locally with torch itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker  # noqa: E402
from ranks import Ranks  # noqa: E402

pytestmark = pytest.mark.timeout(120)


def given(rank: int, dtype: Any) -> Any:
    return (torch.arange(12) % 3 + rank % 2).to(dtype).reshape(3, 4)


def all_reduces(worker: Worker) -> None:
    """A call: in place, whatever the strides."""
    size = dist.get_world_size()
    for name in ("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "uint8"):
        dtype = getattr(torch, name)
        everyone = torch.stack([given(rank, dtype) for rank in range(size)]).double()
        want = {
            dist.ReduceOp.SUM: everyone.sum(0),
            dist.ReduceOp.MIN: everyone.amin(0),
            dist.ReduceOp.MAX: everyone.amax(0),
            dist.ReduceOp.PRODUCT: everyone.prod(0),
        }
        for op, expected in want.items():
            x = given(dist.get_rank(), dtype)
            dist.all_reduce(x, op=op)
            assert torch.equal(x, expected.to(dtype)), (name, op)
        strided = given(dist.get_rank(), dtype).t().contiguous().t()
        dist.all_reduce(strided)
        assert torch.equal(strided, everyone.sum(0).to(dtype)), name


@pytest.mark.parametrize("size", [1, 3])
def test_all_reduce(size: int) -> None:
    with Ranks(size) as ranks:
        ranks.each(all_reduces)


def reduces_sparse(worker: Worker) -> None:
    """A call: rank r has r + 1 rows, the first of them twice, and the last of them is zero."""
    rank, size = dist.get_rank(), dist.get_world_size()

    def given(rank: int) -> Any:
        rows = torch.tensor([[0, *range(rank + 1)]])
        values = torch.ones(rank + 2, 3) * (rank + 1)
        values[-1] = 0
        return torch.sparse_coo_tensor(rows, values, (size + 2, 3), check_invariants=True)

    everyone = [given(rank) for rank in range(size)]
    want = sum(tensor.to_dense() for tensor in everyone)
    for op, expected in ((dist.ReduceOp.SUM, want), (dist.ReduceOp.AVG, want / size)):
        x = given(rank)
        work = dist.all_reduce(x, op=op, async_op=True)
        (result,) = work.get_future().wait()
        assert result is x
        assert x.is_coalesced() and torch.equal(x.indices(), torch.arange(size)[None])
        assert torch.equal(x.to_dense(), expected)
    empty = torch.sparse_coo_tensor(torch.empty(1, 0), torch.empty(0), (4,))
    dist.all_reduce(empty)
    assert empty._nnz() == 0
    with pytest.raises(TypeError, match="summed or averaged"):
        dist.all_reduce(given(rank), op=dist.ReduceOp.MAX)


def trains_a_sparse_embedding(worker: Worker) -> None:
    """A call: the gradient that DDP leaves is the mean of all ranks'."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.EmbeddingBag(10, 4, mode="sum", sparse=True)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(torch.tensor([[rank, 5]])).sum().backward()
    want = torch.zeros(10, 4)
    want[:size] = 1 / size
    want[5] = 1
    assert model.weight.grad.is_sparse and torch.allclose(model.weight.grad.to_dense(), want)


def test_sparse_tensors() -> None:
    with Ranks(3) as ranks:
        ranks.each(reduces_sparse)
        ranks.each(trains_a_sparse_embedding)


def gathers_into_views(worker: Worker) -> None:
    """A call: into what lies one behind the other, but is not one tensor."""
    x = torch.tensor([dist.get_rank() + 1.0])
    memory = np.zeros(2, np.float32)
    short, whole = torch.from_numpy(memory[:1]), torch.from_numpy(memory)
    dist.all_gather([short, whole[1:]], x)
    assert memory.tolist() == [1, 2]
    both = torch.zeros(2)
    dist.all_gather([both[:1], torch._neg_view(both[1:])], x)
    assert both.tolist() == [1, -2]


def test_lists_of_views() -> None:
    with Ranks(2) as ranks:
        ranks.each(gathers_into_views)


def refuses(worker: Worker) -> None:
    """A call: what would only seem to fit is refused, and nothing is sent."""
    x, apart = torch.ones(2), [torch.ones(1), torch.ones(3)]
    four = [torch.ones(1) for _ in range(4)]
    if dist.get_rank() == 0:
        for call in (
            lambda: dist.gather(x, apart, 0),
            lambda: dist.gather(x, four, 0),
            lambda: dist.scatter(x, apart, 0),
            lambda: dist.all_gather(four, x),
            lambda: dist.all_to_all(four, four),
        ):
            with pytest.raises(ValueError, match="list"):
                call()
    conjugate = torch.tensor([1 + 2j, 3j]).conj()
    for call in (
        lambda: dist.reduce(conjugate, 0),
        lambda: dist.broadcast(conjugate, 0),
        lambda: dist.all_reduce(conjugate),
    ):
        with pytest.raises(RuntimeError, match="conj"):
            call()
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((2,), 2.0))


def test_what_does_not_fit_is_refused() -> None:
    with Ranks(2) as ranks:
        ranks.each(refuses)


def lose_a_rank(worker: Worker) -> str:
    """A call: works until it fails."""
    x = torch.ones(1000)
    try:
        while True:
            dist.all_reduce(x, op=dist.ReduceOp.AVG)
            worker.kept["rounds"] = worker.kept.get("rounds", 0) + 1
            if worker.kept["rounds"] == 5:
                worker.note("under way")
    except RuntimeError as error:
        first = str(error)
    with pytest.raises(RuntimeError, match="rank"):
        dist.all_reduce(x)
    return first


@pytest.mark.parametrize("victim", [0, 2])
def test_a_lost_rank_fails_all_the_others(victim: int) -> None:
    with Ranks(3) as ranks:
        calls = ranks.start(lose_a_rank)
        for peer in ranks.peers:
            peer.wait_note()
        ranks.peers[victim].kill()
        for rank, call in enumerate(calls):
            if rank != victim:
                message = call.result()
                assert "all_reduce" in message and f"rank {victim} was lost" in message
