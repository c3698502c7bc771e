"""A soak: three real processes call random operations over TCP, for as long as they are told to.

    make soak                                      ten minutes
    make soak SOAK="--seconds 60"
    make soak SOAK="--seed 7 --first 12 --rounds 1"    one round of a run that failed, again
    make soak SOAK="--only lanes messages"

Goal: what is rare shows in the end, and nothing grows. Method: all peers draw the same rounds of
scenes (tests/soak/scenes.py) from a printed seed and compare every result with numpy's; after each
round memory, descriptors and threads of all processes, the coordinator's too, are noted. It ends
with one line, and with 1 if anything was wrong.

When things are flat: the medians of two windows of the run are compared, the first after a warm-up
in which caches, arenas and buffers reach their size, and the last. Medians, because a round ends
with more or less garbage. Descriptors and threads must be equal. Memory may grow by GROWTH_MIB: at
800 operations a second, which is what two cores do, one leaked allocation of 64 bytes per operation
makes 15 MiB between the two windows of ten minutes. Without a leak they were 1 to 3 MiB apart: the
allocator's noise. In a minute the bound finds what leaks 400 bytes per operation.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import statistics
import sys
import time
from typing import Any, NoReturn

import scenes
from calls import SIZE
from cluster import Call, Cluster

from collectives.coordinator.process import CoordinatorProcess

SCENES = [scene.__name__ for scene in scenes.SCENES]
SECONDS = 600.0
TOLD_EVERY_S = 10.0
WARM_UP = 0.25  # of the rounds
WINDOW = 0.25  # of the rounds
SAMPLES_MIN = 8  # in each window, or there is no verdict
GROWTH_MIB = 8.0

Usage = dict[str, float]


class Failed(Exception):
    """Something was wrong; the text says what."""


class Soak:
    """One run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.round = args.first
        self.operations = 0
        self.since = time.monotonic()
        self.samples: list[dict[str, Usage]] = []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.since

    def run(self) -> str:
        """Returns the verdict on what grew. Raises Failed, or what went wrong in a peer."""
        args = self.args
        with CoordinatorProcess() as coordinator, Cluster(url=coordinator.url) as cluster:
            assert coordinator.process is not None
            peers = cluster.add(SIZE)
            calls = [
                peer.start(scenes.connect, coordinator.url, rank) for rank, peer in enumerate(peers)
            ]
            self.wait(calls)
            self.since = told = time.monotonic()
            while self.elapsed < args.seconds and self.round - args.first < args.rounds:
                calls = cluster.start(
                    scenes.play, args.seed, self.round, args.scenes, args.only, args.plant
                )
                results = self.wait(calls)
                counts = {count for count, _ in results}
                if len(counts) > 1:
                    raise Failed(f"the peers do not agree on what there was to do: {counts}")
                self.operations += counts.pop()
                self.round += 1
                usages = {f"peer {i}": usage for i, (_, usage) in enumerate(results)}
                usages["coordinator"] = scenes.usage(coordinator.process.pid)
                self.samples.append(usages)
                if time.monotonic() - told >= TOLD_EVERY_S:
                    told = time.monotonic()
                    print(self.state(), flush=True)
            self.wait(cluster.start(scenes.disconnect))
        return self.verdict()

    def wait(self, calls: list[Call]) -> list[Any]:
        """The results. Raises as soon as one peer fails: the others may wait for it forever."""
        deadline = time.monotonic() + self.args.limit
        while not all(call.over for call in calls):
            for call in calls:
                if call.over:
                    call.result(0)
                    continue
                try:
                    call.peer.pump(0.02)
                except (EOFError, OSError):
                    raise Failed(f"{call.peer} died") from None
            if time.monotonic() > deadline:
                for call in calls:
                    if not call.over:
                        call.peer.show_where_it_hangs()
                raise Failed(f"it takes longer than {self.args.limit:g} s: something hangs")
        return [call.result(0) for call in calls]

    # ---- what is told ----------------------------------------------------------------------------

    def state(self) -> str:
        last = self.samples[-1]
        memory = " ".join(f"{usage['MiB']:.0f}" for usage in last.values())
        descriptors = " ".join(f"{usage['descriptors']:.0f}" for usage in last.values())
        return (
            f"{self.elapsed:6.0f} s  {self.round} rounds, {self.operations} operations "
            f"({self.operations / self.elapsed:.0f}/s); MiB {memory}; descriptors {descriptors}"
        )

    def verdict(self) -> str:
        grown = growth(self.samples)
        if grown is None:
            return "too short to tell what grows"
        told = []
        for what, bound in (("descriptors", 0.0), ("threads", 0.0), ("MiB", GROWTH_MIB)):
            process, by = max(grown[what].items(), key=lambda item: item[1])
            if by > bound:
                raise Failed(f"{process} grew by {by:+.1f} {what}; {bound:g} are allowed")
            told.append(f"{by:+.1f} {what}")
        return f"growth at most {', '.join(told)}"


def growth(samples: list[dict[str, Usage]]) -> dict[str, dict[str, float]] | None:
    """Of samples, one for each round: by how much the median of the last window is above that of
    the first, by what and process. None if there are too few samples."""
    width = int(len(samples) * WINDOW)
    if width < SAMPLES_MIN:
        return None
    warm = int(len(samples) * WARM_UP)
    first, last = samples[warm : warm + width], samples[-width:]

    def median(window: list[dict[str, Usage]], process: str, what: str) -> float:
        return statistics.median(usages[process][what] for usages in window)

    return {
        what: {
            process: median(last, process, what) - median(first, process, what)
            for process in samples[-1]
        }
        for what in ("MiB", "descriptors", "threads")
    }


def stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)  # through all `with` statements, which end what was started


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=SECONDS, help="default: %(default)g")
    add("--seed", type=int, help="default: any; it is printed")
    add("--first", type=int, default=0, help="round to begin with (%(default)s)")
    add("--rounds", type=int, default=1 << 62, help="default: as time allows")
    add("--scenes", type=int, default=16, help="of a round (%(default)s)")
    add("--limit", type=float, default=120.0, help="of a round, s (%(default)g)")
    add("--only", nargs="+", choices=SCENES, default=SCENES, help="scenes to draw from")
    # For its tests: a fault at one peer, in every round but the first.
    add("--plant", choices=scenes.PLANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(2**32)
    return args


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    signal.signal(signal.SIGTERM, stop)
    print(f"soak: seed {args.seed}, {SIZE} peers over TCP, {args.seconds:g} s", flush=True)
    soak = Soak(args)
    try:
        verdict = soak.run()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        trace = getattr(error, "remote_traceback", "")
        print(f"{trace}\nsoak FAILED in round {soak.round}: {type(error).__name__}: {error}")
        same = f"--seed {args.seed} --scenes {args.scenes}"
        if args.only != SCENES:
            same += f" --only {' '.join(args.only)}"
        count = soak.round - args.first + 1
        print(f'that round again:  make soak SOAK="{same} --first {soak.round} --rounds 1"')
        print(f'all up to there:   make soak SOAK="{same} --first {args.first} --rounds {count}"')
        return 1
    rate = soak.operations / soak.elapsed
    print(
        f"soak passed: {soak.round - args.first} rounds, {soak.operations} operations in "
        f"{soak.elapsed:.0f} s ({rate:.0f}/s), every result right; {verdict}; seed {args.seed}"
    )
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
