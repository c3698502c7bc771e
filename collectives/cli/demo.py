"""`collectives demo`: trains a small model while peers and coordinator come, go and are killed, and
checks every bit.

Some processes train together, data-parallel. The coordinator is killed and, some steps later, goes
on from its journal; one more peer joins; one is killed in the middle of an all_reduce; one leaves.
Afterwards one process computes the same training alone, from the record of who contributed to which
step, and the weights must be the same bits. What the peers do is in `demo_worker`, what they told
in `demo_record`, what they train in `demo_model`; this is the command: it starts them, kills, shows
how it goes, and judges.
"""

from __future__ import annotations

import argparse
import pathlib
import signal
import tempfile
import time

from collectives.cli import _launch
from collectives.cli.demo_record import Contributors, Place, Record, contributors
from collectives.cli.demo_worker import Schedule
from collectives.cli.progress import Progress
from collectives.coordinator.process import CoordinatorProcess

WORKER = "collectives.cli.demo_worker"
SILENCE = 90.0  # seconds without a word from any worker: something hangs
FALL = 0.9  # of the first held-out loss: what the last one must be below
LEAVER = 1  # the index of the peer that leaves
VICTIM = 2  # of the one that is killed, if there are more than this to begin with


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
        demo.train()
        demo.compute_reference()
        checks = demo.checks()
    print()
    for passed, text in checks:
        print(f"  {'ok    ' if passed else 'FAILED'}  {text}")
    good = all(passed for passed, _ in checks)
    print(f"{'all checks passed' if good else 'the demo FAILED'}, {time.monotonic() - start:.1f} s")
    return 0 if good else 1


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
        self.victim = self.records[VICTIM] if args.peers > VICTIM else None
        self.schedule = Schedule(args.steps)
        self.coordinator = CoordinatorProcess(journal=folder / "journal")
        self.killed = False  # the coordinator
        self.outage: list[int] = []  # the steps at which it was killed and started again
        self.contributors: list[Contributors] = []
        self.reference: _launch.Message = {}
        self.reference_file = folder / "reference.state"
        self.progress = Progress(total=args.steps)

    # ---- the training -------------------------------------------------------------------------

    def train(self) -> None:
        args = self.args
        kill = ", one is killed" if self.victim else ""
        print(
            f"{args.peers} peers train a character model for {args.steps} steps;\n"
            f"one joins, one leaves{kill}, and the coordinator is killed and started again"
        )
        if not self.victim:
            print(f"(a peer is killed, too, with --peers {VICTIM + 1} or more)")
        print(f"\n{'step':>6} {'epoch':>6} {'members':>8} {'loss':>7} {'tokens/s':>10}", flush=True)
        with self.coordinator, _launch.Workers() as workers, self.progress:
            by_name: dict[str, _launch.Worker] = {}
            for index, record in enumerate(self.records):
                spec = self._spec(index, record)
                by_name[record.name] = workers.start(record.name, WORKER, spec, _launch.ONE_THREAD)
            for record in self.records[:-1]:
                by_name[record.name].send({"go": True})
            running = len(by_name)
            while running:
                worker, message = workers.receive(SILENCE, self._coordinated)
                if message is None:
                    running -= 1
                elif message["event"] != "call":
                    self._take(worker, message)
                elif message["step"] == self.schedule.coordinator_dies:
                    self._kill_coordinator(message["step"])
                    worker.send({"go": True})
                else:
                    self._start_coordinator(message["step"])
                    by_name[self.newcomer.name].send({"go": True})

    def _coordinated(self) -> bool:
        return self.coordinator.running or len(self.outage) == 1

    def _kill_coordinator(self, step: int) -> None:
        self.killed = self.coordinator.kill() == -signal.SIGKILL
        self.outage = [step]
        self._tell(f"the coordinator is killed after {step} steps")

    def _start_coordinator(self, step: int) -> None:
        self.coordinator.start()
        self.outage.append(step)
        self._tell(
            f"the coordinator is started again after {step} steps and goes on from its journal"
        )

    def _tell(self, text: str) -> None:
        self.progress.line(f"       {text}")

    def _spec(self, index: int, record: Record) -> _launch.Message:
        args = self.args
        return {
            "role": "peer",
            "url": self.coordinator.url,
            "name": record.name,
            "index": index,
            "peers": args.peers,
            "steps": args.steps,
            "seed": args.seed,
            "corrupt_rank": args.corrupt_rank,
            "newcomer": record is self.newcomer,
            "leaver": record is self.leaver,
            "victim": record is self.victim,
            "file": str(record.file),
        }

    def _take(self, worker: _launch.Worker, message: _launch.Message) -> None:
        record = next(record for record in self.records if record.name == worker.name)
        event, step = message["event"], message.get("step", 0)
        if event == "step":
            self.progress.line(
                f"{step:>6} {message['epoch']:>6} {message['members']:>8} "
                f"{message['loss']:>7.3f} {message['tokens_per_s']:>10.0f}"
            )
        elif event == "progress":
            self.progress.show("steps", step)
        elif event == "place":
            self._take_place(record, message)
        elif event == "joined":
            record.joined = step, message["digest"]
            self._tell(f"{record.name} joins: it has the state of step {step}")
        elif event == "dies":
            record.killed = step
            worker.expected_exit = -signal.SIGKILL
            self._tell(f"{record.name} is killed in the middle of step {step + 1}")
        elif event == "left":
            record.left = step, message["digest"]
            self._tell(f"{record.name} leaves after {step} steps")
        elif event == "end":
            record.end = step, message["digest"]
            record.gathered = message["gathered"]

    def _take_place(self, record: Record, message: _launch.Message) -> None:
        step, missing = message["step"], tuple(message["missing"])
        had_holes = bool(record.places and record.places[-1].missing)
        record.places.append(Place(step, message["rank"], message["size"], missing))
        if message["rank"] != 0:
            return
        if missing:
            self._tell(
                f"step {step + 1} is finished among {message['size'] - len(missing)} of "
                f"{message['size']}, at attempt {message['attempts']}, "
                f"{1000 * message['lost_s']:.0f} ms lost"
            )
        elif had_holes:
            self._tell(f"the hole is closed from step {step + 1} on")

    # ---- the reference ------------------------------------------------------------------------

    def compute_reference(self) -> None:
        print("       computing the same in one process ...", flush=True)
        self.contributors = contributors(self.records, self.args.steps)
        marks = [self.newcomer.joined, self.leaver.left]
        spec = {
            "role": "reference",
            "seed": self.args.seed,
            "contributors": self.contributors,
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
        final = [record for record in self.records if record.survived]
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
            self._check_coordinator(),
            *self._check_victim(),
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

    def _check_coordinator(self) -> tuple[bool, str]:
        """That it was away, and that what needs it came later: the newcomer and the death."""
        away, back = self.outage
        later = [self.newcomer.joined[0] if self.newcomer.joined else 0]
        text = f"let {self.newcomer.name} in"
        if self.victim is not None:
            later.append(self.victim.killed or 0)
            text += f" and found {self.victim.name} dead"
        return (
            self.killed and away < back <= min(later),
            f"the coordinator was killed after {away} steps; {back - away} steps went on without "
            f"it; started again, it {text}",
        )

    def _check_victim(self) -> list[tuple[bool, str]]:
        """That its rank was a hole from its death to the next boundary, and there was no other. If
        its part still counts, a boundary may come and go before anybody misses it."""
        victim = self.victim
        if victim is None:
            return []
        if victim.killed is None:
            return [(False, f"{victim.name} was killed")]
        step = victim.killed
        ranks = self.contributors[step][1]
        counts = "with" if victim.places[-1].rank in ranks else "without"
        holes = [s for s, (size, ranks) in enumerate(self.contributors) if len(ranks) < size]
        first = min(holes, default=step)
        closed = next(s for s in range(first + 1, self.args.steps) if self.schedule.is_boundary(s))
        return [
            (
                first in (step, step + 1) and holes in ([], list(range(first, closed))),
                f"{victim.name} was killed in the middle of step {step + 1}: its survivors "
                f"finished that step among {len(ranks)}, {counts} its part, and closed the hole "
                f"before step {closed + 1}",
            )
        ]

    def _equals_reference(self, record: Record) -> bool:
        return record.file.read_bytes() == self.reference_file.read_bytes()
