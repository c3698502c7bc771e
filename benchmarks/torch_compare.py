"""The torch.distributed backend beside Gloo, in one run and in turns.

    make bench-torch                     all of it, some minutes; needs torch in the environment
    make bench-torch TORCH="--rounds 3"

Both backends live in the same processes, a group each, and take turns within each round, every
second round backwards. A time is the median over rounds of that of the slowest rank; a speed-up is
the median of the rounds' ratios. Results of each size are checked once a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environments
from recovery_report import table
from report import size_text, time_text

from collectives.cli import bench
from collectives.cli._launch import ONE_THREAD, Worker, Workers
from collectives.cli.progress import Progress
from collectives.coordinator.process import CoordinatorProcess

LIMIT_S = 300
# How often in a round: for about a tenth of a second each.
SIZES = {
    4: 2000,
    1 << 10: 1000,
    16 << 10: 500,
    256 << 10: 100,
    1 << 20: 40,
    16 << 20: 4,
    64 << 20: 1,
}
BOTH = ("collectives", "gloo")
CALLS = ("torch", "torch, async", "numpy")
Rounds = list[dict[str, float]]


class Group:
    """Ranks that are asked, all of them at once."""

    def __init__(self, workers: Workers, ranks: int, folder: Path, env: dict[str, str]) -> None:
        script = str(Path(__file__).with_name("torch_rank.py"))
        self._workers = workers
        self._all: list[Worker] = []
        for rank in range(ranks):
            spec = {"rank": rank, "ranks": ranks, "store": str(folder / f"store{ranks}")}
            self._all.append(workers.start(f"rank {rank} of {ranks}", script, spec, env))
        for _ in self._all:
            workers.receive(LIMIT_S)

    def ask(self, what: str, **arguments: Any) -> dict[str, float]:
        """The slowest rank's times."""
        for worker in self._all:
            worker.send({"what": what, **arguments})
        answers = []
        for _ in self._all:
            _, message = self._workers.receive(LIMIT_S)
            assert message is not None
            answers.append(message["answer"])
        return {name: max(answer[name] for answer in answers) for name in answers[0]}

    def end(self) -> None:
        for worker in self._all:
            worker.send({"what": "end"})
        for _ in range(2 * len(self._all)):  # an answer, and the end
            self._workers.receive(LIMIT_S)


def measure(args: argparse.Namespace, env: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder, Workers() as workers:
            group = Group(workers, ranks, Path(folder), env)

            found[str(ranks)] = of_group(group, ranks, args)
            group.end()
    return found


def of_group(group: Group, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    def rounds(what: str, names: Sequence[str], **arguments: Any) -> Rounds:
        answers = []
        for number in range(args.rounds):
            with Progress(f"{ranks} ranks, {what} {arguments}: round {number + 1}"):
                order = list(names)[:: 1 if number % 2 == 0 else -1]
                answers.append(group.ask(what, order=order, **arguments))
        return answers

    found: dict[str, Any] = {"calls": {}, "all_reduce": {}}
    for size in (4, 16 << 10):
        names = (*CALLS, "gloo") if ranks == 1 else CALLS
        found["calls"][size] = rounds("calls", names, size_bytes=size, count=2000)
    if ranks > 1:
        for size, count in SIZES.items():
            found["all_reduce"][size] = rounds("all_reduce", BOTH, size_bytes=size, count=count)
        found["train"] = rounds("train", BOTH, steps=args.steps)
    return found


def middle(answers: Rounds, name: str) -> float:
    return statistics.median(answer[name] for answer in answers)


def ratio(answers: Rounds, name: str, by: str) -> str:
    """The median of the rounds' ratios, and their range."""
    found = sorted(answer[name] / answer[by] for answer in answers)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} – {found[-1]:.2f})"


def text(found: dict[str, Any]) -> str:
    against, calls = [], []
    for ranks, mine in found.items():
        cases = [(size_text(size), answers) for size, answers in mine["all_reduce"].items()]
        if "train" in mine:
            cases.append(("DDP step", mine["train"]))
        for what, answers in cases:
            times = [time_text(middle(answers, name)) for name in BOTH]
            against.append([ranks, what, *times, ratio(answers, "gloo", "collectives")])
        for size, answers in mine["calls"].items():
            own = [middle(answers, name) for name in CALLS]
            more = time_text(own[0] - own[2])
            gloo = time_text(middle(answers, "gloo")) if "gloo" in answers[0] else "–"
            calls.append([ranks, size_text(size), *map(time_text, own), more, gloo])
    return (
        table(["ranks", "all_reduce of", "collectives", "Gloo", "speed-up"], against)
        + "\n\n"
        + table(["ranks", "bytes", *CALLS, "torch above numpy", "Gloo"], calls)
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torch_compare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--ranks", type=bench.positive, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    add("--rounds", type=bench.positive, default=9, help="default: %(default)s")
    add("--steps", type=bench.positive, default=10, help="of training, in a round (%(default)s)")
    add("--congestion", help="TCP congestion control of all sockets; default: each its own")
    add("--json", type=Path, metavar="FILE", help="where to keep what was measured")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    env = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}
    if args.congestion:
        env["LD_PRELOAD"] = str(environments.congestion_shim())
        env["COLLECTIVES_BENCH_CONGESTION"] = args.congestion
    with CoordinatorProcess() as coordinator:
        found = measure(args, {**env, "COLLECTIVES_COORDINATOR": coordinator.url})
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
