"""One rank of `collectives bench`: a loop that measures what its parent asks for.

The ranks stay alive and connected between measurements, so no start-up is ever measured; while they
wait for the next case they sleep. What is measured, and how, is in bench_trial.py.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import collectives as cc
from collectives.cli import _launch, bench_trial
from collectives.cli.bench_trial import DTYPES, OPERATIONS, ROOT, Array
from collectives.settings import Settings


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


def operation(
    comm: cc.Communicator, op: str, given: Array, out: Array, **options: Any
) -> Callable[..., Any]:
    """A function that runs the operation once; with async_op=True it returns the Work. The buffers
    are flat, as `bench_trial.shape` has them; a rank without one has an empty array."""
    if op == "barrier":
        return comm.barrier
    if op == "send_recv":
        other = 1 - comm.rank

        def there_and_back() -> None:
            if comm.rank == 0:
                comm.send(given, other, **options)
                comm.recv(out, other, **options)
            else:
                comm.recv(out, other, **options)
                comm.send(given, other, **options)

        return there_and_back
    function = getattr(comm, op)
    about = OPERATIONS[op]
    if about.given == "all":
        block = given.reshape(comm.size, -1) if given.size else None
        if op == "all_to_all":
            out = out.reshape(comm.size, -1)
        return lambda **more: function(block, out=out, **options, **more)
    target = None if about.only_root == "out" and comm.rank != ROOT else out
    return lambda **more: function(given, out=target, **options, **more)


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
        comm, op = self.comm, case.op
        itemsize = DTYPES[case.dtype].itemsize
        shape = bench_trial.shape(op, case.bytes // itemsize, comm.rank, comm.size)
        given = np.zeros(shape.given, DTYPES[case.dtype])
        out = given if case.inplace else np.zeros(shape.out, given.dtype)
        options = {} if op == "send_recv" else {"algorithm": case.algorithm}
        if case.dtype == "bfloat16":
            options["dtype"] = case.dtype
        run = operation(comm, op, given, out, **options)
        algorithm = self._verify(case, run, given, out)
        if case.inplace:
            given.fill(0)  # else the sums would grow without bound

        planned = bench_trial.warm_up(run, self._agree, 0 if case.iterations else case.seconds)
        iterations = case.iterations or planned
        reset_peak()
        cpu = time.process_time()
        step = bench_trial.step_for(op, iterations)
        times = bench_trial.repeat(run, comm.barrier, iterations, step)
        cpu = time.process_time() - cpu
        own = np.array([peak_mib(), cpu])
        size_bytes = shape.largest * itemsize
        all_times = comm.all_gather(times)
        rss_mib, cpu_s = comm.all_gather(own)[0]
        return {
            "op": op,
            "ranks": comm.size,
            "bytes": size_bytes,
            "transport": self.transport,
            "algorithm": algorithm,
            "dtype": case.dtype,
            "inplace": case.inplace,
            "iterations": iterations,
            **bench_trial.figures(op, comm.size, size_bytes, all_times),
            "rss_MiB": round(float(rss_mib), 2),
            "cpu_s": round(float(cpu_s), 4),
        }

    def _agree(self, count: int) -> int:
        return int(self.comm.broadcast(np.array([count]), root=0)[0])

    def _verify(self, case: Case, run: Callable[..., Any], given: Array, out: Array) -> str:
        """Runs it once on known values; returns the algorithm that was used."""
        rank, ranks = self.comm.rank, self.comm.size
        bench_trial.fill(given, rank, ranks, case.dtype)
        algorithm = "none"  # there is no choice
        if case.op == "send_recv":
            run()
        else:
            work: cc.Work = run(async_op=True)
            work.wait()
            algorithm = work.info.algorithm
        try:
            bench_trial.check_output(out, case.op, rank, ranks, case.dtype)
        except ValueError as error:
            raise cc.CollectivesError(str(error)) from None
        return algorithm


def main(parent: _launch.Parent, spec: _launch.Message) -> None:
    """Connects, measures case after case, ends when told to."""
    transport = Settings.resolve(transport=spec["transport"]).transport
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
