"""One operation's trial: what each rank is given and must get, how it is repeated, and figures.

Nothing here knows a communicator, and the file needs numpy alone: benchmarks/ loads it into
processes that have other libraries installed and not this one, so that all are filled, checked and
timed by the same lines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ITERATIONS_MIN, ITERATIONS_MAX = 5, 5000
BATCHES = 10  # of one measurement; the ranks meet in a barrier before each
ROOT = 0
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bfloat16": np.dtype(np.uint16),  # numpy has no bfloat16: the bits, and dtype= says so
}
_CHUNK = 22 * 3000  # elements that are filled or checked at a time: a multiple of every modulus


# ---- what an operation moves ------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """The buffers of a rank, in blocks: "one", "all" (one for each rank) or "none".

    Attributes:
        given, out: the input and the output.
        only_root: which of the two the root alone has: "given", "out" or "".
        rooted: whether there is a root at all.
        reduces: whether inputs are summed.
    """

    given: str
    out: str
    only_root: str = ""
    rooted: bool = False
    reduces: bool = False


OPERATIONS = {
    "all_reduce": Operation("one", "one", reduces=True),
    "broadcast": Operation("one", "one", rooted=True),
    "all_gather": Operation("one", "all"),
    "barrier": Operation("none", "none"),
    "reduce": Operation("one", "one", "out", rooted=True, reduces=True),
    "gather": Operation("one", "all", "out", rooted=True),
    "scatter": Operation("all", "one", "given", rooted=True),
    "reduce_scatter": Operation("all", "one", reduces=True),
    "all_to_all": Operation("all", "all"),
    "send_recv": Operation("one", "one"),  # of two ranks: there and back
}
IN_PLACE = ("all_reduce", "broadcast", "reduce")
"""Those whose input may be their output as a whole."""


@dataclass(frozen=True)
class Shape:
    """The elements of one rank's buffers."""

    block: int
    given: int
    out: int
    largest: int  # of any rank's: what "bytes" means in a table


