"""Processes as a driver sees them, in an arena, with a log; and the coordinator."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from arena import COORDINATOR, Loopback


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


JOURNAL = "journal"
"""The name of the coordinator's journal in a run's folder."""


class Coordinator(Process):
    """The coordinator. It may be killed and started again on the same port: it has a journal."""

    def __init__(self, arena: Loopback, folder: Path, port: int = 0) -> None:
        host = arena.address(COORDINATOR) or "127.0.0.1"
        words = ["-m", "collectives.cli.main", "coordinator", "--until-input-ends"]
        words += ["--listen", f"{host}:{port}", "--log", "info"]
        if arena.address(COORDINATOR):
            words.append("--insecure")
        words += ["--journal", str(folder / JOURNAL)]
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
