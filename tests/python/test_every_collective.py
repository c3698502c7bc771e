"""Property tests of every collective between real processes over TCP with tiny segments and short
reads and writes: any dtype, reduction, shape, stride and split, in place and out of place, several
under way at once. Each peer computes from everybody's input what it must get; the values are small
and whole, so that nothing is rounded and the order of operands does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cluster import NARROW, SMALL, Cluster, Worker, results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import collectives as cc
from collectives.buffers import DTYPES

pytestmark = pytest.mark.timeout(120)

SIZE = 3
REDUCING = ("all_reduce", "reduce", "reduce_scatter")
ROOTED = ("broadcast", "reduce", "gather", "scatter")
SPLIT = ("all_gather", "gather", "scatter", "reduce_scatter", "all_to_all")
ALGORITHMS = {
    "all_reduce": ("auto", "ring", "recursive_doubling", "direct", "halving_doubling"),
    "broadcast": ("auto", "ring", "direct", "tree"),
    "all_gather": ("auto", "ring", "direct"),
    "reduce": ("auto", "ring", "direct", "tree"),
    "gather": ("auto", "direct"),
    "scatter": ("auto", "direct"),
    "reduce_scatter": ("auto", "ring", "direct"),
    "all_to_all": ("auto", "direct"),
}
FLOATS = ("float16", "float32", "float64", "bfloat16")
OPS = ("sum", "min", "max", "prod")


@dataclass(frozen=True)
class Call:
    """One collective, as all members call it. `shape` is that of one entry of a block, `splits` how
    many entries each pair of ranks exchanges; a kind without splits takes the shape alone."""

    kind: str
    dtype: str
    op: str
    algorithm: str
    root: int
    shape: tuple[int, ...]
    splits: tuple[tuple[int, ...], ...] | None
    layout: str  # of inputs and outputs: "plain", "strided", "reversed", "transposed"
    in_place: bool
    waits: bool
    seed: int


@st.composite
def calls(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from(sorted(ALGORITHMS)))
    dtype = draw(st.sampled_from(DTYPES))
    ops = OPS + (("avg", "premul") if dtype in FLOATS else ("band", "bor", "bxor"))
    lengths = st.integers(0, 5) | st.sampled_from([17, 300])
    uneven = st.tuples(*[st.tuples(*[st.integers(0, 40)] * SIZE)] * SIZE)
    return Call(
        kind=kind,
        dtype=dtype,
        op=draw(st.sampled_from(ops)) if kind in REDUCING else "sum",
        algorithm=draw(st.sampled_from(ALGORITHMS[kind])),
        root=draw(st.integers(0, SIZE - 1)),
        shape=tuple(draw(st.lists(lengths, max_size=3).filter(lambda s: np.prod(s) < 5000))),
        splits=draw(st.none() | uneven) if kind in SPLIT else None,
        layout=draw(st.sampled_from(["plain", "strided", "reversed", "transposed"])),
        in_place=draw(st.booleans()),
        waits=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


# ---- in the peer ---------------------------------------------------------------------------------


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same values in other memory."""
    if layout == "plain" or values.ndim == 0:
        return values.copy()
    if layout == "strided":
        room = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        view = room[..., ::2]
    elif layout == "reversed":
        view = np.zeros(values.shape, values.dtype)[::-1]
    else:
        view = np.zeros(values.shape[::-1], values.dtype).T
    view[...] = values
    return view


def blocks_of(call: Call, rank: int) -> list[int] | None:
    """The `counts` that this rank passes, as entries for each rank."""
    if call.splits is None:
        return None
    return list(call.splits[rank if call.kind == "all_to_all" else 0])


def input_shape(call: Call, rank: int) -> tuple[int, ...]:
    counts = blocks_of(call, rank)
    if call.kind not in SPLIT or (counts is None and call.kind in ("all_gather", "gather")):
        return call.shape
    if counts is None:
        return (SIZE, *call.shape)
    whole = call.kind in ("scatter", "reduce_scatter", "all_to_all")
    return (sum(counts) if whole else counts[rank], *call.shape)


def input_of(call: Call, rank: int) -> np.ndarray:
    rng = np.random.default_rng([call.seed, rank])
    low, high = (0, 2) if call.dtype == "bool" else (1, 3) if call.op == "prod" else (0, 8)
    return rng.integers(low, high, input_shape(call, rank)).astype(numpy_dtype(call.dtype))


