"""Every reduction of torch.distributed with every dtype. Skipped without torch.

Goal: all_reduce, reduce and reduce_scatter in all their forms give the exact result for each dtype
and ReduceOp, and a clear error on all ranks where there is none; a refused call does the group no
harm. Method: small whole numbers, whose results are exact in each dtype, combined by each rank
alone; four ranks, by whose number floating point divides exactly.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch.distributed import ReduceOp  # noqa: E402

pytestmark = pytest.mark.timeout(60)
warnings.filterwarnings("ignore", category=FutureWarning)  # torch has newer names for some calls

SIZE = 4
BLOCK = (2, 3)  # of each rank, where there are blocks
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]
COMPLEX = [torch.complex64, torch.complex128]
EXTREMES = {
    ReduceOp.MIN: torch.minimum,
    ReduceOp.MAX: torch.maximum,
    ReduceOp.PRODUCT: operator.mul,
}
BITWISE = {
    ReduceOp.BAND: operator.and_,
    ReduceOp.BOR: operator.or_,
    ReduceOp.BXOR: operator.xor,
}


def wide(rank: int, dtype: Any) -> Any:
    """Rank's input, in a dtype in which this process can compute: a block for each rank."""
    x = (torch.arange(SIZE * 6) * (rank + 2) + rank) % 4
    if dtype is torch.bool:
        x = x > 1
    if dtype.is_complex:
        x = torch.complex(x.double(), x.flip(0).double() - 1)
    return x.reshape(SIZE * BLOCK[0], BLOCK[1])


def cases(dtype: Any) -> list[tuple[Any, Any]]:
    """(op, result) of all that can be done with this dtype."""
    xs = [wide(rank, dtype) for rank in range(SIZE)]
    if dtype is torch.bool:
        both = functools.reduce(operator.and_, xs)
        any_of_them = functools.reduce(operator.or_, xs)
        return [
            *((op, any_of_them) for op in (ReduceOp.SUM, ReduceOp.MAX, ReduceOp.BOR)),
            *((op, both) for op in (ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.BAND)),
            (ReduceOp.BXOR, functools.reduce(operator.xor, xs)),
        ]
    total = sum(xs)
    found = [(ReduceOp.SUM, total)]
    if not dtype.is_complex:
        found += [(op, functools.reduce(one, xs)) for op, one in EXTREMES.items()]
    if dtype in INTEGERS:
        found += [(op, functools.reduce(one, xs)) for op, one in BITWISE.items()]
    if dtype in FLOATS or dtype.is_complex:
        found += [(ReduceOp.AVG, total / SIZE), (dist._make_nccl_premul_sum(0.5), total / 2)]
        found.append((dist._make_nccl_premul_sum(torch.tensor([2.0])), total * 2))
    return found


def all_reduced(x: Any, op: Any) -> Any:
    dist.all_reduce(x, op=op)
    return x


def all_reduced_later(x: Any, op: Any) -> Any:
    dist.all_reduce(x, op=op, async_op=True).wait()
    return x


def all_reduced_together(x: Any, op: Any) -> Any:
    dist.all_reduce_coalesced([x[:1], x[1:1], x[1:]], op=op)
    return x


def all_reduced_strided(x: Any, op: Any) -> Any:
    strided = torch.zeros(2 * len(x), *x.shape[1:], dtype=x.dtype)[::2]
    strided.copy_(x)
    dist.all_reduce(strided, op=op)
    return strided


def reduced(x: Any, op: Any) -> Any:
    """At the last rank; the others have something, which is looked at nowhere."""
    result = x.clone()
    dist.reduce(result, SIZE - 1, op=op)
    return result if dist.get_rank() == SIZE - 1 else None


def scattered(x: Any, op: Any) -> Any:
    out = torch.empty(BLOCK, dtype=x.dtype)
    dist.reduce_scatter(out, list(x.chunk(SIZE)), op=op)
    return out


