"""The ranks of one library, as the driver sees them: processes that it starts, asks and ends.

Every rank, whoever started it (this process or an mpirun), connects to a Unix socket of its library
and obeys the lines that come through it (peer.c lists them). It is a lifeline too: when it closes,
they end. Every question has a deadline. At the end no process is left: each is known by a
descriptor that cannot come to mean another one, and who does not go by itself is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_S = 120.0  # importing torch takes its time on a busy machine
GOODBYE_S = 10.0
SHOWN_LINES = 12

Message = dict[str, Any]


class Failed(Exception):
    """The library's ranks cannot go on: a line that says why, then what they printed."""


class _Rank:
    """The connection to one rank."""

    def __init__(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = int.from_bytes(credentials[:4], "little")
        self.process = os.pidfd_open(self.pid)
        self.connection = connection
        self._received = b""

    def send(self, line: str) -> None:
        self.connection.sendall(line.encode() + b"\n")

    def receive(self, end: float) -> Message:
        """The next message. Raises Failed if it does not come in time."""
        while b"\n" not in self._received:
            self.connection.settimeout(max(0.001, end - time.monotonic()))
            try:
                chunk = self.connection.recv(1 << 20)
            except TimeoutError:
                raise Failed("gave no answer in time") from None
            except OSError as error:
                raise Failed(f"left: {error.strerror}") from None
            if not chunk:
                raise Failed("ended")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        found: Message = json.loads(line)
        return found

    def end(self, seconds: float) -> None:
        """Waits for its end, and then sees to it. Without the connection it ends by itself."""
        self.connection.close()
        if not select.select([self.process], [], [], seconds)[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process, signal.SIGKILL)
        os.close(self.process)


class Ranks:
    """Use it in a `with` statement: at its end none of the processes is left."""

    def __init__(
        self, name: str, count: int, commands: Sequence[Sequence[str]], env: Mapping[str, str]
    ) -> None:
        """`commands`: of processes that make up the ranks together, one each or an mpirun; each
        gets the path of the socket in place of the word "SOCKET"."""
        self.name = name
        self.count = count
        self._commands = commands
        self._env = {**os.environ, **env}
        self._ranks: list[_Rank] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def start(self) -> list[str]:
        """Starts the processes and waits for all ranks. Returns their addresses."""
        path = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(self.count)
            for command in self._commands:
                words = [path if word == "SOCKET" else word for word in command]
                self._processes.append(self._popen(words))
            found = self._accept(listener, time.monotonic() + START_S)
        order = sorted(found)
        if order != list(range(self.count)):
            raise self._failure(f"the ranks call themselves {order}")
        self._ranks = [found[i][0] for i in order]
        return [found[i][1] for i in order]

    def _popen(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                env=self._env,
                start_new_session=True,  # Ctrl-C reaches the driver alone
            )
        except OSError as error:
            raise self._failure(f"cannot be started: {error}") from None

    def _accept(self, listener: socket.socket, end: float) -> dict[int, tuple[_Rank, str]]:
        found: dict[int, tuple[_Rank, str]] = {}
        listener.settimeout(0.2)
        while len(found) < self.count:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                ended = [p for p in self._processes if p.poll() is not None]
                if ended or time.monotonic() > end:
                    what = f"exited with {ended[0].returncode}" if ended else "did not start"
                    raise self._failure(what) from None
                continue
            rank = _Rank(connection)
            self._ranks.append(rank)  # so that it is ended, whatever comes now
            try:
                hello = rank.receive(end)
            except Failed as why:
                raise self._failure(f"a starting rank {why}") from None
            found[int(hello["rank"])] = rank, str(hello["address"])
        return found

    def ask(self, line: str, seconds: float) -> list[Message]:
        """What each rank answers, in rank order. Raises Failed."""
        end = time.monotonic() + seconds
        answers = []
        for i, rank in enumerate(self._ranks):
            try:
                rank.send(line)
            except OSError:
                raise self._failure(f"rank {i} ended before {line!r}") from None
        for i, rank in enumerate(self._ranks):
            try:
                answers.append(rank.receive(end))
            except Failed as why:
                raise self._failure(f"rank {i} {why} after {line!r}") from None
        return answers

    def _failure(self, what: str) -> Failed:
        """Ends all of them, so that what they print is complete, or almost."""
        self._end_all(0.5)
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        shown = "\n".join(f"  | {line}" for line in lines[-SHOWN_LINES:] if line.strip())
        return Failed(f"{self.name}: {what}" + (f"\n{shown}" if shown else ""))

    def end(self) -> None:
        """Lets them take leave of each other, and sees to it that they end."""
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.send("end")
        self._end_all(GOODBYE_S)
        self._printed.close()
        self._folder.cleanup()

    def _end_all(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._ranks:
            self._ranks.pop().end(max(0.0, end - time.monotonic()))
        for number, patience in ((0, seconds), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            end = time.monotonic() + patience
            for process in self._processes:
                if number and process.poll() is None:
                    os.killpg(process.pid, number)  # not collected yet, so still its own
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        self._processes.clear()
