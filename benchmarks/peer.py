"""A rank of a library that is measured from Python: what it is told, and what its library must do.

The driver (compare.py) speaks lines to every rank through a Unix socket, the same to those in
Python as to those in C (peer.c lists them). Buffers, checks and times are those of
`collectives bench`, from collectives/cli/bench_trial.py, which is loaded by its path: a peer's
environment has its own library and numpy, not ours. Between two commands a rank sleeps in `recv`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol

import numpy as np

COMMAND_S = 300  # no command takes longer, also if the driver is gone
ROOT_FOLDER = pathlib.Path(__file__).resolve().parents[1]


def _load_trial() -> ModuleType:
    path = ROOT_FOLDER / "collectives" / "cli" / "bench_trial.py"
    spec = importlib.util.spec_from_file_location("bench_trial", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


trial = _load_trial()


class Absent(Exception):
    """The library has no such operation; the text is its own."""


class Library(Protocol):
    rank: int
    ranks: int

    def start(self) -> None:
        """Connects to the other ranks."""

    def operation(self, op: str, given: Any, out: Any) -> Callable[[], Any]:
        """A function that runs it once, on flat float32 arrays. Raises Absent."""

    def barrier(self) -> None: ...

    def notes(self, op: str, given: Any, out: Any) -> str:
        """A word about how it is done, for the results, or ""."""

    def close(self) -> None: ...


class Channel:
    """The driver, as a rank sees it."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r", encoding="utf-8")

    def send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def commands(self) -> Iterator[list[str]]:
        """The words of each. A command that hangs, in C too, ends the process after a time."""
        while line := self._lines.readline():
            signal.alarm(COMMAND_S)
            yield line.split()
            signal.alarm(0)
        raise EOFError("the driver is gone")


def _case(library: Library, op: str, place: str, size_bytes: int) -> tuple[Callable[[], Any], Any]:
    """Runs it once on known values. Returns the operation, and what to answer."""
    rank, ranks = library.rank, library.ranks
    shape = trial.shape(op, size_bytes // 4, rank, ranks)
    given = np.zeros(shape.given, np.float32)
    out = given if place == "in" else np.zeros(shape.out, np.float32)
    run = library.operation(op, given, out)
    trial.fill(given, rank, ranks, "float32")
    times = trial.repeat(run, library.barrier, 1, 1)
    trial.check_output(out, op, rank, ranks, "float32")
    notes = library.notes(op, given, out)
    if place == "in":
        given.fill(0)  # else the sums would grow without bound
    return run, {"us": times.tolist(), "bytes": shape.largest * 4, "notes": notes}


def _serve(channel: Channel, library: Library) -> None:
    run: Callable[[], Any] | None = None
    for command, *words in channel.commands():
        if command == "end":
            return
        answer: dict[str, Any] = {}
        if command == "start":
            library.start()
        elif command == "case":
            run = None  # gives its buffers back first
            try:
                run, answer = _case(library, words[0], words[1], int(words[2]))
            except Absent as why:
                answer = {"absent": str(why)}
        elif command == "run" and run is not None:
            times = trial.repeat(run, library.barrier, int(words[0]), int(words[1]))
            answer = {"us": times.round(3).tolist()}
        elif command == "rest":
            run = None
        else:
            raise ValueError(f"not a command here: {command} {words}")
        channel.send(**answer)


def serve(make: Callable[[int, int, list[str]], Library]) -> None:
    """Runs a rank: `python peer_NAME.py SOCKET RANK RANKS WORD...`. After an error the process ends
    on the spot, without saying goodbye to its peers: who fails first then also ends first."""
    path, rank, ranks, *words = sys.argv[1:]
    try:
        library = make(int(rank), int(ranks), words)
        channel = Channel(path)
        channel.send(rank=int(rank), address="-")
        _serve(channel, library)
        library.close()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
