"""All-reduce of collectives beside that of gloo (torch.distributed), measured in one run.

    python benchmarks/compare_gloo.py [--ranks 2,4] [--bytes 4,16K,1M,16M,64M] [--rounds 5] [--json]

Two measurements that are minutes apart say little on a machine that does other things as well. So
both libraries' ranks are started once and stay connected, and the measurements alternate: round by
round, size by size, first one library and then the other, and in the next round the other way
round. Who is not being measured sleeps on its standard input. Both sides are timed by the same
code, `bench_worker.repeat`: a barrier before each batch, the time of a repetition is that of its
slowest rank.

collectives adds numpy arrays out of place (its default, here into an array allocated before);
`--inplace` gives it the input as the output. gloo adds torch tensors in place (it has no other
way). Both use loopback and one thread. float32 sums.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from collectives.cli import _launch, bench, bench_worker
from collectives.coordinator.process import CoordinatorProcess
from collectives.errors import CollectivesError

NO_TORCH = "torch is not installed, and gloo is part of it: pip install torch==2.13.0"
OURS, GLOO = "collectives", "gloo"
START_SECONDS = 120.0  # importing torch takes its time on a busy machine


# ---- gloo's ranks -------------------------------------------------------------------------------


class Gloo:
    """What `bench_worker.Rank` is to us, for all-reduce alone."""

    def __init__(self, spec: _launch.Message) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self.torch, self.dist = torch, dist
        self.ranks, self.rank = spec["ranks"], spec["rank"]
        dist.init_process_group(
            GLOO, init_method=f"file://{spec['store']}", rank=self.rank, world_size=self.ranks
        )

    def measure(self, case: bench_worker.Case) -> dict[str, Any]:
        torch, dist = self.torch, self.dist
        tensor = torch.zeros(max(1, case.bytes // 4), dtype=torch.float32)
        array = tensor.numpy()
        bench_worker.fill(array, self.rank, self.ranks, "float32")
        dist.all_reduce(tensor)
        what = f"gloo's all_reduce of {array.nbytes} bytes"
        bench_worker.check(array, list(range(self.ranks)), self.ranks, "float32", what)
        tensor.zero_()  # Else the sums would grow without bound.

        def agree(count: int) -> int:
            shared = torch.tensor([count])
            dist.broadcast(shared, src=0)
            return int(shared)

        def run() -> None:
            dist.all_reduce(tensor)

        planned = bench_worker.warm_up(run, agree, case.seconds)
        times = bench_worker.repeat(run, dist.barrier, case.iterations or planned)
        rows = [torch.empty(times.size, dtype=torch.float64) for _ in range(self.ranks)]
        dist.all_gather(rows, torch.from_numpy(times))
        found = torch.stack(rows).numpy()
        return {
            "bytes": array.nbytes,
            "iterations": times.size,
            **bench_worker.figures("all_reduce", self.ranks, array.nbytes, found),
        }


def gloo_worker(parent: _launch.Parent, spec: _launch.Message) -> None:
    gloo = Gloo(spec)
    parent.send(ready=True)
    while (message := parent.receive()) != {"end": True}:
        parent.send(**gloo.measure(bench_worker.Case(**message)))
    gloo.dist.barrier()
    gloo.dist.destroy_process_group()


# ---- both sides ---------------------------------------------------------------------------------


class Side(bench.Ranks):
    """The ranks of one library."""

    def __init__(self, name: str, inplace: bool) -> None:
        super().__init__()
        self.name = name
        self.inplace = inplace

    def start_gloo(self, ranks: int, store: pathlib.Path) -> None:
        env = {**_launch.ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}
        for i in range(ranks):
            spec = {"ranks": ranks, "rank": i, "store": str(store)}
            self.add(f"gloo's rank {i}", str(pathlib.Path(__file__).resolve()), spec, env)
        self.collect(START_SECONDS)


@contextlib.contextmanager
def both_sides(args: argparse.Namespace, ranks: int) -> Iterator[list[Side]]:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    ours_args = parser.parse_args(["all_reduce", "--ranks", str(ranks)])
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-gloo-"))
        url = stack.enter_context(CoordinatorProcess()).url
        ours = stack.enter_context(Side(OURS, args.inplace))
        gloo = stack.enter_context(Side(GLOO, True))
        ours.start(ours_args, url, ranks)
        gloo.start_gloo(ranks, pathlib.Path(folder) / "store")
        yield [ours, gloo]
        for side in (ours, gloo):
            side.end()


def compare(args: argparse.Namespace, ranks: int) -> list[dict[str, Any]]:
    """One row per size: the median over the rounds of each side's median, and their ratio."""
    medians: dict[tuple[str, int], list[float]] = {}
    with both_sides(args, ranks) as sides:
        for number in range(args.rounds):
            for size in args.bytes:
                for side in sides if number % 2 == 0 else sides[::-1]:
                    case = bench_worker.Case(
                        "all_reduce", size, "float32", side.inplace, "auto", None, args.seconds
                    )
                    with bench.progress(f"round {number + 1}: {ranks} ranks, {size} bytes"):
                        result = side.measure(case)
                    medians.setdefault((side.name, size), []).append(result["median_us"])
    rows = []
    for size in args.bytes:
        row: dict[str, Any] = {"op": "all_reduce", "ranks": ranks, "bytes": size}
        for side in sides:
            found = medians[side.name, size]
            row[f"{side.name}_us"] = round(statistics.median(found), 2)
            row[f"{side.name}_range_us"] = [min(found), max(found)]
            busbw = 2 * (ranks - 1) / ranks * size / (statistics.median(found) * 1000)
            row[f"{side.name}_busbw_GBps"] = round(busbw, 6)
        ratios = sorted(
            theirs / own
            for own, theirs in zip(medians[OURS, size], medians[GLOO, size], strict=True)
        )
        row["speedup"] = round(statistics.median(ratios), 3)
        row["speedup_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
        row["inplace"] = {OURS: args.inplace, GLOO: True}
        row["rounds"] = args.rounds
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'ranks':>5} {'bytes':>10} {'collectives us':>15} {'gloo us':>12} {'busbw GB/s':>11} "
        f"{'gloo GB/s':>10} {'speed-up':>9}  (range over the rounds)"
    )
    for row in rows:
        low, high = row["speedup_range"]
        print(
            f"{row['ranks']:>5} {row['bytes']:>10} {row['collectives_us']:>15.1f} "
            f"{row['gloo_us']:>12.1f} {row['collectives_busbw_GBps']:>11.3f} "
            f"{row['gloo_busbw_GBps']:>10.3f} {row['speedup']:>9.2f}  ({low:.2f} to {high:.2f})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="All-reduce of collectives beside that of gloo.")
    parser.add_argument("--ranks", type=bench.sizes, default=[2, 4], help="default: 2,4")
    parser.add_argument(
        "--bytes",
        type=bench.sizes,
        default=[4, 16384, 1 << 20, 16 << 20, 64 << 20],
        help="default: 4,16K,1M,16M,64M",
    )
    parser.add_argument("--rounds", type=bench.positive, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="per measurement (default: %(default)s)"
    )
    parser.add_argument("--inplace", action="store_true", help="collectives in place as well")
    parser.add_argument("--json", action="store_true", help="one object a line instead of a table")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print(NO_TORCH, file=sys.stderr)
        return 1
    try:
        rows = [row for ranks in args.ranks for row in compare(args, ranks)]
    except CollectivesError as error:
        print(f"compare_gloo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        place = "in place" if args.inplace else "out of place, into an array allocated before"
        print(f"float32 sums; collectives: numpy, {place}; gloo: torch, in place")
        print_table(rows)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        _launch.work(gloo_worker)
    else:
        sys.exit(main())