def shape(op: str, elements: int, rank: int, ranks: int) -> Shape:
    """For a largest buffer of about `elements`: at least one in a block, the same everywhere."""
    about = OPERATIONS[op]
    blocks = {"none": 0, "one": 1, "all": ranks}
    most = max(blocks[about.given], blocks[about.out])
    block = max(1, elements // most) if most else 0
    sizes = {"given": block * blocks[about.given], "out": block * blocks[about.out]}
    if about.only_root and rank != ROOT:
        sizes[about.only_root] = 0
    return Shape(block, sizes["given"], sizes["out"], block * most)


def expected(op: str, rank: int, ranks: int) -> list[tuple[list[int], int]]:
    """What the blocks of a rank's output are: the sum of these ranks' inputs, of which block."""
    about = OPERATIONS[op]
    block = rank if about.given == "all" else 0
    if about.out == "none" or (about.only_root == "out" and rank != ROOT):
        return []
    if about.out == "all":
        return [([source], block) for source in range(ranks)]
    if about.reduces:
        return [(list(range(ranks)), block)]
    return [([ROOT if about.rooted else 1 - rank], block)]


def bus_share(op: str, ranks: int) -> float:
    """The part of its bytes that an operation must bring to or from its busiest rank: times the
    bandwidth seen from outside it is what a link carries."""
    about = OPERATIONS[op]
    if op == "all_reduce":
        return 2 * (ranks - 1) / ranks
    return (ranks - 1) / ranks if "all" in (about.given, about.out) else 1.0


# ---- known values -----------------------------------------------------------------------------


def _modulus(ranks: int) -> int:
    return 11 if ranks <= 25 else 2


def _encode(numbers: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        bits: Array = numbers.astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    found: Array = numbers.astype(DTYPES[dtype])
    return found


def known(sources: Iterable[int], first: int, count: int, ranks: int, dtype: str) -> Array:
    """The sum of these ranks' inputs from element `first` on: small integers, so that the sum is
    exact in every dtype; the same again every _CHUNK elements."""
    at = np.arange(first, first + count) * 7
    total = np.sum([(at + rank * 3) % _modulus(ranks) for rank in sources], axis=0)
    return _encode(total, dtype)


def fill(array: Array, rank: int, ranks: int, dtype: str) -> None:
    values = known([rank], 0, min(_CHUNK, array.size), ranks, dtype)
    for first in range(0, array.size, _CHUNK):
        part = array[first : first + _CHUNK]
        part[:] = values[: part.size]


def check(
    array: Array, sources: list[int], ranks: int, dtype: str, what: str, start: int = 0
) -> None:
    """Whether the array is the sum of the named ranks' inputs from element `start` on. Raises
    ValueError."""
    values = known(sources, start, min(_CHUNK, array.size), ranks, dtype)
    for first in range(0, array.size, _CHUNK):
        part = array[first : first + _CHUNK]
        wrong = np.flatnonzero(part != values[: part.size])
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(
                f"{what} gives a wrong result: element {first + i} is {part[i]}, not {values[i]}"
            )


def check_output(out: Array, op: str, rank: int, ranks: int, dtype: str) -> None:
    """Whether it is what the operation must give this rank if all were filled by `fill`. Raises
    ValueError."""
    blocks = expected(op, rank, ranks)
    for i, (sources, block) in enumerate(blocks):
        length = out.size // len(blocks)
        part = out[i * length : (i + 1) * length]
        what = f"block {i} of {op}" if len(blocks) > 1 else op
        check(part, sources, ranks, dtype, f"{what} of {out.nbytes} bytes", block * length)


# ---- measuring --------------------------------------------------------------------------------


def iterations_for(once_s: float, seconds: float) -> int:
    """How often to repeat what takes `once_s` to fill about `seconds`."""
    return int(min(max(seconds / max(once_s, 1e-9), ITERATIONS_MIN), ITERATIONS_MAX))


def warm_up(run: Callable[[], Any], agree: Callable[[int], int], seconds: float) -> int:
    """Runs it until it runs as it will, and returns how often to repeat it. `agree` makes one
    rank's number everybody's."""
    count = ITERATIONS_MIN
    for share in (0.1, 1.0):
        start = time.perf_counter()
        for _ in range(count):
            run()
        count = agree(iterations_for((time.perf_counter() - start) / count, share * seconds))
    return count


def step_for(op: str, iterations: int) -> int:
    """How many repetitions follow a barrier. With a root it is one: some libraries let the root go
    on at once, so that a row of them would measure how fast it can post them."""
    return 1 if OPERATIONS[op].rooted else math.ceil(iterations / BATCHES)


def repeat(
    run: Callable[[], Any], barrier: Callable[[], Any], iterations: int, step: int
) -> npt.NDArray[np.float64]:
    """The time of each repetition at this rank, in microseconds."""
    clock = time.perf_counter_ns
    times = np.empty(iterations)
    for first in range(0, iterations, step):
        barrier()
        for i in range(first, min(first + step, iterations)):
            start = clock()
            run()
            times[i] = clock() - start
    return times / 1000


def figures(op: str, ranks: int, size_bytes: int, times: Array) -> dict[str, float]:
    """What to report of the times (rank, repetition) in microseconds. A repetition took as long as
    at its slowest rank; of a message there and back half of that counts."""
    slowest = times.max(axis=0) / (2 if op == "send_recv" else 1)
    p10, median, p90 = np.percentile(slowest, [10, 50, 90])
    algbw = size_bytes / (median * 1000)  # bytes per nanosecond are GB/s
    return {
        "median_us": round(float(median), 2),
        "p10_us": round(float(p10), 2),
        "p90_us": round(float(p90), 2),
        "algbw_GBps": round(float(algbw), 6),
        "busbw_GBps": round(float(algbw * bus_share(op, ranks)), 6),
    }
