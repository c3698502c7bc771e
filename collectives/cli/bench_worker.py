"""One rank of `collectives bench`: a loop that measures what its parent asks for.

The ranks stay alive and connected between measurements, so no start-up is ever measured; while they
wait for the next case they sleep. The first half of this file knows no communicator: how to repeat,
what to report and what the bytes mean is the same for whatever is compared with us.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import collectives as cc
from collectives.cli import _launch
from collectives.config import Settings

Array = npt.NDArray[Any]

ITERATIONS_MIN, ITERATIONS_MAX = 5, 5000
BATCHES = 10  # of one measurement; the ranks meet in a barrier before each
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bfloat16": np.dtype(np.uint16),  # numpy has no bfloat16: the bits, and dtype= says so
}
_CHUNK = 1 << 16  # elements that are filled or checked at a time, so that the peak is the library's


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


def repeat(
    run: Callable[[], Any], barrier: Callable[[], Any], iterations: int
) -> npt.NDArray[np.float64]:
    """The time of each repetition at this rank, in microseconds."""
    clock = time.perf_counter_ns
    times = np.empty(iterations)
    step = math.ceil(iterations / BATCHES)
    for first in range(0, iterations, step):
        barrier()
        for i in range(first, min(first + step, iterations)):
            start = clock()
            run()
            times[i] = clock() - start
    return times / 1000


def reset_peak() -> None:
    """Forgets the peak of the memory in use, where Linux lets us."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # Then the peak is that of the whole life of the process.


def peak_mib() -> float:
    """The peak of the memory in use."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def figures(op: str, ranks: int, size_bytes: int, times: Array) -> dict[str, float]:
    """What to report of the times (rank, repetition) in microseconds. A repetition took as long as
    at its slowest rank."""
    p10, median, p90 = np.percentile(times.max(axis=0), [10, 50, 90])
    share = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": (ranks - 1) / ranks}
    algbw = size_bytes / (median * 1000)  # bytes per nanosecond are GB/s
    return {
        "median_us": round(float(median), 2),
        "p10_us": round(float(p10), 2),
        "p90_us": round(float(p90), 2),
        "algbw_GBps": round(float(algbw), 6),
        "busbw_GBps": round(float(algbw * share.get(op, 1.0)), 6),
    }


# ---- known values -----------------------------------------------------------------------------


def _encode(numbers: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        bits: Array = numbers.astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    found: Array = numbers.astype(DTYPES[dtype])
    return found


def known(rank: int, first: int, last: int, ranks: int) -> Array:
    """Elements first to last of a rank's input: small integers, so that their sum over the ranks
    is exact in every dtype."""
    modulus = 11 if ranks <= 25 else 2
    return (np.arange(first, last) * 7 + rank * 3) % modulus


def fill(array: Array, rank: int, ranks: int, dtype: str) -> None:
    for first in range(0, array.size, _CHUNK):
        last = min(first + _CHUNK, array.size)
        array[first:last] = _encode(known(rank, first, last, ranks), dtype)


def check(array: Array, inputs: list[int], ranks: int, dtype: str, what: str) -> None:
    """Whether the array is the sum of the named ranks' inputs. Raises CollectivesError."""
    for first in range(0, array.size, _CHUNK):
        last = min(first + _CHUNK, array.size)
        total = np.sum([known(rank, first, last, ranks) for rank in inputs], axis=0)
        expected = _encode(total, dtype)
        wrong = np.flatnonzero(array[first:last] != expected)
        if wrong.size:
            i = int(wrong[0])
            raise cc.CollectivesError(
                f"{what} gives a wrong result: element {first + i} is {array[first + i]}, "
                f"not {expected[i]}"
            )


# ---- the rank ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What to measure; the same on all ranks."""

    op: str
    bytes: int
    dtype: str
    inplace: bool
    algorithm: str
    iterations: int | None
    seconds: float


class Rank:
    def __init__(self, comm: cc.Communicator, transport: str) -> None:
        self.comm = comm
        self.transport = transport

    def measure(self, case: Case) -> dict[str, Any]:
        """Verifies once, warms up, repeats. Returns what to report, the same on all ranks."""
        comm = self.comm
        itemsize = DTYPES[case.dtype].itemsize
        rows = comm.size if case.op == "all_gather" else 1
        count = 0 if case.op == "barrier" else max(1, case.bytes // (itemsize * rows))
        given = np.zeros(count, DTYPES[case.dtype])
        out = given if case.inplace else np.zeros(count * rows, given.dtype)
        post = self._operation(case, given, out)
        algorithm = self._verify(case, post, given, out)
        if case.inplace:
            given.fill(0)  # else the sums would grow without bound

        def run() -> None:
            post()

        planned = warm_up(run, self._agree, 0 if case.iterations else case.seconds)
        iterations = case.iterations or planned
        reset_peak()
        cpu = time.process_time()
        times = repeat(run, comm.barrier, iterations)
        cpu = time.process_time() - cpu
        own = np.array([peak_mib(), cpu])
        size_bytes = count * rows * itemsize
        all_times = comm.all_gather(times)
        rss_mib, cpu_s = comm.all_gather(own)[0]
        return {
            "op": case.op,
            "ranks": comm.size,
            "bytes": size_bytes,
            "transport": self.transport,
            "algorithm": algorithm,
            "dtype": case.dtype,
            "inplace": case.inplace,
            "iterations": iterations,
            **figures(case.op, comm.size, size_bytes, all_times),
            "rss_MiB": round(float(rss_mib), 2),
            "cpu_s": round(float(cpu_s), 4),
        }

    def _agree(self, count: int) -> int:
        return int(self.comm.broadcast(np.array([count]), root=0)[0])

    def _operation(self, case: Case, given: Array, out: Array) -> Callable[..., Any]:
        """A function that runs the operation once; with async_op=True it returns the Work."""
        comm = self.comm
        if case.op == "barrier":
            return comm.barrier
        function = getattr(comm, case.op)
        options = {"out": out, "algorithm": case.algorithm}
        if case.dtype == "bfloat16":
            options["dtype"] = case.dtype
        return lambda **more: function(given, **options, **more)

    def _verify(self, case: Case, post: Callable[..., Any], given: Array, out: Array) -> str:
        """Runs it once on known values; returns the algorithm that was used."""
        rank, ranks = self.comm.rank, self.comm.size
        fill(given, rank, ranks, case.dtype)
        work: cc.Work = post(async_op=True)
        work.wait()
        what = f"{case.op} of {given.nbytes} bytes"
        if case.op == "all_reduce":
            check(out, list(range(ranks)), ranks, case.dtype, what)
        elif case.op == "broadcast":
            check(out, [0], ranks, case.dtype, what)
        elif case.op == "all_gather":
            for source, row in enumerate(out.reshape(ranks, -1)):
                check(row, [source], ranks, case.dtype, what)
        return work.info.algorithm


def main(parent: _launch.Parent, spec: _launch.Message) -> None:
    """Connects, measures case after case, ends when told to."""
    transport = spec["transport"] or Settings.from_environment().transport or "tcp"
    options = {key: spec[key] for key in ("group", "rank", "name", "streams", "segment_bytes")}
    with cc.connect(
        spec["url"],
        size=spec["ranks"],
        transport=transport,
        bind=spec["bind"],
        insecure=spec["insecure"],
        **options,
    ) as comm:
        rank = Rank(comm, transport)
        parent.send(ready=True, rank=comm.rank, pid=os.getpid())
        while (message := parent.receive()) != {"end": True}:
            parent.send(**rank.measure(Case(**message)))
        comm.barrier()


if __name__ == "__main__":
    _launch.work(main)