def block(call: Call, data: np.ndarray, giver: int, rank: int) -> np.ndarray:
    """The block for `rank` in the array of `giver`."""
    counts = blocks_of(call, giver)
    if counts is None:
        return data[rank]
    return data[sum(counts[:rank]) : sum(counts[: rank + 1])]


def reduced(call: Call, inputs: list[np.ndarray]) -> np.ndarray:
    rows = np.stack(inputs)
    if call.op == "premul":
        rows = rows * np.arange(1, SIZE + 1).reshape(-1, *[1] * (rows.ndim - 1))
    if call.dtype == "bool":
        any_of = call.op in ("sum", "max", "bor")
        if call.op == "bxor":
            return np.asarray(np.logical_xor.reduce(rows))
        return np.asarray(rows.any(0) if any_of else rows.all(0))
    if call.dtype in FLOATS:
        rows = rows.astype(np.float64)
    function = {
        "min": np.minimum,
        "max": np.maximum,
        "prod": np.multiply,
        "band": np.bitwise_and,
        "bor": np.bitwise_or,
        "bxor": np.bitwise_xor,
    }.get(call.op, np.add)
    total = function.reduce(rows, axis=0, dtype=rows.dtype)
    return np.asarray(total / SIZE if call.op == "avg" else total)


def expected(call: Call, rank: int) -> np.ndarray | None:
    inputs = [input_of(call, r) for r in range(SIZE)]
    if call.kind in ("reduce", "gather") and rank != call.root:
        return None
    if call.kind == "broadcast":
        return inputs[call.root]
    if call.kind in ("all_reduce", "reduce"):
        return reduced(call, inputs)
    if call.kind in ("all_gather", "gather"):
        return np.stack(inputs) if call.splits is None else np.concatenate(inputs)
    if call.kind == "scatter":
        return block(call, inputs[call.root], call.root, rank)
    if call.kind == "reduce_scatter":
        return block(call, reduced(call, inputs), 0, rank)
    pieces = [block(call, data, giver, rank) for giver, data in enumerate(inputs)]
    return np.stack(pieces) if call.splits is None else np.concatenate(pieces)


def begin(comm: cc.Communicator, call: Call) -> tuple[Call, np.ndarray, cc.Work | None, Any]:
    """Posts a call. Returns it with its input, its work and its output."""
    x = laid_out(input_of(call, comm.rank), call.layout)
    options: dict[str, Any] = {"algorithm": call.algorithm, "async_op": True}
    if call.kind in ROOTED:
        options["root"] = call.root
    if call.kind in REDUCING:
        factor = cc.premul(comm.rank + 1)
        options["op"] = factor if call.op == "premul" else call.op
    if call.splits is not None:
        options["counts"] = blocks_of(call, comm.rank)
        if call.kind == "all_to_all":
            options["receive_counts"] = [row[comm.rank] for row in call.splits]
    out = None
    want = expected(call, comm.rank)
    if call.in_place and call.kind in ("all_reduce", "reduce", "broadcast"):
        out = x
    elif call.seed % 2 and want is not None:
        out = laid_out(np.ones(want.shape, x.dtype), call.layout)
    work = getattr(comm, call.kind)(x, out=out, **options)
    return call, x, work, out


def check(comm: cc.Communicator, begun: tuple[Call, np.ndarray, cc.Work, Any]) -> None:
    call, x, work, out = begun
    result, want = work.wait(), expected(call, comm.rank)
    assert work.info.contributors == SIZE
    if want is None:
        assert result is None, call
    else:
        assert result.dtype == x.dtype and result.shape == want.shape, call
        if call.op == "avg":
            near = {"float16": 1e-3, "bfloat16": 1e-2}.get(call.dtype, 1e-6)
            assert np.allclose(result.astype(float), want, rtol=near), call
        else:
            assert (result.astype(want.dtype) == want).all(), call
        assert out is None or result is out, call
    if out is not x or want is None:
        assert (x == input_of(call, comm.rank)).all(), f"the input was changed: {call}"


def perform(worker: Worker, program: list[Call]) -> None:
    """A call: all of these, some of them under way at once."""
    waiting = []
    for call in program:
        waiting.append(begin(worker.comm, call))
        if call.waits:
            for begun in waiting:
                check(worker.comm, begun)
            waiting.clear()
    for begun in waiting:
        check(worker.comm, begun)


# ---- the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group() -> Iterator[Cluster]:
    with Cluster(SIZE, **{**SMALL, **NARROW, "segment_bytes": 64}) as cluster:
        yield cluster


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=st.lists(calls(), min_size=1, max_size=6))
def test_any_sequence_of_calls(group: Cluster, program: list[Call]) -> None:
    results([peer.start(perform, program) for peer in group.peers])


