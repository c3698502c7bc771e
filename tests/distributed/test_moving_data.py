"""What moves data without computing, with every dtype. Skipped without torch.

Goal: broadcast, all_gather, gather, scatter, all_to_all, in all their forms, and those of objects,
bring each bit to where it belongs; lists may be uneven where all ranks can know, blocks may be
empty, tensors strided; what cannot be is an error and does the group no harm. Method: inputs are
made from rank and position; three ranks; each computes what it should get.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, outcomes  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)
warnings.filterwarnings("ignore", category=FutureWarning)  # torch has newer names for some calls

SIZE = 3
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu),
]


def made(rank: int, shape: tuple[int, ...], dtype: Any = torch.float32) -> Any:
    """Bytes of which no two ranks have the same; a bool's are 0 and 1."""
    count = int(torch.Size(shape).numel())
    generator = torch.Generator().manual_seed(rank + 17)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def same(found: Any, expected: Any, what: Any = "") -> None:
    """Bit by bit: a NaN is what it was."""
    assert found.dtype is expected.dtype and found.shape == expected.shape, what
    one, other = (x.contiguous().reshape(-1).view(torch.uint8) for x in (found, expected))
    assert torch.equal(one, other), what


def all_of(shape: tuple[int, ...], dtype: Any = torch.float32) -> list[Any]:
    return [made(rank, shape, dtype) for rank in range(SIZE)]


def moves(worker: Worker, shape: tuple[int, ...]) -> None:
    """A call: each operation with each dtype, in tensors of this shape."""
    rank = dist.get_rank()
    for dtype in DTYPES:
        xs = all_of(shape, dtype)
        x = xs[rank].clone()
        dist.broadcast(x, 1)
        same(x, xs[1], dtype)
        outs = [torch.empty(shape, dtype=dtype) for _ in range(SIZE)]
        dist.all_gather(outs, xs[rank])
        for out, expected in zip(outs, xs, strict=True):
            same(out, expected, dtype)
        stacked = torch.empty(SIZE, *shape, dtype=dtype)
        dist.all_gather_into_tensor(stacked, xs[rank])
        same(stacked, torch.stack(xs), dtype)
        if shape:
            joined = torch.empty(SIZE * shape[0], *shape[1:], dtype=dtype)
            dist.all_gather_into_tensor(joined, xs[rank], async_op=True).wait()
            same(joined, torch.cat(xs), dtype)
        outs = [torch.empty(shape, dtype=dtype) for _ in range(SIZE)]
        dist.gather(xs[rank], outs if rank == 2 else None, dst=2)
        if rank == 2:
            for out, expected in zip(outs, xs, strict=True):
                same(out, expected, dtype)
        x = torch.empty(shape, dtype=dtype)
        dist.scatter(x, xs if rank == 1 else None, src=1)
        same(x, xs[rank], dtype)
        outs = [torch.empty(shape, dtype=dtype) for _ in range(SIZE)]
        dist.all_to_all(outs, [made(3 * rank + to, shape, dtype) for to in range(SIZE)])
        for source, out in enumerate(outs):
            same(out, made(3 * source + rank, shape, dtype), dtype)
        sent = torch.stack([made(3 * rank + to, shape, dtype) for to in range(SIZE)])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        want = torch.stack([made(3 * source + rank, shape, dtype) for source in range(SIZE)])
        same(received, want, dtype)


@pytest.mark.parametrize("shape", [(2, 3), (), (0,), (1,), (3, 0, 2)], ids=str)
def test_every_dtype(shape: tuple[int, ...]) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(moves, shape)


# ---- strides -------------------------------------------------------------------------------------


def strided(dtype: Any = torch.float32) -> Any:
    """Nothing yet, 2 x 3, every second element of a transposed one."""
    return torch.zeros(6, 4, dtype=dtype)[::2, ::2].t()


