"""`collectives bench`: how long an operation takes, and what bandwidth that makes.

It starts the ranks as processes of this machine, or joins ranks at other machines that were
started with the same arguments. Times are taken at every rank; a repetition counts as long as it
took at the slowest. Standard output holds results and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict

from collectives.cli import _launch
from collectives.cli.bench_trial import DTYPES, IN_PLACE, OPERATIONS
from collectives.cli.bench_worker import Case
from collectives.cli.progress import Progress
from collectives.coordinator.process import CoordinatorProcess
from collectives.work import ALGORITHMS

WORKER = "collectives.cli.bench_worker"
SILENCE = 300.0  # seconds that one measurement may take; nobody waits longer
_SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_COLUMNS = {  # name in the result: width, format
    "bytes": (11, "d"),
    "algorithm": (18, "s"),
    "iterations": (10, "d"),
    "median_us": (12, ".1f"),
    "p10_us": (12, ".1f"),
    "p90_us": (12, ".1f"),
    "algbw_GBps": (10, ".3f"),
    "busbw_GBps": (10, ".3f"),
    "rss_MiB": (8, ".1f"),
    "cpu_s": (7, ".2f"),
}


def sizes(text: str) -> list[int]:
    """``"4,16K,1M"`` as numbers of bytes."""
    found = []
    for word in text.upper().split(","):
        factor = _SUFFIXES.get(word[-1:], 1)
        digits = word[:-1] if factor > 1 else word
        if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) * factor <= 1 << 40:
            raise argparse.ArgumentTypeError(f"{word!r} is no size: they look like 4,16384,1M")
        found.append(int(digits) * factor)
    return found


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("op", choices=OPERATIONS, metavar="OP", help=", ".join(OPERATIONS))
    add("--ranks", type=positive, default=2, help="of the whole group (default: %(default)s)")
    add(
        "--bytes",
        type=sizes,
        default=[4, 16384, 1 << 20],
        metavar="LIST",
        help="of the largest array of any rank, such as an all_gather's output; K, M, G are 2**10, "
        "2**20, 2**30 "
        "(default: 4,16384,1M)",
    )
    add("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    add("--inplace", action="store_true", help="default: into another array, allocated before")
    add("--algorithm", choices=ALGORITHMS, default="auto", help="default: %(default)s")
    add("--iterations", type=positive, help="default: for about a second, 5 to 5000")
    add("--json", action="store_true", help="one object a line instead of a table")
    add("--streams", type=positive, help="bulk connections of two ranks")
    add("--segment-bytes", type=positive, help="payload of one frame")
    add("--transport", help="for data (default: tcp)")
    add(
        "--coordinator",
        metavar="URL",
        help="join the group of this coordinator, so that several machines measure together: start "
        "the same command on each; all of them print the results",
    )
    add("--group", default="bench", help="its name (default: %(default)s)")
    add("--local", type=positive, help="ranks to start here (default: all; 1 with --coordinator)")
    add("--bind", metavar="HOST", help="address that the ranks here listen on")
    add("--insecure", action="store_true", help="allow other addresses than loopback")


def run(args: argparse.Namespace) -> int:
    local = args.local or (1 if args.coordinator else args.ranks)
    if local > args.ranks or (not args.coordinator and local < args.ranks):
        raise ValueError(
            f"--local {local} does not fit --ranks {args.ranks}: without --coordinator all ranks "
            "are local, with it at most all"
        )
    if args.inplace and args.op not in IN_PLACE:
        raise ValueError(f"{args.op} has no in-place form here; these have: {', '.join(IN_PLACE)}")
    if args.op == "send_recv" and args.ranks != 2:
        raise ValueError(f"send_recv is between two ranks: --ranks 2, not {args.ranks}")
    cases = [
        Case(args.op, size, args.dtype, args.inplace, args.algorithm, args.iterations, seconds=1.0)
        for size in ([0] if args.op == "barrier" else args.bytes)
    ]
    with contextlib.ExitStack() as stack:
        url = args.coordinator or stack.enter_context(CoordinatorProcess()).url
        ranks = stack.enter_context(Ranks())
        with Progress(f"waiting for {args.ranks} ranks"):
            ranks.start(args, url, local)
        if not args.json:
            print_header(args)
        for done, case in enumerate(cases):
            with Progress(f"measuring {case.bytes} bytes", len(cases), done):
                result = ranks.measure(case)
            print_result(result, as_json=args.json)
        ranks.end()
    return 0


class Ranks:
    """Local ranks that measure case after case. Ends them, whatever happens."""

    def __init__(self) -> None:
        self._workers = _launch.Workers()
        self._ranks: list[_launch.Worker] = []

    def __enter__(self) -> Ranks:
        self._workers.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._workers.__exit__(*exc_info)

    def start(self, args: argparse.Namespace, url: str, local: int) -> None:
        """Returns when all ranks, those of other machines too, are members."""
        for i in range(local):
            spec = {
                "url": url,
                "group": args.group,
                "ranks": args.ranks,
                "rank": None if args.coordinator else i,
                "name": f"{socket.gethostname()}-{os.getpid()}-{i:04}"[:64],
                "transport": args.transport,
                "streams": args.streams,
                "segment_bytes": args.segment_bytes,
                "bind": args.bind,
                "insecure": args.insecure,
            }
            self.add(f"local rank {i}", WORKER, spec, _launch.ONE_THREAD)
        self.collect()

    def add(self, name: str, module: str, spec: _launch.Message, env: Mapping[str, str]) -> None:
        self._ranks.append(self._workers.start(name, module, spec, env))

    def measure(self, case: Case) -> _launch.Message:
        for rank in self._ranks:
            rank.send(asdict(case))
        return self.collect()[0]

    def end(self) -> None:
        """Lets them take leave of each other in order."""
        for rank in self._ranks:
            rank.send({"end": True})
        for _ in self._ranks:
            self._workers.receive(SILENCE)

    def collect(self, timeout: float = SILENCE) -> list[_launch.Message]:
        """A message of each."""
        found: dict[_launch.Worker, _launch.Message] = {}
        while len(found) < len(self._ranks):
            worker, message = self._workers.receive(timeout)
            if message is not None:
                found[worker] = message
        return [found[worker] for worker in self._ranks]


def print_header(args: argparse.Namespace) -> None:
    place = "in place" if args.inplace else "out of place"
    print(f"{args.op}, {args.ranks} ranks, {args.dtype}, {place}; GB = 1e9 bytes")
    heads = (f"{name.replace('GBps', 'GB/s'):>{width}}" for name, (width, _) in _COLUMNS.items())
    print(" ".join(heads), flush=True)


def print_result(result: _launch.Message, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        cells = (f"{result[name]:>{width}{form}}" for name, (width, form) in _COLUMNS.items())
        print(" ".join(cells), flush=True)