def scattered_from_apart(x: Any, op: Any) -> Any:
    out = torch.empty(BLOCK[::-1], dtype=x.dtype).t()
    dist.reduce_scatter(out, [block.clone() for block in x.chunk(SIZE)], op=op)
    return out


def scattered_from_one(x: Any, op: Any) -> Any:
    out = torch.empty(BLOCK, dtype=x.dtype)
    dist.reduce_scatter_tensor(out, x, op=op)
    return out


def scattered_from_a_stack(x: Any, op: Any) -> Any:
    out = torch.empty(BLOCK, dtype=x.dtype)
    dist.reduce_scatter_tensor(out, x.reshape(SIZE, *BLOCK), op=op, async_op=True).wait()
    return out


def scattered_unevenly(x: Any, op: Any) -> Any:
    """Rank r gets 2 r rows, rank 0 none; the last one the rest."""
    rows = [0, 2, 4, 2]
    out = torch.empty(rows[dist.get_rank()], BLOCK[1], dtype=x.dtype)
    dist.reduce_scatter(out, list(x.split(rows)), op=op)
    return out


WHOLE = [all_reduced, all_reduced_later, all_reduced_together, all_reduced_strided, reduced]
IN_BLOCKS = [scattered, scattered_from_apart, scattered_from_one, scattered_from_a_stack]


def reduces(worker: Worker, dtypes: list[Any]) -> None:
    """A call: each form of each reduction, against the result."""
    rank = dist.get_rank()
    for dtype in dtypes:
        given = wide(rank, dtype).to(dtype)
        for op, result in cases(dtype):
            want = result.to(dtype)

            def check(
                form: Callable[..., Any],
                expected: Any,
                dtype: Any = dtype,
                op: Any = op,
                given: Any = given,
            ) -> None:
                found = form(given.clone(), op)
                what = (form.__name__, dtype, op)
                if found is not None:
                    assert found.dtype is dtype and torch.equal(found, expected), what

            for form in WHOLE:
                check(form, want)
            for form in IN_BLOCKS:
                check(form, want.chunk(SIZE)[rank])
            check(scattered_unevenly, want.split([0, 2, 4, 2])[rank])


@pytest.mark.parametrize(
    "dtypes",
    [FLOATS, INTEGERS[:4], INTEGERS[4:], [torch.bool], COMPLEX],
    ids=["floating", "signed", "unsigned", "bool", "complex"],
)
def test_reductions(dtypes: list[Any]) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(reduces, dtypes)


# ---- odd shapes ----------------------------------------------------------------------------------