def moves_strided(worker: Worker) -> None:
    """A call: strided inputs and outputs, in lists whose tensors have strides of their own."""
    rank = dist.get_rank()
    for dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.float8_e5m2):
        xs = all_of((2, 3), dtype)
        x = strided(dtype)
        x.copy_(xs[rank])
        dist.broadcast(x, 2)
        same(x, xs[2])
        x.copy_(xs[rank])
        outs = [strided(dtype), torch.empty(2, 3, dtype=dtype), torch.empty(3, 2, dtype=dtype).t()]
        dist.all_gather(outs, x)
        for out, expected in zip(outs, xs, strict=True):
            same(out, expected)
        out = torch.empty(2, 3, SIZE, dtype=dtype).permute(2, 0, 1)
        dist.all_gather_into_tensor(out, x)
        same(out, torch.stack(xs))
        outs = [strided(dtype) for _ in range(SIZE)]
        dist.gather(x, outs if rank == 0 else None, dst=0)
        for found, expected in zip(outs, xs if rank == 0 else [], strict=rank == 0):
            same(found, expected)
        out = strided(dtype)
        given = [strided(dtype).copy_(block) for block in xs]
        dist.scatter(out, given if rank == 2 else None, src=2, async_op=True).wait()
        same(out, xs[rank])
        outs = [strided(dtype) for _ in range(SIZE)]
        dist.all_to_all(outs, [strided(dtype).copy_(xs[rank]) for _ in range(SIZE)])
        for found, expected in zip(outs, xs, strict=True):
            same(found, expected)
        out = torch.empty(4, SIZE, dtype=dtype).t()
        dist.all_to_all_single(out, made(rank, (4, SIZE), dtype).t())
        same(out, torch.stack([made(source, (4, SIZE), dtype)[:, rank] for source in range(SIZE)]))


def moves_without_gradient(worker: Worker) -> None:
    """A call: tensors that require a gradient, inputs and outputs, stay leaves with none."""
    rank = dist.get_rank()
    xs = [made(r, (4,), torch.int32).double() for r in range(SIZE)]
    leaf = xs[rank].clone().requires_grad_()
    outs = [torch.empty(4, dtype=torch.float64) for _ in range(SIZE)]
    dist.all_gather(outs, leaf)
    assert not any(out.requires_grad for out in outs)
    dist.broadcast(leaf, 0)
    assert leaf.is_leaf and leaf.requires_grad and leaf.grad is None
    same(leaf.detach(), xs[0])
    out = torch.empty(4 * SIZE, dtype=torch.float64, requires_grad=True)
    dist.all_gather_into_tensor(out, xs[rank])
    same(out.detach(), torch.cat(xs))


def moves_parts_of_one(worker: Worker) -> None:
    """A call: chunks of one tensor as a list, in place where a rank's own is part of the output."""
    rank = dist.get_rank()
    xs = all_of((5,))
    flat = torch.zeros(SIZE * 5)
    chunks = list(flat.chunk(SIZE))
    chunks[rank].copy_(xs[rank])
    dist.all_gather(chunks, chunks[rank])
    same(flat, torch.cat(xs))
    flat.zero_()
    chunks[rank].copy_(xs[rank])
    dist.all_gather_into_tensor(flat, chunks[rank])
    same(flat, torch.cat(xs))
    backwards = list(reversed(chunks))  # behind each other, but not in order
    dist.all_gather(backwards, xs[rank])
    same(flat, torch.cat(xs[::-1]))


@pytest.mark.parametrize("call", [moves_strided, moves_without_gradient, moves_parts_of_one])
def test_strides(call: Any) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(call)


# ---- uneven --------------------------------------------------------------------------------------


