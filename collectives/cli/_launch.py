"""Local ranks: worker processes that a command starts, listens to, and always ends.

Parent and worker speak JSON, one object a line: the worker's standard output carries its messages,
its standard input ours. Standard input is a lifeline as well: when it ends, because the parent was
killed, the worker ends itself. Each worker has a session of its own, so that Ctrl-C reaches the
parent alone, which then ends all of them. Standard error goes to a file and is shown if the worker
fails; whatever a library prints in the worker goes there too and cannot spoil a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NoReturn

import collectives
from collectives.errors import CollectivesError, TimedOut

Message = dict[str, Any]

ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""For the environment of ranks that share a machine. It must be set before numpy is imported."""

_SHOWN_LINES = 60
_ORPHANED = 3  # exit code of a worker whose parent is gone


class WorkerFailed(CollectivesError):
    """A worker ended badly; the message holds what it printed."""


# ---- the parent's side ------------------------------------------------------------------------


class Worker:
    """One worker process. `exit_code` is None while it runs; any other than `expected_exit` is a
    failure."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], inbox: _Inbox) -> None:
        self.name = name
        self.exit_code: int | None = None
        self.expected_exit = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._inbox = inbox
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self._inbox.put((self, json.loads(line)))
            except ValueError:
                self._inbox.put((self, {"error": f"not a message: {line!r}"}))
        self._inbox.put((self, None))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def send(self, message: Message) -> None:
        """One that has ended is left in peace: its exit is in the inbox already."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def failure(self) -> WorkerFailed:
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]
        shown = "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"
        return WorkerFailed(f"{self.name} (process {self.process.pid}) {how}; it printed:\n{shown}")

    def end(self) -> None:
        """Kills it if it still runs, and collects it."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.exit_code = self.process.wait()
        self._reader.join()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()


_Inbox = queue.SimpleQueue[tuple[Worker, "Message | None"]]


class Workers:
    """The workers of one command. Use it in a `with` statement: at its end none is left, however
    it ends, SIGTERM and SIGHUP included. Only one thread may use it."""

    def __init__(self) -> None:
        self._inbox: _Inbox = queue.SimpleQueue()
        self._all: list[Worker] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        self._stack.enter_context(_signals({signal.SIGTERM: _exit, signal.SIGHUP: _exit}))
        return self

    def __exit__(self, *exc_info: object) -> None:
        ignored = dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)
        with self._stack, _signals(ignored):
            for worker in self._all:
                worker.end()

    def start(self, name: str, module: str, spec: Message, env: Mapping[str, str]) -> Worker:
        """Runs `python -m module`, or a file if `module` ends in .py; `spec` is its first
        message."""
        root = str(pathlib.Path(collectives.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        program = [module] if module.endswith(".py") else ["-m", module]
        command = [sys.executable, *program, "--worker"]
        worker = Worker(name, command, {**os.environ, **env, "PYTHONPATH": path}, self._inbox)
        self._all.append(worker)
        worker.send(spec)
        return worker

    def receive(
        self, timeout: float, alive: Callable[[], bool] = lambda: True
    ) -> tuple[Worker, Message | None]:
        """The next (worker, message), from whichever worker; the message is None if it has ended
        as expected.

        Raises: WorkerFailed for a worker that ended otherwise. TimedOut if nothing came within
            `timeout` seconds. CollectivesError if `alive`, asked now and then, says no.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                worker, message = self._inbox.get(timeout=0.5)
            except queue.Empty:
                if not alive():
                    raise CollectivesError("the coordinator ended unexpectedly") from None
                if time.monotonic() >= end:
                    states = (f"{w.name} {'runs' if w.running else 'ended'}" for w in self._all)
                    raise TimedOut(
                        f"nothing came from the workers for {timeout:g} s: {', '.join(states)}"
                    ) from None
                continue
            if message is None:
                worker.exit_code = worker.process.wait()
                if worker.exit_code != worker.expected_exit:
                    raise worker.failure()
            elif "error" in message:
                raise WorkerFailed(f"{worker.name}: {message['error']}")
            return worker, message


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def _signals(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Other signal handlers for a while; nothing outside the main thread, which alone has them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the worker's side ------------------------------------------------------------------------


class Parent:
    """The parent, as its worker sees it. Made once, at the start of the process."""

    def __init__(self) -> None:
        self._channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="reads parent", daemon=True).start()

    def _read(self) -> None:
        # The descriptor itself: a daemon thread in sys.stdin's lock disturbs the interpreter's end.
        rest = b""
        while chunk := os.read(0, 1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._inbox.put(json.loads(line))
        os._exit(_ORPHANED)

    def receive(self) -> Message:
        """The next message; waits for it."""
        return self._inbox.get()

    def send(self, **message: Any) -> None:
        print(json.dumps(message), file=self._channel, flush=True)


def work(main: Callable[[Parent, Message], None]) -> None:
    """Runs a worker. It gets the parent and the first message.

    After an error the process ends on the spot, without saying goodbye to its peers: who fails
    first then also ends first, and that is whose output people want to see."""
    try:
        parent = Parent()
        main(parent, parent.receive())
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
