"""Wrong calls: each gives an error that says what is wrong, soon, and harms nobody. Two kinds:
members that call different things, and arguments that are wrong on one peer, where nothing may be
sent.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cluster import SMALL, Cluster, Worker, results

import collectives as cc

pytestmark = pytest.mark.timeout(60)

SOON_S = 2.0


# ---- members that call different things ----------------------------------------------------------

Calls = list[tuple[str, dict[str, Any]]]


def perform(worker: Worker, calls: Calls) -> list[tuple[str, str, float]]:
    """A call: posts these operations, all in flight together, and tells how each ended."""
    comm, found, works = worker.comm, [], []
    began = time.monotonic()
    for name, options in calls:
        options = dict(options)
        if name == "admit":
            try:
                comm.admit()
                found.append(("ok", "", 0.0))
            except cc.CollectivesError as error:
                found.append((type(error).__name__, str(error), time.monotonic() - began))
            continue
        arguments = []
        if name != "barrier":
            dtype, count = options.pop("dtype", "float32"), options.pop("count", 5000)
            if isinstance(count, list):
                count = count[comm.rank]
            arguments = [np.full(count, 3, dtype)]
        works.append(getattr(comm, name)(*arguments, async_op=True, **options))
    for work in works:
        try:
            work.wait(20)
            found.append(("ok", "", 0.0))
        except cc.CollectivesError as error:
            found.append((type(error).__name__, str(error), time.monotonic() - began))
    return found


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


DIFFERENT: list[tuple[str, Calls, Calls, str, str]] = [
    (
        "dtype",
        [("all_reduce", {"dtype": "float32"})],
        [("all_reduce", {"dtype": "int32"})],
        "float32",
        "int32",
    ),
    ("count", [("all_reduce", {"count": 10})], [("all_reduce", {"count": 11})], "10", "11"),
    (
        "large and small",
        [("all_reduce", {"count": 10})],
        [("all_reduce", {"count": 400_000})],
        "10",
        "400000",
    ),
    ("nothing and some", [("all_reduce", {"count": 0})], [("all_reduce", {})], "=0", "5000"),
    ("op", [("all_reduce", {"op": "sum"})], [("all_reduce", {"op": "max"})], "sum", "max"),
    ("root", [("broadcast", {"root": 0})], [("broadcast", {"root": 2})], "root=0", "root=2"),
    ("kind", [("all_reduce", {})], [("all_gather", {})], "all_reduce", "all_gather"),
    ("barrier", [("barrier", {})], [("all_reduce", {"count": 1})], "barrier", "all_reduce"),
    ("boundary", [("admit", {})], [("all_reduce", {"count": 1})], "admit", "all_reduce"),
    (
        "algorithm",
        [("all_reduce", {"algorithm": "ring"})],
        [("all_reduce", {"algorithm": "direct"})],
        "ring",
        "direct",
    ),
    (
        "root of a reduction",
        [("reduce", {"root": 1})],
        [("reduce", {"root": 2})],
        "root=1",
        "root=2",
    ),
    (
        "splits",
        [("all_gather", {"count": [3, 4, 5], "counts": [3, 4, 5]})],
        [("all_gather", {"count": [5, 4, 3], "counts": [5, 4, 3]})],
        "uneven",
        "count=12",
    ),
    (
        "splits of a pair",
        [("all_to_all", {"count": 6, "counts": [2] * 3, "receive_counts": [2] * 3})],
        [("all_to_all", {"count": 6, "counts": [2] * 3, "receive_counts": [2, 3, 2]})],
        "sends 8 bytes",
        "expects 12",
    ),
    ("retry", [("all_reduce", {})], [("all_reduce", {"retry": False})], "retry", "retry"),
    (
        "order",
        [("all_reduce", {"count": 7}), ("broadcast", {"count": 9})],
        [("broadcast", {"count": 9}), ("all_reduce", {"count": 7})],
        "all_reduce",
        "broadcast",
    ),
]


@pytest.fixture(scope="module")
def trio() -> Iterator[Cluster]:
    """One group for all of these: each test leaves it usable, or the next one finds out."""
    with Cluster(3, **SMALL) as group:
        yield group


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize("case", DIFFERENT, ids=[case[0] for case in DIFFERENT])
def test_different_calls_are_a_mismatch_on_all(
    trio: Cluster, case: tuple[str, Calls, Calls, str, str], odd: int
) -> None:
    _, usual, other, first, second = case
    calls = [
        peer.start(perform, other if rank == odd else usual) for rank, peer in enumerate(trio.peers)
    ]
    for found in results(calls, 15):
        for name, message, seconds in found:
            assert name == "Mismatch", message
            assert seconds < SOON_S
            assert first in message and second in message, message
            ranks = set(re.findall(r"rank (\d)", message))
            assert str(odd) in ranks and len(ranks) == 2, message
    assert trio.each(total) == [3] * 3


def late(worker: Worker, first: Calls, second: Calls) -> list[tuple[str, str, float]]:
    """A call: different operations, and more behind them."""
    return perform(worker, first) + perform(worker, second)


def test_a_late_peer_is_told_of_the_mismatch_that_the_others_had(trio: Cluster) -> None:
    early = [
        trio.peers[0].start(perform, [("all_reduce", {"count": 10})]),
        trio.peers[1].start(perform, [("all_reduce", {"count": 12})]),
    ]
    for ((name, message, _),) in results(early):
        assert name == "Mismatch", message
    ((name, message, _),) = trio.peers[2].call(perform, [("all_reduce", {"count": 10})])
    assert name == "Mismatch", message
    assert trio.each(total) == [3] * 3


def test_many_mismatches_in_a_row(trio: Cluster) -> None:
    for number in range(10):
        calls = [
            peer.start(perform, [("all_reduce", {"count": 100 + (rank == number % 3)})] * 4)
            for rank, peer in enumerate(trio.peers)
        ]
        names = {name for found in results(calls) for name, _, _ in found}
        assert names == {"Mismatch"}
    assert trio.each(total) == [3] * 3


def other_lane(worker: Worker, odd: int) -> str:
    """A call: a mismatch in lane 1 while lane 2 works."""
    comm = worker.comm
    good = comm.all_reduce(np.ones(3), async_op=True, lane=2)
    count = 20 + (comm.rank == odd)
    with pytest.raises(cc.Mismatch):
        comm.all_reduce(np.ones(count), lane=1)
    try:
        return "ok" if (good.wait(10) == comm.size).all() else "wrong"
    except cc.CollectivesError as error:
        return type(error).__name__


def test_a_mismatch_in_one_lane_ends_other_lanes_alike(trio: Cluster) -> None:
    assert len(set(trio.each(other_lane, 1))) == 1
    assert trio.each(total) == [3] * 3


# ---- wrong arguments -----------------------------------------------------------------------------


def read_only() -> np.ndarray:
    x = np.ones(4)
    x.flags.writeable = False
    return x


def folded() -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.ones(8), (3, 4), (8, 8))


def halves(comm: cc.Communicator) -> Any:
    x = np.arange(10.0)
    return comm.all_reduce(x[:6], out=x[4:])


def gather_overlap(comm: cc.Communicator) -> Any:
    x = np.zeros((comm.size, 4))
    other = (comm.rank + 1) % comm.size
    return comm.all_gather(x[other], out=x)


X = np.ones(4)
WRONG: dict[str, Callable[[cc.Communicator], Any]] = {
    "read-only output": lambda c: c.all_reduce(X, out=read_only()),
    "read-only in place": lambda c: c.all_reduce(x := read_only(), out=x),
    "partial overlap": halves,
    "all_gather into a row of another": gather_overlap,
    "output of another dtype": lambda c: c.all_reduce(X, out=np.ones(4, "f4")),
    "output too small": lambda c: c.all_reduce(X, out=np.ones(3)),
    "output too large": lambda c: c.all_reduce(X, out=np.ones(5)),
    "all_gather output too small": lambda c: c.all_gather(X, out=np.ones((c.size - 1, 4))),
    "output is a list": lambda c: c.all_reduce(X, out=[0.0] * 4),
    "output is bytes": lambda c: c.all_reduce(X, out=b"12345678"),
    "negative timeout": lambda c: c.all_reduce(X, timeout=-1),
    "timeout is not a number": lambda c: c.all_reduce(X, timeout=float("nan")),
    "timeout is a text": lambda c: c.all_reduce(X, timeout="1"),
    "timeout of a barrier": lambda c: c.barrier(timeout=-0.5),
    "timeout of admit": lambda c: c.admit(timeout=-0.5),
    "unknown op": lambda c: c.all_reduce(X, op="product"),
    "op is None": lambda c: c.all_reduce(X, op=None),
    "op is a list": lambda c: c.all_reduce(X, op=["sum"]),
    "average of integers": lambda c: c.all_reduce(np.ones(4, "i8"), op="avg"),
    "unknown algorithm": lambda c: c.all_reduce(X, algorithm="best"),
    "algorithm is a number": lambda c: c.all_gather(X, algorithm=1),
    "an algorithm that cannot": lambda c: c.broadcast(X, algorithm="recursive_doubling"),
    "lane -1": lambda c: c.all_reduce(X, lane=-1),
    "lane 16": lambda c: c.barrier(lane=16),
    "lane is a text": lambda c: c.barrier(lane="0"),
    "lane is huge": lambda c: c.barrier(lane=1 << 70),
    "root -1": lambda c: c.broadcast(X, -1),
    "root is the size": lambda c: c.broadcast(X, c.size),
    "root is None": lambda c: c.broadcast(X, None),
    "root is a fraction": lambda c: c.broadcast(X, 0.0),
    "objects": lambda c: c.all_reduce(np.array([1, "x", None], object)),
    "texts": lambda c: c.all_reduce(np.array(["a", "b"])),
    "complex numbers": lambda c: c.all_reduce(np.ones(3, complex)),
    "other byte order": lambda c: c.all_reduce(np.ones(3, ">f4")),
    "records": lambda c: c.all_reduce(np.zeros(3, [("a", "f4")])),
    "times": lambda c: c.all_reduce(np.zeros(3, "m8[s]")),
    "None": lambda c: c.all_reduce(None),
    "a text": lambda c: c.all_reduce("12"),
    "bytes": lambda c: c.all_reduce(b"12345678"),
    "a ragged list": lambda c: c.all_reduce([[1.0], [1.0, 2.0]]),
    "a dict": lambda c: c.broadcast({}),
    "bfloat16 of floats": lambda c: c.all_reduce(X, dtype="bfloat16"),
    "dtype that is none": lambda c: c.all_reduce(X, dtype="nothing"),
    "dtype that contradicts": lambda c: c.all_reduce(X, dtype="float32"),
    "a masked output": lambda c: c.all_reduce(X, out=np.broadcast_to(np.zeros(1), 4)),
    "an output that overlaps itself": lambda c: c.all_reduce(np.ones((3, 4)), out=folded()),
    "in place in what overlaps itself": lambda c: c.all_reduce(x := folded(), out=x),
    "an unknown keyword": lambda c: c.all_reduce(X, lanes=1),
    "premultiplied integers": lambda c: c.all_reduce(np.ones(4, "i4"), op=cc.premul(2)),
    "bits of floats": lambda c: c.all_reduce(X, op="bxor"),
    "average of truth values": lambda c: c.all_reduce(X > 0, op="avg"),
    "root of a reduce": lambda c: c.reduce(X, c.size),
    "root of a gather": lambda c: c.gather(X, -1),
    "root of a scatter": lambda c: c.scatter(np.ones((c.size, 2)), c.size),
    "scatter of nothing at the root": lambda c: c.scatter(None, c.rank, out=X),
    "scatter to nowhere": lambda c: c.scatter(None, 0),
    "scatter of too few blocks": lambda c: c.scatter(np.ones((c.size - 1, 2))),
    "reduce_scatter of a scalar": lambda c: c.reduce_scatter(1.0),
    "all_to_all of too many blocks": lambda c: c.all_to_all(np.ones((c.size + 1, 2))),
    "counts that do not add up": lambda c: c.reduce_scatter(np.ones(7), counts=[1, 2, 3]),
    "counts for others": lambda c: c.all_gather(np.ones(2), counts=[2, 2]),
    "counts that are not mine": lambda c: c.all_gather(np.ones(2), counts=[2, 3, 2]),
    "negative counts": lambda c: c.reduce_scatter(np.ones(3), counts=[4, -2, 1]),
    "fractional counts": lambda c: c.reduce_scatter(np.ones(3), counts=[1.5, 0.5, 1]),
    "huge counts": lambda c: c.gather(np.ones(2), counts=[2**63, 2, 2]),
    "counts of a scalar": lambda c: c.all_gather(1.0, counts=[1, 1, 1]),
    "counts without receive_counts": lambda c: c.all_to_all(np.ones(3), counts=[1, 1, 1]),
    "receive_counts alone": lambda c: c.all_to_all(np.ones((3, 1)), receive_counts=[1, 1, 1]),
    "nothing to reduce": lambda c: c.all_reduce_many([]),
    "outputs of another number": lambda c: c.all_reduce_many([X, X], out=[X]),
    "different dtypes at once": lambda c: c.all_reduce_many([X, np.ones(4, "f4")]),
    "outputs on top of each other": lambda c: c.all_reduce_many([X, X], out=[o := X + 2, o]),
}


def wrong_call(worker: Worker, name: str) -> tuple[str, str, bool, int]:
    """A call: makes this call, and tells its error, whether an operation was begun, and what number
    the next one would have had (by asking a barrier that everybody calls)."""
    comm = worker.comm
    operations = comm.stats["operations"]
    kind, text = "ok", ""
    try:
        WRONG[name](comm)
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
    return kind, text, comm.stats["operations"] == operations, len(comm._open)


def next_number(worker: Worker, lane: int = 0) -> int:
    work = worker.comm.barrier(async_op=True, lane=lane)
    work.wait(10)
    return int(work.info.sequence)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_argument_is_an_error_before_anything_is_sent(trio: Cluster, name: str) -> None:
    (before,) = set(trio.each(next_number))
    kind, text, unchanged, _ = trio.peers[1].call(wrong_call, name, limit=10)
    assert kind in ("ValueError", "TypeError", "NotImplementedError"), f"{kind}: {text}"
    assert text and unchanged
    assert trio.each(next_number) == [before + 1] * 3, "a number was used up"


def fine_calls(worker: Worker) -> None:
    """A call: what looks odd and is right."""
    comm, size = worker.comm, worker.comm.size
    assert comm.all_reduce(3) == 3 * size
    assert comm.all_reduce(2.5) == 2.5 * size
    assert comm.all_reduce([1, 2]).tolist() == [size, 2 * size]
    zero_d = comm.all_reduce(np.array(4.0))
    assert zero_d.shape == () and zero_d == 4 * size
    assert comm.all_gather(np.array(7)).shape == (size,)
    x = np.arange(12.0).reshape(3, 4)
    assert (comm.all_reduce(x.T) == x.T * size).all()
    assert (comm.all_reduce(x[::-1, ::2]) == x[::-1, ::2] * size).all()
    assert (comm.all_reduce(np.asfortranarray(x)) == x * size).all()
    assert (comm.all_reduce(np.broadcast_to(np.ones(1), (5, 5))) == size).all()
    assert (comm.all_reduce(read_only()) == size).all()
    same = np.ones(6)
    assert comm.all_reduce(same, out=same[:]) is not same and (same == size).all()
    out = np.empty((4, 3))
    assert comm.all_reduce(x, out=out) is out  # of another shape, as many elements
    big = np.arange(float(3 * size)).reshape(size, 3)
    mine = big[comm.rank]
    comm.all_gather(mine, out=big)  # its own row
    every_second = np.zeros(8)
    assert (comm.all_reduce(np.ones(4), out=every_second[::2]) == size).all()
    assert every_second.tolist() == [size, 0] * 4
    backwards = np.arange(4.0)[::-1]
    assert comm.all_reduce(backwards, out=backwards) is backwards
    assert backwards.base.tolist() == [0, size, 2 * size, 3 * size]
    assert (comm.all_reduce(np.ones((3, 2)), out=np.ones((2, 3)).T) == size).all()
    assert (big == np.arange(3.0 * size).reshape(size, 3)).all()
    bits = np.full(3, 1.5).astype(ml_dtypes.bfloat16).view(np.uint16)
    total = comm.all_reduce(bits, dtype="bfloat16")
    assert total.dtype == np.uint16
    assert (total.view(ml_dtypes.bfloat16).astype(float) == 1.5 * size).all()
    long = comm.all_reduce(np.ones(2), timeout=1e9)
    assert (long == size).all()
    assert comm.barrier() is None
    assert (comm.all_reduce(np.matrix([[1.0, 2.0]])) == [[size, 2 * size]]).all()


def test_odd_but_right_arguments(trio: Cluster) -> None:
    trio.each(fine_calls)


def odd_times(worker: Worker) -> list[str]:
    """A call: waits that are as long as can be, on an operation that is complete and on one that is
    not."""
    comm, found = worker.comm, []
    for value in (float("inf"), 1e300, 1e18):
        try:
            comm.all_reduce(np.ones(2), timeout=value)
            found.append("ok")
        except BaseException as error:
            found.append(type(error).__name__)
        work = comm.all_reduce(np.ones(300_000), async_op=True)
        try:
            work.wait(timeout=value)
            found.append("ok")
        except BaseException as error:
            found.append(type(error).__name__)
    return found


def test_endless_times(trio: Cluster) -> None:
    """They are as good as None, or a ValueError; nothing else."""
    first, *rest = trio.each(odd_times)
    assert all(other == first for other in rest)
    assert set(first) <= {"ok", "ValueError"}, first
    assert trio.each(total) == [3] * 3