def moves_unevenly(worker: Worker) -> None:
    """A call: blocks of different sizes, some of them empty."""
    rank = dist.get_rank()
    for rows in ([1, 2, 3], [4, 0, 1], [0, 0, 2], [0, 0, 0]):
        xs = [made(r, (n, 2)) for r, n in enumerate(rows)]
        outs = [torch.empty(n, 2) for n in rows]
        dist.all_gather(outs, xs[rank])
        for out, expected in zip(outs, xs, strict=True):
            same(out, expected)
    for counts in ([[1, 2, 3], [0, 0, 4], [2, 0, 0]], [[0, 5, 0], [0, 0, 0], [1, 0, 7]]):
        for dtype in (torch.float32, torch.complex64, torch.float8_e4m3fn, torch.uint16):
            x = made(rank, (sum(counts[rank]), 2), dtype)
            want = [made(r, (sum(counts[r]), 2), dtype).split(counts[r])[rank] for r in range(SIZE)]
            outs = [torch.empty(counts[r][rank], 2, dtype=dtype) for r in range(SIZE)]
            dist.all_to_all(outs, list(x.split(counts[rank])))
            for out, expected in zip(outs, want, strict=True):
                same(out, expected)
            receive = [counts[r][rank] for r in range(SIZE)]
            out = torch.empty(sum(receive), 2, dtype=dtype)
            dist.all_to_all_single(out, x, receive, counts[rank])
            same(out, torch.cat(want))


def moves_objects(worker: Worker) -> None:
    """A call: objects of different sizes."""
    rank = dist.get_rank()
    mine = {"rank": rank, "text": "x" * 1000**rank, "tensor": torch.full((rank,), 1.0)}
    found: list[Any] = [None] * SIZE
    dist.all_gather_object(found, mine)
    assert [one["rank"] for one in found] == [0, 1, 2]
    assert [len(one["text"]) for one in found] == [1, 1000, 1000**2]
    found = [None] * SIZE
    dist.gather_object(mine, found if rank == 1 else None, dst=1)
    assert [one and one["rank"] for one in found] == ([0, 1, 2] if rank == 1 else [None] * 3)
    given = [mine, None, "x"] if rank == 2 else [None] * 3
    dist.broadcast_object_list(given, src=2)
    assert given[0]["rank"] == 2 and given[1:] == [None, "x"]
    out: list[Any] = [None]
    dist.scatter_object_list(out, ["a", {"b": 1}, [2] * 999] if rank == 0 else None, src=0)
    assert out[0] == ["a", {"b": 1}, [2] * 999][rank]
    if rank == 0:
        dist.send_object_list([mine, 5], 2)
    if rank == 2:
        both = [None, None]
        assert dist.recv_object_list(both, 0) == 0
        assert both[0]["rank"] == 0 and both[1] == 5


def moves_together(worker: Worker) -> None:
    """A call: several operations in one, by the coalescing manager and the coalesced calls."""
    rank = dist.get_rank()
    xs, ys = all_of((4,)), all_of((2, 2), torch.float64)
    a, b = torch.empty(SIZE, 4), torch.empty(SIZE, 2, 2, dtype=torch.float64)
    for wait in (False, True):
        a.zero_()
        with dist._coalescing_manager(async_ops=wait) as manager:
            dist.all_gather_into_tensor(a, xs[rank])
            dist.all_gather_into_tensor(b, ys[rank])
        if wait:
            manager.wait()
        same(a, torch.stack(xs))
        same(b, torch.stack(ys))
    sums = [torch.full((3,), float(rank)), torch.full((5,), 1.0)]
    with dist._coalescing_manager():
        for x in sums:
            dist.all_reduce(x)
    same(sums[0], torch.full((3,), 3.0))
    same(sums[1], torch.full((5,), 3.0))
    parts = [torch.empty(1), torch.empty(2)]
    with dist._coalescing_manager(async_ops=True) as manager:
        dist.reduce_scatter_tensor(parts[0], torch.arange(3.0))
        dist.reduce_scatter_tensor(parts[1], torch.arange(6.0))
    manager.wait()
    same(parts[0], torch.tensor([3.0 * rank]))
    same(parts[1], torch.tensor([6.0 * rank, 6.0 * rank + 3]))
    zs = all_of((2, 2))
    outs = [[torch.empty(4), torch.empty(2, 2)] for _ in range(SIZE)]
    dist.all_gather_coalesced(outs, [xs[rank], zs[rank]])
    for r, (x, z) in enumerate(outs):
        same(x, xs[r])
        same(z, zs[r])
    dist.barrier()
    dist.barrier(async_op=True).wait()


@pytest.mark.parametrize("call", [moves_unevenly, moves_objects, moves_together])
def test_lists(call: Any) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(call)