def coalesced(worker: Worker, dtype: str) -> None:
    """A call: all_reduce_many in and out of place, of arrays of many shapes, and nothing at all."""
    comm = worker.comm
    shapes: list[tuple[int, ...]] = [(), (0,), (3,), (2, 5), (1000,), (7, 11, 3)]
    arrays = [
        np.full(shape, i + comm.rank).astype(numpy_dtype(dtype)) for i, shape in enumerate(shapes)
    ]
    arrays[3] = np.asfortranarray(arrays[3])
    kept = [array.copy() for array in arrays]
    totals = comm.all_reduce_many(arrays)
    for i, (total, array, before) in enumerate(zip(totals, arrays, kept, strict=True)):
        assert total.shape == array.shape and total.dtype == array.dtype
        assert (total.astype(float) == SIZE * i + sum(range(SIZE))).all()
        assert (array == before).all()
    work = comm.all_reduce_many(arrays, out=arrays, op="max", async_op=True)
    assert all(a is b for a, b in zip(work.wait(), arrays, strict=True))
    assert all((array.astype(float) == i + SIZE - 1).all() for i, array in enumerate(arrays))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_many_at_once(group: Cluster, dtype: str) -> None:
    results([peer.start(coalesced, dtype) for peer in group.peers])


def blocks_in_place(worker: Worker) -> None:
    """A call: the smaller buffer is this rank's block of the larger one."""
    comm, counts = worker.comm, [3, 0, 5]
    out = np.zeros((SIZE, 4))
    out[comm.rank] = comm.rank
    assert comm.all_gather(out[comm.rank], out=out) is out
    assert (out == np.arange(SIZE)[:, None]).all()
    flat = np.zeros(8)
    mine = flat[sum(counts[: comm.rank]) :][: counts[comm.rank]]
    mine[:] = comm.rank
    comm.all_gather(mine, counts=counts, out=flat)
    assert flat.tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    x = np.ones((SIZE, 6))
    assert (comm.reduce_scatter(x, out=x[comm.rank]) == SIZE).all()
    assert (x[(comm.rank + 1) % SIZE] == 1).all()


def test_blocks_in_place(group: Cluster) -> None:
    results([peer.start(blocks_in_place) for peer in group.peers])


def objects(worker: Worker) -> None:
    """A call: the object forms, objects of very different lengths, one without a pickle."""
    comm = worker.comm
    mine = {"rank": comm.rank, "text": "x" * (10_000 * comm.rank), "nothing": None}
    told = comm.broadcast_object(mine if comm.rank == 1 else "ignored", 1)
    assert told["rank"] == 1 and len(told["text"]) == 10_000
    everything = comm.all_gather_object(mine)
    assert [entry["rank"] for entry in everything] == list(range(SIZE))
    gathered = comm.gather_object(mine, 2)
    assert gathered == (everything if comm.rank == 2 else None)
    for attempt in (comm.all_gather_object, lambda x: comm.gather_object(x, 0)):
        with pytest.raises(ValueError, match="rank 1 cannot be pickled"):
            attempt((lambda: None) if comm.rank == 1 else comm.rank)
    with pytest.raises(ValueError, match="rank 0 cannot be pickled"):
        comm.broadcast_object((lambda: None) if comm.rank == 0 else None, 0)
    assert comm.all_gather_object(comm.rank) == list(range(SIZE))


def test_objects(group: Cluster) -> None:
    results([peer.start(objects) for peer in group.peers])


def scatter_without_x(worker: Worker) -> None:
    """A call: who receives says where to, or what the root's array looks like."""
    comm = worker.comm
    x = np.arange(12, dtype=np.int16).reshape(SIZE, 4)
    out = np.empty(4, np.int16)
    assert comm.scatter(x if comm.rank == 2 else None, 2, out=out) is out
    assert (out == x[comm.rank]).all()
    counts = [2, 0, 4]
    long = np.arange(6.0)
    out = np.empty(counts[comm.rank])
    comm.scatter(long if comm.rank == 0 else None, counts=counts, out=out)
    assert out.tolist() == [[0, 1], [], [2, 3, 4, 5]][comm.rank]
    assert comm.scatter(np.ones_like(x), 1).tolist() == [1] * 4


def test_scatter_without_x(group: Cluster) -> None:
    results([peer.start(scatter_without_x) for peer in group.peers])
