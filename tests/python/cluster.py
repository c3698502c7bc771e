"""Groups of real processes over real TCP, for tests: each peer is a process that does what it is
told over a pipe, so a test can let it call something, stop it, kill it, and look at what came back.

A call is a function of a test module, `fn(peer, *args)`, where `peer` is the `Worker` in the
process; its result or its exception comes back. Peers are forked from a server that has imported
everything and has done nothing else, so that a test may use dozens of them. Every wait has a limit
and everything is reaped when the `Cluster` ends, whatever happened.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import collectives as cc
from collectives.coordinator.server import CoordinatorServer

LIMIT_S = 30.0
SMALL = {"segment_bytes": 4096, "streams": 3}
"""Options that make many segments of little data."""
NARROW = {"send_buffer_bytes": 4096, "receive_buffer_bytes": 4096, "io_max_bytes": 1000}
"""Options that make every read and write a short one."""
QUICK = cc.Timeouts(beat=0.05, dead=0.6, connect=3.0, linger=0.5, settle=0.6, joiner_lost=3.0)
"""Times for tests that have to wait for one of them."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "numpy",
        "zmq",
        "msgpack",
        "pytest",
        "asyncio",
        "collectives",
        "collectives.coordinator.server",
    ]
)


class NoAnswer(AssertionError):
    """A peer did not answer within the limit: something hangs."""


# ---- in the peer's process -----------------------------------------------------------------------


class Worker:
    """What calls get as their first argument. `comm` is the communicator, once it has joined; calls
    may keep other things here as well."""

    comm: cc.Communicator

    def __init__(self, pipe: multiprocessing.connection.Connection) -> None:
        self._pipe = pipe
        self.kept: dict[str, Any] = {}

    def note(self, value: Any) -> None:
        """Tells the test something while the call goes on."""
        self._pipe.send(("note", value, time.monotonic()))


def _portable(error: BaseException) -> BaseException:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        pickle.loads(pickle.dumps(error))
        portable = isinstance(error, Exception)  # a KeyboardInterrupt would end the test run
    except Exception:
        portable = False
    if not portable:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__dict__["remote_traceback"] = trace
    return error


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    os.setsid()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker(pipe)
    while True:
        try:
            function, arguments, options = pipe.recv()
        except EOFError:
            return
        except BaseException as error:  # it could not be unpickled
            pipe.send(("error", _portable(error), time.monotonic()))
            continue
        try:
            reply = ("ok", function(worker, *arguments, **options), time.monotonic())
        except BaseException as error:
            reply = ("error", _portable(error), time.monotonic())
        try:
            pipe.send(reply)
        except Exception as error:
            pipe.send(("error", _portable(error), time.monotonic()))


def join(worker: Worker, url: str, **options: Any) -> int:
    """A call: connects, and returns the rank."""
    worker.comm = cc.connect(url, **options)
    return worker.comm.rank


def close(worker: Worker) -> None:
    """A call: closes the communicator."""
    worker.comm.close()


# ---- in the test ---------------------------------------------------------------------------------


class Call:
    """A call under way in a peer.

    Attributes:
        peer: where it runs.
        ended_at: when it was over there, by the clock of this machine; set once the answer is in.
    """

    def __init__(self, peer: Peer, what: str) -> None:
        self.ended_at = 0.0
        self.peer = peer
        self._what = what
        self._answer: tuple[str, Any] | None = None

    def take(self, kind: str, value: Any, at: float) -> None:
        self._answer = kind, value
        self.ended_at = at

    @property
    def over(self) -> bool:
        """Whether the answer is in; does not wait."""
        with contextlib.suppress(EOFError, OSError):
            self.peer.pump(0)
        return self._answer is not None

    def outcome(self, limit: float = LIMIT_S) -> Any:
        """The result, or the exception as a value. Raises NoAnswer; EOFError if the peer died."""
        deadline = time.monotonic() + limit
        while self._answer is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self.peer.show_where_it_hangs()
                raise NoAnswer(f"{self.peer} did not return from {self._what} in {limit:g} s")
            self.peer.pump(left)
        return self._answer[1]

    def result(self, limit: float = LIMIT_S) -> Any:
        """The result; raises what the call raised."""
        value = self.outcome(limit)
        if self._answer is not None and self._answer[0] == "error":
            trace = value.__dict__.get("remote_traceback", "")
            value.__cause__ = RuntimeError(f"in {self.peer}:\n{trace}")
            raise value
        return value


