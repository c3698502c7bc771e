"""`collectives demo`: trains a small model with peers that come and go, and checks every bit.

Some processes train together, data-parallel; one more joins in the middle, and one of the first
leaves later. Afterwards one process computes the same training alone, from the record of who was a
member when, and the weights must be the same bits. What the peers do is in `demo_worker`, what they
train in `demo_model`; this is the command: it starts them, shows how it goes, and judges.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time
from dataclasses import dataclass, field

from collectives.cli import _launch
from collectives.cli.demo_worker import Schedule
from collectives.cli.progress import Progress
from collectives.coordinator.process import CoordinatorProcess

WORKER = "collectives.cli.demo_worker"
SILENCE = 90.0  # seconds without a word from any worker: something hangs
FALL = 0.9  # of the first held-out loss: what the last one must be below
LEAVER = 1  # the index of the peer that leaves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=360, help="of training (%(default)s)")
    parser.add_argument("--peers", type=int, default=4, help="to begin with (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and batches (%(default)s)")
    # For the tests: flips one bit of one member's weights, which the checks must find.
    parser.add_argument("--corrupt-rank", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if not 20 <= args.steps <= 1_000_000:
        raise ValueError(f"--steps must be 20 to 1000000, not {args.steps}")
    if not 2 <= args.peers <= 64:
        raise ValueError(f"--peers must be 2 to 64, not {args.peers}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, and is {args.seed}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="collectives-demo-") as folder:
        demo = Demo(args, pathlib.Path(folder))
        with CoordinatorProcess() as coordinator:
            demo.train(coordinator)
        demo.compute_reference()
        checks = demo.checks()
    print()
    for passed, text in checks:
        print(f"  {'ok    ' if passed else 'FAILED'}  {text}")
    good = all(passed for passed, _ in checks)
    print(f"{'all checks passed' if good else 'the demo FAILED'}, {time.monotonic() - start:.1f} s")
    return 0 if good else 1


@dataclass
class Record:
    """What one peer told of itself."""

    name: str
    file: pathlib.Path
    places: list[tuple[int, int, int]] = field(default_factory=list)  # from step, rank, size
    joined: tuple[int, str] | None = None  # step and digest, and so below
    left: tuple[int, str] | None = None
    end: tuple[int, str] | None = None
    gathered: list[str] = field(default_factory=list)

    def spans(self) -> list[tuple[int, int, int, int]]:
        """From step, to step, rank, size: where it was when."""
        last = self.left or self.end
        ends = [place[0] for place in self.places[1:]] + [0 if last is None else last[0]]
        return [(*place[:1], end, *place[1:]) for place, end in zip(self.places, ends, strict=True)]


class Demo:
    """One run of the demo."""

    def __init__(self, args: argparse.Namespace, folder: pathlib.Path) -> None:
        self.args = args
        self.folder = folder
        self.records = [
            Record(f"peer-{i}", folder / f"peer-{i}.state") for i in range(args.peers + 1)
        ]
        self.newcomer = self.records[-1]
        self.leaver = self.records[LEAVER]
        self.connects = Schedule(args.steps).newcomer_connects
        self.reference: _launch.Message = {}
        self.reference_file = folder / "reference.state"
        self.progress = Progress(total=args.steps)

    # ---- the training -------------------------------------------------------------------------

    def train(self, coordinator: CoordinatorProcess) -> None:
        args = self.args
        print(
            f"{args.peers} peers train a character model for {args.steps} steps; "
            f"one joins, one leaves\n\n{'step':>6} {'epoch':>6} {'members':>8} {'loss':>7} "
            f"{'tokens/s':>10}",
            flush=True,
        )
        with _launch.Workers() as workers, self.progress:
            by_name: dict[str, _launch.Worker] = {}
            for index, record in enumerate(self.records):
                spec = self._spec(coordinator.url, index, record)
                by_name[record.name] = workers.start(record.name, WORKER, spec, _launch.ONE_THREAD)
            for record in self.records[:-1]:
                by_name[record.name].send({"go": True})
            newcomer = by_name[self.newcomer.name]
            running = len(by_name)
            while running:
                worker, message = workers.receive(SILENCE, lambda: _runs(coordinator))
                if message is None:
                    running -= 1
                    continue
                self._take(worker.name, message)
                if message["event"] == "step" and message["step"] >= self.connects:
                    newcomer.send({"go": True})  # Later ones are not read.

    def _spec(self, url: str, index: int, record: Record) -> _launch.Message:
        args = self.args
        return {
            "role": "peer",
            "url": url,
            "name": record.name,
            "index": index,
            "peers": args.peers,
            "steps": args.steps,
            "seed": args.seed,
            "corrupt_rank": args.corrupt_rank,
            "newcomer": record is self.newcomer,
            "leaver": record is self.leaver,
            "file": str(record.file),
        }

    def _take(self, name: str, message: _launch.Message) -> None:
        record = next(record for record in self.records if record.name == name)
        event = message["event"]
        if event == "step":
            self.progress.line(
                f"{message['step']:>6} {message['epoch']:>6} {message['size']:>8} "
                f"{message['loss']:>7.3f} {message['tokens_per_s']:>10.0f}"
            )
        elif event == "progress":
            self.progress.show("steps", message["step"])
        elif event == "place":
            record.places.append((message["step"], message["rank"], message["size"]))
        elif event == "joined":
            record.joined = message["step"], message["digest"]
            self.progress.line(f"       {name} joins: it has the state of step {message['step']}")
        elif event == "left":
            record.left = message["step"], message["digest"]
            self.progress.line(f"       {name} leaves after {message['step']} steps")
        elif event == "end":
            record.end = message["step"], message["digest"]
            record.gathered = message["gathered"]

    # ---- the reference ------------------------------------------------------------------------

    def sizes(self) -> list[int]:
        """The number of members of each step. Raises ValueError if the peers' records contradict
        each other: in every step each rank must have been exactly one peer's."""
        sizes = []
        for step in range(self.args.steps):
            here = [
                (rank, size)
                for record in self.records
                for begin, end, rank, size in record.spans()
                if begin <= step < end
            ]
            if sorted(here) != [(rank, len(here)) for rank in range(len(here))] or not here:
                raise ValueError(f"the peers do not agree on who was a member in step {step}")
            sizes.append(len(here))
        return sizes

    def compute_reference(self) -> None:
        print("       computing the same in one process ...", flush=True)
        marks = [self.newcomer.joined, self.leaver.left]
        spec = {
            "role": "reference",
            "seed": self.args.seed,
            "sizes": self.sizes(),
            "digest_steps": [mark[0] for mark in marks if mark is not None],
            "file": str(self.reference_file),
        }
        with _launch.Workers() as workers, self.progress:
            workers.start("reference", WORKER, spec, _launch.ONE_THREAD)
            while True:
                # Silence is no sign of a hang here: it says nothing until it is done.
                _, message = workers.receive(SILENCE + self.args.steps)
                if message is None:
                    return
                if message["event"] == "progress":
                    self.progress.show("steps in one process", message["step"])
                else:
                    self.reference = message

    # ---- the checks ---------------------------------------------------------------------------

    def checks(self) -> list[tuple[bool, str]]:
        """(passed, text) of each."""
        steps = self.args.steps
        before, after = self.reference["held_out"]
        digests = {int(step): digest for step, digest in self.reference["digests"].items()}
        final = [record for record in self.records if record.left is None]
        hashes = {record.end[1] for record in final if record.end is not None}
        rows = [sorted(set(record.gathered)) for record in final]
        agreed = all(row == sorted(hashes) for row in rows) and len(hashes) == 1
        same = [record.name for record in final if self._equals_reference(record)]
        joined, left = self.newcomer.joined, self.leaver.left
        stayed = 0 if joined is None or self.newcomer.end is None else steps - joined[0]
        count = self.reference["count"]
        return [
            (after < FALL * before, f"held-out loss fell from {before:.3f} to {after:.3f}"),
            (
                5 * stayed >= steps,
                f"{self.newcomer.name} joined and took part in {stayed} of {steps} steps",
            ),
            (left is not None, f"{self.leaver.name} left"),
            (
                joined is not None
                and left is not None
                and [digests[joined[0]], digests[left[0]]] == [joined[1], left[1]],
                "what the newcomer was given, and what the leaver had, equal the reference",
            ),
            (
                agreed,
                f"the {len(final)} members' hashes are "
                + (f"one: {min(hashes)}" if agreed else f"not one: {', '.join(sorted(hashes))}"),
            ),
            (
                len(same) == len(final),
                f"all {count} weights and both moments are the bits of the one-process reference, "
                f"at {', '.join(same) or 'nobody'}",
            ),
        ]

    def _equals_reference(self, record: Record) -> bool:
        return record.file.read_bytes() == self.reference_file.read_bytes()


def _runs(coordinator: CoordinatorProcess) -> bool:
    return coordinator.process is not None and coordinator.process.poll() is None
