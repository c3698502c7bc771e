"""A coordinator in a process of its own.

`CoordinatorProcess` is started and ended by a test, a demo or a benchmark. Unlike
`CoordinatorServer` it does not share the interpreter with what is measured. Its standard input is a
pipe from this process: when that closes, because we stopped it or died, it ends.

`start_detached` is for a job that brings its coordinator along: that one belongs to no process of
the job, outlives any of them, and ends with the last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

from collectives import config
from collectives.errors import CollectivesError

_COMMAND = (sys.executable, "-m", "collectives.cli.main", "coordinator")
_START_S = 60.0


def environment() -> dict[str, str]:
    """Of a child in Python, which then imports what we import, and nothing from the folder that it
    happens to be in."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def start_detached(listen: str = "127.0.0.1:0", *arguments: str) -> str:
    """Starts a coordinator that ends by itself once its members are gone (`--until-empty`), and
    returns its URL. `arguments` are more ones of the command.

    It is no child of this process and has none of its descriptors, terminal or process group: it
    keeps nobody waiting, and no signal to the job reaches it. What it logs after the start goes
    nowhere.

    Raises CollectivesError with what it printed, if it does not start.
    """
    command = [*_COMMAND, "--detach", "--until-empty", "--listen", listen, "--log", "error"]
    # A file, for it goes on with that, and of a pipe we would wait for the end.
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        try:
            done = subprocess.run(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=printed,
                env={**environment(), "OPENBLAS_NUM_THREADS": "1"},
                text=True,
                timeout=_START_S,
            )
            line, how = done.stdout.split(), f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            line, how = [], f"no answer in {_START_S:g} s"
        if len(line) == 2 and line[0] == "ready":
            return line[1]
        printed.seek(0)
        said = printed.read().strip() or "it printed nothing"
    raise CollectivesError(f"the coordinator did not start ({how}): {said}")


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
        command = [*_COMMAND, "--until-input-ends", "--listen", self._listen, *self._arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who end it when its members are gone
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
