"""The processes of a run as the driver sees them: peers, each with its ledger and log, and the
coordinator.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from arena import COORDINATOR, Loopback
from faults import Fault
from ledger import HOLE, Ledger, State

HERE = Path(__file__).resolve().parent
PLANT = "COLLECTIVES_CHAOS_PLANT"
PLANTED = 3  # the number of the peer that obeys it


class Failed(Exception):
    """A promise was broken; the text says which and by whom."""


class Process:
    """A process with a log: what it writes to standard error, and to standard output if that is
    not asked for."""

    def __init__(
        self, arena: Loopback, slot: int, words: list[str], log: Path, env: dict[str, str]
    ):
        self.slot = slot
        with log.open("ab") as file:
            self.popen = arena.popen(
                slot,
                [sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **env},
            )
        self.log = log
        self.pid = self.popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or is stopped."""
        return self.popen.poll()

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self) -> int:
        """Kills it if it still runs; returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            if self.popen.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
        code = self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def held(self, what: str) -> int:
        """How many "descriptors" or "threads" it holds."""
        folder = {"descriptors": "fd", "threads": "task"}[what]
        return len(os.listdir(f"/proc/{self.pid}/{folder}"))


class Peer(Process):
    """A peer. Its number is its own for ever: no later process has it.

    Attributes:
        fault: what the driver did to it, or None; `hit_at` when.
        struck: whether it was in an operation when it was killed.
        released_at: when it was let go on again, after a stop or a cut; 0 before.
    """

    def __init__(
        self,
        arena: Loopback,
        slot: int,
        number: int,
        folder: Path,
        words: list[str],
        plant: str = "",
    ) -> None:
        self.number = number
        self.fault: Fault | None = None
        self.hit_at = self.released_at = 0.0
        self.struck = False
        self.started_at = self.moved_at = time.monotonic()
        self.exit: int | None = None
        self._path = folder / f"p{number}.ledger"
        self._ledger: Ledger | None = None
        self._progress: tuple[int, int] = (0, 0)
        address = arena.address(slot)
        command = [str(HERE / "member.py"), str(self._path), str(number), *words]
        env = {"COLLECTIVES_LOG": "info", "OPENBLAS_NUM_THREADS": "1", PLANT: plant}
        super().__init__(
            arena, slot, [*command, *([address] if address else [])], folder / f"p{number}.log", env
        )

    def __str__(self) -> str:
        return f"p{self.number} (slot {self.slot}, process {self.pid})"

    @property
    def ledger(self) -> Ledger | None:
        """None until it has made one."""
        if self._ledger is None:
            with contextlib.suppress(FileNotFoundError, ValueError):  # not there, or not whole
                self._ledger = Ledger(self._path)
        return self._ledger

    @property
    def state(self) -> State:
        return self.ledger.state if self.ledger else State.STARTING

    @property
    def is_member(self) -> bool:
        """It has done its first operation, nothing was done to it, and it runs."""
        ledger = self.ledger
        return (
            self.fault is None
            and self.exit is None
            and ledger is not None
            and ledger.state is State.MEMBER
            and ledger.word("lines") > 0
        )

    def idle_s(self, now: float) -> float:
        """For how long it has made no progress."""
        progress = (self.state, self.ledger.word("ended") if self.ledger else 0)
        if progress != self._progress:
            self._progress, self.moved_at = progress, now
        return now - self.moved_at

    @property
    def sees(self) -> tuple[float, frozenset[int]]:
        """Who contributed to the last operation of which it knows that, and when that was."""
        if self.ledger is not None:
            for line in self.ledger.lines[-8:][::-1]:
                if line["world"]:
                    roster = {int(n) for n in line["roster"][: line["world"]]} - {HOLE}
                    return float(line["at"]), frozenset(roster)
        return 0.0, frozenset()


class Coordinator(Process):
    """The coordinator. `journal`: it may be killed and started again on the same port."""

    def __init__(self, arena: Loopback, folder: Path, journal: bool, port: int = 0) -> None:
        host = arena.address(COORDINATOR) or "127.0.0.1"
        words = ["-m", "collectives.cli.main", "coordinator", "--until-input-ends"]
        words += ["--listen", f"{host}:{port}", "--log", "info"]
        if arena.address(COORDINATOR):
            words.append("--insecure")
        if journal:
            words += ["--journal", str(folder / "journal")]
        super().__init__(arena, COORDINATOR, words, folder / "coordinator.log", {})
        self.url = self._ready()
        self.port = int(self.url.rpartition(":")[2])

    def __str__(self) -> str:
        return f"the coordinator (process {self.pid})"

    def _ready(self) -> str:
        output: IO[bytes] | None = self.popen.stdout
        assert output is not None
        words = output.readline().split()
        if len(words) != 2 or words[0] != b"ready":
            raise Failed(f"the coordinator did not start (exit code {self.end()}): see {self.log}")
        return words[1].decode()

    def stop(self) -> int:
        """In order."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        return self.end()


def has_journal() -> bool:
    """Whether this version's coordinator keeps one."""
    words = [sys.executable, "-m", "collectives.cli.main", "coordinator", "--help"]
    return "--journal" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
