"""Every collective of this library beside Gloo, Open MPI and MPICH, measured in one run.

    make bench                                        everything, into docs/performance.md
    make bench BENCH="--ranks 2 --ops all_reduce --bytes 4,1M --rounds 2"      prints tables

Two measurements that are minutes apart say little on a machine that does other things as well. So
the ranks of all libraries are started once and stay connected, and the measurements alternate: for
each operation and size first one library, then the next, and in the next round the other way round.
Who is not being measured sleeps. All are timed alike: the result is checked, then repetitions fill
the same time, with a barrier before each batch of them (before each, where there is a root), and a
repetition takes as long as at its slowest rank.

Ours runs from Python, out of place and, where there is such a form, in place with the input
preserved; and from C without Python. The others run as they are fastest: MPI from C, and in place
where that is possible. All use TCP over loopback, float32, and one thread. A pass is made with each
of the named congestion controls as what new sockets begin with.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import numpy as np
import report
from bench_ranks import START_S, Failed, Message, Ranks
from environments import LIBRARIES, Absent, Environment

from collectives.cli import _launch, bench, bench_trial
from collectives.cli.progress import Progress
from collectives.coordinator.process import CoordinatorProcess
from collectives.errors import CollectivesError

OPERATIONS = tuple(bench_trial.OPERATIONS)
BYTES = "4,16K,1M,16M,64M,256M"
WARM_UP_SHARE = 0.1  # of the time for a measurement
WARM_UP_MAX = 500
MEASURED_MIN = 2
FAILURES_MAX = 3  # of one library at one number of ranks; then it is left alone
AS_IT_IS = "system"


@dataclass(frozen=True)
class Contender:
    """One column of the tables."""

    name: str
    library: str
    in_place: bool

    def takes_part(self, op: str, ranks: int) -> bool:
        """Ours in place only where that is another form; messages only between two."""
        if op == "send_recv" and ranks != 2:
            return False
        return self.name != "collectives_inplace" or op in bench_trial.IN_PLACE

    def place(self, op: str) -> str:
        return "in" if self.in_place and op in bench_trial.IN_PLACE else "out"


CONTENDERS = (
    Contender("collectives", "collectives", False),
    Contender("collectives_inplace", "collectives", True),
    Contender("core", "core", False),
    Contender("gloo", "gloo", True),
    Contender("openmpi", "openmpi", True),
    Contender("mpich", "mpich", True),
)


# ---- one measurement ----------------------------------------------------------------------------


def iterations(once_us: float, seconds: float, least: int, most: int) -> int:
    """How often to repeat what takes `once_us` to fill about `seconds`."""
    return int(min(max(seconds * 1e6 / max(once_us, 1e-3), least), most))


def slowest(answers: Sequence[Message]) -> Any:
    """The time of each repetition at its slowest rank, in microseconds."""
    return np.array([answer["us"] for answer in answers]).max(axis=0)


def measure(
    ask: Callable[[str], list[Message]], op: str, place: str, size_bytes: int, seconds: float
) -> dict[str, Any]:
    """Checks, warms up, repeats. Returns the figures, or why there are none under "absent"."""

    def run(count: int) -> list[Message]:
        return ask(f"run {count} {bench_trial.step_for(op, count)}")

    answers = ask(f"case {op} {place} {size_bytes}")
    first = answers[0]
    if "absent" in first:
        return {"absent": first["absent"]}
    once = slowest(answers)[0]
    if once < seconds * 1e6:  # else that was warm-up enough
        share = WARM_UP_SHARE * seconds
        once = np.median(slowest(run(iterations(once, share, 1, WARM_UP_MAX))))
    count = iterations(once, seconds, MEASURED_MIN, bench_trial.ITERATIONS_MAX)
    answers = run(count)
    ask("rest")
    times = np.array([answer["us"] for answer in answers])
    return {
        **bench_trial.figures(op, len(answers), first["bytes"], times),
        "actual_bytes": first["bytes"],
        "iterations": count,
        "algorithm": first["notes"],
    }


# ---- the libraries ------------------------------------------------------------------------------


class Team:
    """One library's ranks. They start at the first measurement, and again after a failure."""

    def __init__(self, environment: Environment, ranks: int, env: dict[str, str]) -> None:
        self.library = environment.library
        self.environment = environment
        self.count = ranks
        self.env = {**env, **environments.ENV[self.library]}
        self.failures = 0
        self._ranks: Ranks | None = None
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Returns when the ranks are connected with each other. Raises Failed."""
        stack = self._stack
        word = ""
        if self.library == "collectives":
            word = stack.enter_context(CoordinatorProcess()).url
        elif self.library == "gloo":
            folder = tempfile.TemporaryDirectory(prefix="bench-")
            word = str(Path(stack.enter_context(folder)) / "store")
        commands = self.environment.commands(self.count, word)
        ranks = stack.enter_context(Ranks(self.library, self.count, commands, self.env))
        addresses = ranks.start()
        words = [secrets.token_hex(16), *addresses] if self.library == "core" else []
        ranks.ask(" ".join(["start", *words]), START_S)
        self._ranks = ranks

    def measure(
        self, op: str, place: str, size_bytes: int, seconds: float, patience: float
    ) -> dict[str, Any]:
        if self.failures >= FAILURES_MAX:
            return {"absent": f"{self.library} failed {self.failures} times with these ranks"}
        try:
            if self._ranks is None:
                self.start()
            assert self._ranks is not None
            ranks = self._ranks
            return measure(lambda line: ranks.ask(line, patience), op, place, size_bytes, seconds)
        except (Failed, CollectivesError) as error:
            self.failures += 1
            print(error, file=sys.stderr)
            self.stop()
            return {"absent": f"failed: {str(error).splitlines()[0]}", "failed": True}

    def stop(self) -> None:
        self._ranks = None
        self._stack.close()


@contextlib.contextmanager
def teams(found: Sequence[Environment], ranks: int, congestion: str) -> Iterator[dict[str, Team]]:
    env = dict(_launch.ONE_THREAD)
    if congestion != AS_IT_IS:
        shim = environments.congestion_shim()
        env |= {"LD_PRELOAD": str(shim), "COLLECTIVES_BENCH_CONGESTION": congestion}
    with contextlib.ExitStack() as stack:
        made = {}
        for environment in found:
            made[environment.library] = team = Team(environment, ranks, env)
            stack.callback(team.stop)
        yield made


def allowed(congestion: str) -> str | None:
    """Why sockets cannot begin with it here, or None."""
    if congestion == AS_IT_IS:
        return None
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        environments.congestion_shim()
    except (OSError, Absent) as error:
        return f"no socket can begin with {congestion} here: {error}"
    return None


# ---- the run ------------------------------------------------------------------------------------


def ordered(contenders: Sequence[Contender], number: int) -> Sequence[Contender]:
    """Who comes when in a round: every second one goes backwards."""
    return contenders if number % 2 == 0 else contenders[::-1]


def rows(
    args: argparse.Namespace, found: Sequence[Environment], ranks: int, congestion: str
) -> Iterator[dict[str, Any]]:
    """Every measurement with so many ranks, as it is made. What failed once is not tried again."""
    libraries = {environment.library for environment in found}
    present = [contender for contender in CONTENDERS if contender.library in libraries]
    failed: set[tuple[str, int, str]] = set()
    with teams(found, ranks, congestion) as made:
        for number in range(args.rounds):
            print(f"{congestion}, {ranks} ranks, round {number + 1}", file=sys.stderr)
            for op in args.ops:
                for size in [0] if op == "barrier" else args.bytes:
                    for contender in ordered(present, number):
                        cell = op, size, contender.name
                        if cell in failed or not contender.takes_part(op, ranks):
                            continue
                        with Progress(f"{op}, {size} bytes, {contender.name}"):
                            result = made[contender.library].measure(
                                op, contender.place(op), size, args.seconds, args.patience
                            )
                        if "absent" in result:
                            failed.add(cell)
                        yield {
                            "congestion": congestion,
                            "ranks": ranks,
                            "op": op,
                            "bytes": size,
                            "contender": contender.name,
                            "round": number,
                            **result,
                        }


def machine() -> dict[str, Any]:
    """Where and when: the first line of the results."""
    names = (
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpus": os.cpu_count(),
        "cpu": next(names, platform.machine()),
        "kernel": platform.release(),
        "congestion": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "notes": [],
        "versions": {},
    }


def one_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in names:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(names)}")
        return words

    return chosen


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Collectives beside other libraries, in one run.")
    add = parser.add_argument
    add("--ranks", type=bench.sizes, default=[2, 4, 8], help="default: 2,4,8")
    add("--bytes", type=bench.sizes, default=bench.sizes(BYTES), help=f"default: {BYTES}")
    add("--ops", type=one_of(OPERATIONS), default=OPERATIONS, help=", ".join(OPERATIONS))
    add("--libraries", type=one_of(LIBRARIES), default=LIBRARIES, help=", ".join(LIBRARIES))
    add(
        "--congestion",
        type=lambda text: text.split(","),
        default=["bbr", "cubic"],
        help=f"one pass with each; {AS_IT_IS}: one pass as the machine is (default: bbr,cubic)",
    )
    add("--rounds", type=bench.positive, default=3, help="default: %(default)s")
    add("--seconds", type=float, default=0.3, help="of one measurement (default: %(default)s)")
    add(
        "--patience",
        type=float,
        default=60.0,
        help="seconds after which a measurement has failed (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="where to keep what was measured, line by line")
    add("--docs", action="store_true", help="write tables and plots to docs/performance.md")
    return parser


def run(args: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> None:
    about = machine()
    found = []
    for library in args.libraries:
        try:
            with Progress(f"installing and building {library}"):
                found.append(environments.prepare(library))
            about["versions"][library] = found[-1].version
        except Absent as why:
            about["notes"].append(f"{library} is absent: {why}")
    passes = []
    for congestion in args.congestion:
        if why_not := allowed(congestion):
            about["notes"].append(why_not)
        else:
            passes.append(congestion)
    for note in about["notes"]:
        print(f"compare: {note}", file=sys.stderr)
    write({"machine": about})
    for congestion in passes:
        for ranks in args.ranks:
            for row in rows(args, found, ranks, congestion):
                write(row)


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(args.json.open("w")) if args.json else None

        def write(row: dict[str, Any]) -> None:
            results.append(row)
            if file is not None:
                print(json.dumps(row), file=file, flush=True)

        try:
            run(args, write)
        except KeyboardInterrupt:
            return 130
    found = report.Results(results)
    print(report.tables(found))
    if args.docs:
        report.write_docs(found)
    ours = ("collectives", "core")
    return int(any(row.get("failed") and row["contender"].startswith(ours) for row in results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends all ranks
    sys.exit(main())