def reduces_odd_shapes(worker: Worker) -> None:
    """A call: nothing, scalars, tensors with gradients, conjugates, and some thousands."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for form in (*WHOLE, *IN_BLOCKS[2:]):
        if form not in IN_BLOCKS:
            found = form(torch.ones(4, 0), ReduceOp.SUM)
            assert found is None or found.shape == (4, 0), form.__name__
    for shape in ((0,), (0, 3), (3, 0)):
        out = torch.empty(shape)
        dist.reduce_scatter(out, [torch.empty(shape) for _ in range(size)])
        dist.reduce_scatter_tensor(out, torch.empty(size, *shape))
        dist.all_reduce(torch.empty(shape), async_op=True).wait()
    scalar = torch.tensor(rank + 1.0)
    dist.all_reduce(scalar)
    assert scalar.shape == () and scalar.item() == size * (size + 1) / 2
    out = torch.tensor(0.0)
    dist.reduce_scatter(out, [torch.tensor(float(r)) for r in range(size)])
    assert out.item() == rank * size
    leaf = torch.full((3,), rank + 1.0, requires_grad=True)
    dist.all_reduce(leaf)
    assert leaf.requires_grad and leaf.is_leaf
    assert torch.equal(leaf.detach(), torch.full((3,), size * (size + 1) / 2))
    conjugate = torch.full((3,), 1 + 2j).conj()
    with pytest.raises(RuntimeError, match="conj"):  # the result would be somewhere else
        dist.reduce(conjugate, 0)
    negative = torch.full((3,), 1 + 2j).conj().imag  # torch keeps its sign apart
    assert negative.is_neg()
    with pytest.raises(ValueError, match="dense"):
        dist.all_reduce(negative)
    for count in (1000, 100_003):
        x = torch.arange(float(count)) + rank
        dist.all_reduce(x)
        assert torch.equal(x, torch.arange(float(count)) * size + sum(range(size)))


def overlaps(worker: Worker) -> None:
    """A call: an output whose elements share memory is refused, as what would be wrong."""
    shared = torch.ones(1).expand(4)
    for call in (
        lambda: dist.all_reduce(shared),
        lambda: dist.broadcast(shared, 0),
        lambda: dist.all_gather_into_tensor(shared.expand(4, 4), torch.ones(4)),
        lambda: dist.reduce_scatter_tensor(shared, torch.ones(16)),
    ):
        with pytest.raises(ValueError, match="share memory"):
            call()
    out = torch.empty(4, 4)
    dist.all_gather_into_tensor(out, shared)  # an input may
    assert torch.equal(out, torch.ones(4, 4))


@pytest.mark.parametrize("call", [reduces_odd_shapes, overlaps])
def test_odd_shapes(call: Any) -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(call)


# ---- what cannot be ------------------------------------------------------------------------------


def is_refused(worker: Worker) -> None:
    """A call: what has no result is an error on all ranks, before anything is sent."""
    size = dist.get_world_size()
    for op in (ReduceOp.MIN, ReduceOp.MAX, ReduceOp.PRODUCT, ReduceOp.BXOR):
        x = torch.ones(size, dtype=torch.complex64)
        for form in (all_reduced, all_reduced_together, reduced):
            with pytest.raises((TypeError, ValueError), match="complex"):
                form(x, op)
        for call in (
            lambda op=op, x=x: dist.reduce_scatter_tensor(x[:1].clone(), x, op=op),
            lambda op=op, x=x: dist.reduce_scatter(x[:1].clone(), list(x.chunk(size)), op=op),
        ):
            with pytest.raises(TypeError, match="complex"):
                call()
    for op, x in (
        *((op, torch.ones(2)) for op in (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)),
        (ReduceOp.AVG, torch.ones(2, dtype=torch.int32)),
        (ReduceOp.AVG, torch.ones(2, dtype=torch.bool)),
        (dist._make_nccl_premul_sum(2.0), torch.ones(2, dtype=torch.int64)),
    ):
        for form in (all_reduced, all_reduced_later, reduced):
            with pytest.raises((TypeError, ValueError, NotImplementedError), match=r"\w+ .*\w+"):
                form(x, op)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        with pytest.raises(TypeError, match="float8"):
            dist.all_reduce(torch.ones(2).to(dtype))
    with pytest.raises(ValueError, match="split evenly"):
        dist.reduce_scatter_tensor(torch.ones(1), torch.ones(size + 1))
    with pytest.raises(ValueError, match="elements"):
        dist.reduce_scatter_tensor(torch.ones(2), torch.ones(size))
    with pytest.raises((TypeError, ValueError), match="dtype"):
        dist.reduce_scatter_tensor(torch.ones(1), torch.ones(size, dtype=torch.float64))
    with pytest.raises((TypeError, ValueError), match="dtype"):
        dist.reduce_scatter(torch.ones(1), [torch.ones(1), *[torch.ones(1).double()] * (size - 1)])
    with pytest.raises(ValueError, match="ranks"):
        dist.reduce_scatter(torch.ones(1), [torch.ones(1)] * (size - 1))
    x = torch.ones(3)
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((3,), float(size)))


def test_what_cannot_be_reduced() -> None:
    with Ranks(SIZE) as ranks:
        ranks.each(is_refused)
