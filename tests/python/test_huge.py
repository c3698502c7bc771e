"""Arrays above 4 GiB between two processes over TCP, for `make test-huge`.

Goal: no count, offset or length is cut to 32 bits on the way from Python through plan, segments,
frames, kernels and back. Method: what is sent is a hole in memory, pages that nobody has touched
and that take no room, with a few marks at places around 2^31 and 2^32; what receives it was filled
with something else before, and is looked at in full: it must be the marks and zeros. So a test
takes the memory of one result, about 4 GiB; only that of all_reduce, where both have one, takes 8.
Plans of many members are checked for any length in tests/c/test_plan_huge.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cluster import Call, Cluster, Worker, results

pytestmark = [pytest.mark.huge, pytest.mark.timeout(120)]

LIMIT_S = 110.0
GIB = 1 << 30
PLACES = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1)
BYTES = 2**32 + 2**22 + 3  # of arrays of bytes: their count is above 2^32, too
COUNTS = {"uint8": BYTES, "float64": BYTES // 8}
POISON = {"uint8": 255, "float64": float("nan")}
CHUNK = 1 << 24  # elements looked at together


# ---- in the peer ---------------------------------------------------------------------------------


def marks(dtype: str, rank: int) -> dict[int, int]:
    """Index -> value of what is not zero in a rank's array: around each place, counted in bytes,
    and at its end."""
    count = COUNTS[dtype]
    itemsize = np.dtype(dtype).itemsize
    indices = sorted({place // itemsize for place in PLACES} | {count - 2, count - 1})
    return {index: 2 * i + 1 + 100 * rank for i, index in enumerate(indices)}


def hole(dtype: str, rank: int) -> np.ndarray:
    array = np.zeros(COUNTS[dtype], dtype)  # the system gives zeros when they are touched
    for index, value in marks(dtype, rank).items():
        array[index] = value
    return array


def filled(dtype: str, count: int) -> np.ndarray:
    return np.full(count, POISON[dtype], dtype)


def look(array: np.ndarray, wanted: dict[int, int]) -> None:
    """The array is zero but for these."""
    found = {}
    for first in range(0, array.size, CHUNK):
        part = array[first : first + CHUNK]
        where = np.flatnonzero(part)
        assert where.size < 100, f"{where.size} elements from {first + where[0]} on are not zero"
        found.update({first + int(i): int(part[i]) for i in where})
    assert found == wanted


def shifted(wanted: dict[int, int], first: int, last: int) -> dict[int, int]:
    """The part [first, last) of it, by itself."""
    return {index - first: value for index, value in wanted.items() if first <= index < last}


def broadcast(worker: Worker, dtype: str) -> None:
    """A call: rank 1 has the array, rank 0 gets it."""
    if worker.comm.rank == 1:
        x = hole(dtype, 1)
        assert worker.comm.broadcast(x, root=1, out=x) is x
    else:
        out = filled(dtype, COUNTS[dtype])
        worker.comm.broadcast(out, root=1, out=out)
        look(out, marks(dtype, 1))


def all_gather(worker: Worker, dtype: str) -> None:
    """A call: rank 0's part is in place and takes up all but the end, where rank 1's comes to."""
    count, few = COUNTS[dtype], 1000
    counts, wanted = [count - few, few], marks(dtype, 0)
    if worker.comm.rank == 0:
        out = hole(dtype, 0)
        out[count - few :] = POISON[dtype]
        x = out[: count - few]
    else:
        out = filled(dtype, count)
        x = np.zeros(few, dtype)
        x[-2:] = [wanted[count - 2], wanted[count - 1]]
    worker.comm.all_gather(x, counts=counts, out=out)
    look(out, wanted)


def reduce(worker: Worker, dtype: str) -> None:
    """A call: the sum comes to rank 0."""
    x = hole(dtype, worker.comm.rank)
    out = filled(dtype, x.size) if worker.comm.rank == 0 else None
    worker.comm.reduce(x, 0, out=out)
    if out is not None:
        look(out, total(dtype))


def total(dtype: str) -> dict[int, int]:
    one, other = marks(dtype, 0), marks(dtype, 1)
    return {index: one[index] + other[index] for index in one}


def reduce_scatter(worker: Worker, dtype: str) -> None:
    """A call: rank 0 gets the sum of all but a few elements, which lie beyond 2^32."""
    count, few = COUNTS[dtype], 1000
    x = hole(dtype, worker.comm.rank)
    first, last = (0, count - few) if worker.comm.rank == 0 else (count - few, count)
    out = filled(dtype, last - first)
    worker.comm.reduce_scatter(x, counts=[count - few, few], out=out)
    look(out, shifted(total(dtype), first, last))


def message(worker: Worker, dtype: str) -> None:
    """A call: rank 0 sends to rank 1."""
    if worker.comm.rank == 0:
        worker.comm.send(hole(dtype, 0), 1)
    else:
        look(worker.comm.recv(filled(dtype, COUNTS[dtype])), marks(dtype, 0))


def all_reduce(worker: Worker, dtype: str) -> None:
    """A call: in place, so that each has one array."""
    x = hole(dtype, worker.comm.rank)
    worker.comm.all_reduce(x, out=x, preserve=False)
    look(x, total(dtype))


def forget_peak(worker: Worker) -> None:
    """A call: the peak of memory starts anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_gib(worker: Worker) -> float:
    """A call: the most memory that was in use."""
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as file:
        found = next(line for line in file if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024 / GIB


# ---- the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group() -> Iterator[Cluster]:
    with Cluster(2) as cluster:
        yield cluster


def run(group: Cluster, function: Any, dtype: str, needed_gib: float) -> None:
    """Runs it in both peers, if there is the memory, and sees that it takes no more."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(line for line in file if line.startswith("MemAvailable:"))
    if int(available.split()[1]) * 1024 / GIB < needed_gib + 1:
        pytest.skip(f"it takes {needed_gib} GiB of memory")
    group.each(forget_peak)
    calls: list[Call] = [peer.start(function, dtype) for peer in group.peers]
    results(calls, LIMIT_S)
    peaks = group.each(peak_gib)
    print(f"{function.__name__} {dtype}: {' + '.join(f'{peak:.2f}' for peak in peaks)} GiB")
    assert sum(peaks) < needed_gib


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (broadcast, "uint8"),
        (all_gather, "float64"),
        (reduce, "uint8"),
        (reduce_scatter, "float64"),
        (message, "uint8"),
    ],
)
def test_one_result(group: Cluster, function: Any, dtype: str) -> None:
    run(group, function, dtype, 4.5)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_all_reduce(group: Cluster, dtype: str) -> None:
    run(group, all_reduce, dtype, 8.5)