class Peer:
    """One process. Calls to it run one after the other.

    Attributes:
        noted_at: when it told what `wait_note` returned last, by the clock of this machine.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.noted_at = 0.0
        self.notes: list[tuple[Any, float]] = []
        self._calls: list[Call] = []
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def __str__(self) -> str:
        return f"peer {self.index} (process {self.pid})"

    def start(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
        """Lets it call `function(worker, *arguments, **options)`."""
        call = Call(self, getattr(function, "__name__", str(function)))
        self._calls.append(call)
        self._pipe.send((function, arguments, options))
        return call

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        limit: float = LIMIT_S,
        **options: Any,
    ) -> Any:
        return self.start(function, *arguments, **options).result(limit)

    def pump(self, seconds: float) -> None:
        """Takes what it sent. Raises EOFError if it died."""
        if not self._pipe.poll(max(0.0, min(seconds, 1.0))):
            return
        kind, value, at = self._pipe.recv()
        if kind == "note":
            self.notes.append((value, at))
        else:
            self._calls.pop(0).take(kind, value, at)

    def wait_note(self, limit: float = LIMIT_S) -> Any:
        """The next note of the running call."""
        deadline = time.monotonic() + limit
        while not self.notes:
            left = deadline - time.monotonic()
            if left <= 0:
                self.show_where_it_hangs()
                raise NoAnswer(f"{self} told nothing in {limit:g} s")
            self.pump(left)
        note, self.noted_at = self.notes.pop(0)
        return note

    def signal(self, number: int) -> float:
        """Sends a signal to it alone; returns when."""
        at = time.monotonic()
        os.kill(self.pid, number)
        return at

    def kill(self) -> float:
        """SIGKILL; returns when it was sent."""
        return self.signal(signal.SIGKILL)

    def show_where_it_hangs(self) -> None:
        """Its stacks, on standard error."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.2)  # for it to print them; the test has failed already

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def reap(self, gently: bool = False) -> None:
        """Ends it and whatever it has started."""
        if gently and self.alive:
            self._pipe.close()
            self._process.join(5)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.alive:
            self._process.kill()
        self._process.join(10)
        self._pipe.close()


class Cluster:
    """A coordinator and peers. Use it in a `with` statement.

    Args:
        size: so many peers are started and form a group at once; 0: none.
        timeouts: of the coordinator and of all peers.
        url: of a coordinator that runs already; None: one in a thread of this process.
        listen: where the coordinator listens.
        options: of `connect`, for all peers.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        timeouts: cc.Timeouts = cc.LAN,
        url: str | None = None,
        listen: str = "127.0.0.1:0",
        **options: Any,
    ) -> None:
        self.timeouts = timeouts
        self.options = options
        self.peers: list[Peer] = []
        self._all: list[Peer] = []
        self._size = size
        self._server = None if url else CoordinatorServer(listen, timeouts=timeouts)
        self.url = url or ""

    def __enter__(self) -> Cluster:
        if self._server is not None:
            self.url = self._server.start().url
        try:
            if self._size:
                self.add(self._size)
                self.form(self.peers)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kills all peers and stops the coordinator."""
        for peer in self._all:
            peer.reap()
        if self._server is not None:
            self._server.stop()

    def add(self, count: int = 1) -> list[Peer]:
        """Starts more processes; they do not join yet."""
        new = []
        for _ in range(count):
            peer = Peer(len(self._all))
            self._all.append(peer)
            new.append(peer)
        self.peers += new
        return new

    def start_join(self, peer: Peer, **options: Any) -> Call:
        """Lets a peer begin to join, and does not wait for it."""
        return peer.start(join, self.url, **{"timeouts": self.timeouts, **self.options, **options})

    def form(self, peers: Sequence[Peer], **options: Any) -> None:
        """Lets peers form a group: the position in `peers` is the rank."""
        options = {"size": len(peers), **options}
        calls = [self.start_join(peer, rank=i, **options) for i, peer in enumerate(peers)]
        assert [call.result() for call in calls] == list(range(len(peers)))

    def start(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        peers: Iterable[Peer] | None = None,
        **options: Any,
    ) -> list[Call]:
        """Starts the same call in all peers, or in these."""
        chosen = self.peers if peers is None else list(peers)
        return [peer.start(function, *arguments, **options) for peer in chosen]

    def each(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        peers: Iterable[Peer] | None = None,
        limit: float = LIMIT_S,
        **options: Any,
    ) -> list[Any]:
        """The results of the same call in all peers; raises what the first one raised."""
        return results(self.start(function, *arguments, peers=peers, **options), limit)


def results(calls: Iterable[Call], limit: float = LIMIT_S) -> list[Any]:
    """The results of several calls, in one time limit."""
    deadline = time.monotonic() + limit
    return [call.result(max(0.0, deadline - time.monotonic())) for call in calls]


def outcomes(calls: Iterable[Call], limit: float = LIMIT_S) -> list[Any]:
    """As `results`, with exceptions as values."""
    deadline = time.monotonic() + limit
    return [call.outcome(max(0.0, deadline - time.monotonic())) for call in calls]


def scaled(timeouts: cc.Timeouts = QUICK, **changes: Any) -> cc.Timeouts:
    """These times, some of them changed."""
    return replace(timeouts, **changes)