# ---- what cannot be ------------------------------------------------------------------------------


def is_refused(worker: Worker) -> None:
    """A call: wrong arguments, the same on all ranks, and the group afterwards."""
    rank = dist.get_rank()
    x, three = torch.ones(2), [torch.empty(2) for _ in range(SIZE)]
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    meta = torch.ones(2, device="meta")
    errors = (TypeError, ValueError, RuntimeError)
    for words, call in [
        ("root|rank", lambda: dist.broadcast(x, SIZE)),
        ("list of 3 tensors", lambda: dist.all_gather(three[:2], x)),
        ("list of 3 tensors", lambda: dist.all_gather([torch.empty(3), torch.empty(3)], x)),
        ("list of 3 tensors", lambda: dist.all_to_all(three, three[:2])),
        ("elements|counts", lambda: dist.all_gather([torch.empty(3)] * SIZE, x)),
        ("elements", lambda: dist.all_gather_into_tensor(torch.empty(5), x)),
        ("dtype", lambda: dist.all_gather_into_tensor(torch.empty(6).double(), x)),
        ("split", lambda: dist.all_to_all_single(torch.empty(4), torch.ones(4))),
        ("split sizes", lambda: dist.all_to_all_single(torch.empty(2), x, [2, 0, 0], [1, 0, 0])),
        ("tensor", lambda: dist.broadcast([1.0, 2.0], 0)),
        ("layout", lambda: dist.broadcast(torch.eye(2).to_sparse_csr(), 0)),
        ("qint8|quant", lambda: dist.broadcast(quantised, 0)),
        ("meta|device", lambda: dist.broadcast(meta, 0)),
        ("share memory", lambda: dist.broadcast(torch.ones(1).expand(3), 0)),
        ("share memory", lambda: dist.scatter(torch.ones(1).expand(2), three * (rank == 0), src=0)),
    ]:
        with pytest.raises(errors, match=words):
            call()
    dist.broadcast(x, 0)
    same(x, torch.ones(2))


def root_refuses(worker: Worker) -> None:
    """A call: what the root alone has wrong; the others call right and wait until it does too."""
    rank = dist.get_rank()
    uneven = [torch.ones(1 + r) for r in range(SIZE)]
    x = torch.ones(2)
    if rank == 0:
        for words, call in [
            ("each tensor of the list must have", lambda: dist.scatter(x, uneven, src=0)),
            ("each tensor of the list must have", lambda: dist.gather(x, uneven, dst=0)),
            ("list of 3 tensors", lambda: dist.scatter(x, uneven[:1] * 2, src=0)),
            ("list of 3 tensors", lambda: dist.gather(x, [torch.ones(3), torch.ones(3)], dst=0)),
            ("elements", lambda: dist.scatter(x, [torch.ones(3)] * SIZE, src=0)),
            ("elements", lambda: dist.gather(x, [torch.ones(3) for _ in range(SIZE)], dst=0)),
        ]:
            with pytest.raises(ValueError, match=words):
                call()
    out = torch.empty(2)
    dist.scatter(out, [x * r for r in range(SIZE)] if rank == 0 else None, src=0)
    same(out, x * rank)


@pytest.mark.parametrize("call", [is_refused, root_refuses])
def test_what_cannot_be_moved(call: Any) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(call)


def gathers_wrongly(worker: Worker) -> None:
    """A call: ranks whose tensors differ in size, where they must not."""
    dist.gather(
        torch.ones(2 + dist.get_rank()),
        [torch.empty(2) for _ in range(SIZE)] if dist.get_rank() == 0 else None,
    )


def broadcasts_wrongly(worker: Worker) -> None:
    dist.broadcast(torch.ones(2, dtype=[torch.int32, torch.float32][dist.get_rank() % 2]), 0)


@pytest.mark.parametrize("call", [gathers_wrongly, broadcasts_wrongly])
def test_what_differs_is_told_on_all(call: Any) -> None:
    with Ranks(SIZE) as ranks:
        for error in outcomes(ranks.start(call)):
            assert isinstance(error, cc.Mismatch), error
