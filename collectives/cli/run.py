"""`collectives run`: starts the ranks of a job on this host, and keeps it going when some die.

It has a coordinator, which it starts again when that crashes, and a store for torch.distributed.
docs/launch.md is its manual. Here are the command and its loop; what follows when a rank ends is
decided in `run_job`, a rank's process is `run_rank`, and if the launcher itself is killed,
`run_guard` ends what it has started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator

from collectives.cli.run_coordinator import KeptCoordinator
from collectives.cli.run_guard import Guard
from collectives.cli.run_job import Job, how
from collectives.cli.run_rank import Place, Rank
from collectives.cli.run_store import Store
from collectives.settings import Settings

NPROC_MAX = 1024
CANNOT_START = 126  # the exit code that a shell has for it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, required=True, metavar="N", help="so many ranks")
    parser.add_argument(
        "--restart-dead",
        action="store_true",
        help="start a rank that was killed or failed again, as long as others run",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="with --restart-dead: of each rank (default: %(default)s)",
    )
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        help="one that runs already (default: COLLECTIVES_COORDINATOR, or else its own)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long ranks may take to end after Ctrl-C or SIGTERM (default: %(default)g)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("-m", dest="module", action="store_true", help="the script is a module")
    kind.add_argument("--no-python", action="store_true", help="the script is any program")
    parser.add_argument("script", help="what each rank runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.nproc <= NPROC_MAX:
        raise ValueError(f"--nproc must be 1 to {NPROC_MAX}, not {args.nproc}")
    if args.max_restarts < 0:
        raise ValueError(f"--max-restarts must not be negative, and is {args.max_restarts}")
    if not 0 <= args.grace < float("inf"):
        raise ValueError(f"--grace must be a number of seconds, not {args.grace:g}")
    url = Settings.resolve(coordinator=args.coordinator).coordinator
    name = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="collectives-run-", ignore_cleanup_errors=True)
        )
        guard = stack.enter_context(Guard(f"TORCHELASTIC_RUN_ID={name}", folder))
        own = None
        if url is None:
            own = stack.enter_context(KeptCoordinator(folder, say))
            url = own.url
        store = stack.enter_context(Store(say))
        place = Place(args.nproc, name, url, store.port, store.hosted)
        return Launcher(args, place, guard, own, store).run()


def say(text: str) -> None:
    """One line for who watches; the job does not end because nobody does."""
    with contextlib.suppress(OSError):
        print(f"collectives run: {text}", file=sys.stderr, flush=True)


def _command(args: argparse.Namespace) -> list[str]:
    words = [args.script, *args.arguments]
    if args.no_python:
        return words
    # What a killed rank has printed must not be lost in its buffer. On a terminal that is one line.
    unbuffered = [] if sys.stdout.isatty() else ["-u"]
    return [sys.executable, *unbuffered, *(["-m"] if args.module else []), *words]


class Launcher:
    """One job."""

    def __init__(
        self,
        args: argparse.Namespace,
        place: Place,
        guard: Guard,
        coordinator: KeptCoordinator | None,
        store: Store,
    ) -> None:
        self._command = _command(args)
        self._grace: float = args.grace
        self._place, self._guard = place, guard
        self._coordinator, self._store = coordinator, store
        self._job = Job(place.size, args.max_restarts if args.restart_dead else 0)
        self._ranks: dict[int, Rank] = {}  # those that run
        self._stopping = False
        self._kill_at: float | None = None  # while they are given time to end

    def run(self) -> int:
        with _signals() as signals:
            try:
                for rank in range(self._place.size):
                    self._start(rank, rejoins=False)
                while not self._job.over:
                    self._wait(signals)
                    self._stop(_taken(signals))
                    self._collect()
                    for rank in self._job.take_due(time.monotonic()):
                        self._restart(rank)
                    self._store.look()
                    if self._coordinator is not None:
                        self._coordinator.look()
            finally:
                for rank in list(self._ranks):
                    self._reap(rank)
        return self._job.exit_code

    def _start(self, rank: int, rejoins: bool) -> None:
        process = Rank(self._command, self._place.environment(rank, rejoins))
        self._ranks[rank] = process
        self._guard.add(process.pid)

    def _restart(self, rank: int) -> None:
        try:
            self._start(rank, rejoins=True)
        except OSError as error:  # as good as dead at once
            follows = self._job.end(rank, CANNOT_START, time.monotonic())
            say(f"rank {rank} cannot be started: {error}; {follows}")

    def _reap(self, rank: int) -> int:
        """Ends it with all that it has started. Returns its exit code, or minus the signal."""
        process = self._ranks.pop(rank)
        process.signal(signal.SIGKILL)
        self._guard.remove(process.pid)
        return process.wait()

    def _wait(self, signals: int) -> None:
        """Until a child ends, a signal or the store's first connection comes, or it is time."""
        times = [self._job.next_due, self._kill_at]
        if self._coordinator is not None:
            times.append(self._coordinator.due)
        due = min((t for t in times if t is not None), default=None)
        seconds = None if due is None else max(0.0, due - time.monotonic())
        first = self._store.listener if self._store.hosted else None
        watched = [signals] if first is None else [signals, first.fileno()]
        ready, _, _ = select.select(watched, [], [], seconds)
        if first is not None and first.fileno() in ready:
            self._store.start()

    def _collect(self) -> None:
        for rank, process in list(self._ranks.items()):
            if process.has_ended:
                code = self._reap(rank)
                follows = self._job.end(rank, code, time.monotonic())
                if follows:
                    say(f"rank {rank} (process {process.pid}) {how(code)}; {follows}")

    def _stop(self, numbers: list[int]) -> None:
        """Passes the first signal on, and kills at the second, or when it takes too long."""
        now = time.monotonic()
        for number in numbers:
            if self._stopping:
                self._kill_at = now
            else:
                self._stopping, self._kill_at = True, now + self._grace
                self._job.stop(number)
                self._signal(number)
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_at = None
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._ranks.values():
            process.signal(number)


# ---- signals -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that tells of signals, a byte each: those that end us, and that a child has
    ended. What is ignored, as under nohup, stays so."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {}
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGCHLD:
            before[number] = signal.signal(number, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _taken(signals: int) -> list[int]:
    """Those that end us, so far."""
    with contextlib.suppress(BlockingIOError):
        return [number for number in os.read(signals, 4096) if number != signal.SIGCHLD]
    return []
