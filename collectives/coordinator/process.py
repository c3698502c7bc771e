"""A coordinator in a process of its own, started and ended by a test, a demo or a benchmark.

Unlike `CoordinatorServer` it does not share the interpreter with what is measured. Its standard
input is a pipe from this process: when that closes, because we stopped it or died, it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from collectives import config
from collectives.errors import CollectivesError


class CoordinatorProcess:
    """Use it in a `with` statement, or call `start` and `stop`. `url` is what peers connect to; it
    stays the same when it is started again. `journal` and `recover` are those of `serve`,
    `arguments` are more ones of the command."""

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        *arguments: str,
        journal: str | os.PathLike[str] | None = None,
        recover: bool = False,
    ) -> None:
        self.url = ""
        self.process: subprocess.Popen[str] | None = None
        self._listen = listen
        self._arguments = list(arguments)
        if journal is not None:
            self._arguments += ["--journal", os.fspath(journal)]
        if recover:
            self._arguments.append("--recover")

    def start(self) -> CoordinatorProcess:
        """Returns once peers can connect. Raises CollectivesError with what it printed."""
        path = os.pathsep.join(filter(None, sys.path))  # the child imports what we import
        command = [sys.executable, "-m", "collectives.cli.main", "coordinator"]
        command += ["--until-input-ends", "--listen", self._listen]
        self.process = subprocess.Popen(
            [*command, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if len(line) != 2 or line[0] != "ready":
            code = self.process.wait()
            self.stop()
            raise CollectivesError(f"the coordinator did not start (exit code {code})")
        self.url = line[1]
        self._listen = self.url.removeprefix(config.SCHEME)
        return self

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> int:
        """As `stop`, but by SIGKILL, as a crash would. With a journal it may be started again."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
        return self.stop()

    def stop(self) -> int:
        """Ends it, waits for it, and returns its exit code. May be called again."""
        process = self.process
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()

    def __enter__(self) -> CoordinatorProcess:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def start_detached(listen: str = "127.0.0.1:0", *arguments: str) -> str:
    raise NotImplementedError
