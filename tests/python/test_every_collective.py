"""Property tests of every collective between real processes over TCP with tiny segments and short
reads and writes: any dtype, reduction, shape, stride and split, in place and out of place, several
under way at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from calls import ALGORITHMS, FLOATS, OPS, REDUCING, SIZE, SPLIT, Call, begin, check, numpy_dtype
from cluster import NARROW, SMALL, Cluster, Worker, results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectives.buffers import DTYPES

pytestmark = pytest.mark.timeout(120)


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
