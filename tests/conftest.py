"""What all tests share: one seed per run, children that never outlive their test, and output shown.

Random choices in a test start from the fixture `seed`, which is printed in the header; set
COLLECTIVES_TEST_SEED to run with the same one again. Processes are started with the fixture
`spawn`: each in a process group of its own, killed and reaped when the test ends, its output
part of the report if the test failed. A child that a test starts by other means and leaves behind
is killed too, and the test fails for it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

SEED = int(os.environ.get("COLLECTIVES_TEST_SEED") or random.SystemRandom().randrange(2**32))
# Of multiprocessing: they live as long as this process.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
CHILDREN = pytest.StashKey[list["Child"]]()


def pytest_report_header() -> str:
    return f"seed: COLLECTIVES_TEST_SEED={SEED}"


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run."""
    return SEED


class Child:
    """A running program: its output is collected line by line as it comes."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str] | None) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it printed so far, standard error included."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Waits for a line of output that `pattern` is found in; AssertionError without one."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                while seen < len(self._lines):
                    seen += 1
                    if match := re.search(pattern, self._lines[seen - 1]):
                        return match
                left = deadline - time.monotonic()
                assert not self._ended, f"{self} ended without printing {pattern!r}"
                assert left > 0, f"{self} did not print {pattern!r} within {timeout} s"
                self._changed.wait(left)

    def wait(self, timeout: float = 20) -> int:
        """Waits until it ends and all its output is in; returns its exit status."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} was still running after {timeout} s") from None
        self._reader.join(timeout)
        return status

    def signal(self, number: int) -> None:
        """Sends a signal to it alone; one that has ended is left in peace."""
        self.process.send_signal(number)

    def reap(self) -> None:
        """Kills it and what it started in its process group, and collects the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.arguments)})"


Spawn = Callable[..., Child]


@pytest.fixture
def spawn(request: pytest.FixtureRequest) -> Iterator[Spawn]:
    """spawn("program", "argument", ..., env={...}) -> Child. "python" is this interpreter."""
    children = request.node.stash.setdefault(CHILDREN, [])

    def start(program: str, *arguments: object, env: Mapping[str, str] | None = None) -> Child:
        first = sys.executable if program == "python" else program
        child = Child([first, *map(str, arguments)], env)
        children.append(child)
        return child

    yield start
    for child in children:
        child.reap()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        for child in item.stash.get(CHILDREN, []):
            status = child.process.poll()
            state = "running" if status is None else f"exit status {status}"
            report.sections.append((f"{child}: {state}", child.output))
    return report


def children_of(parent: int) -> dict[int, str]:
    """The living children of a process: pid -> command line. Empty where there is no /proc."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold anything; behind it stand state and parent.
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace").strip()
        except OSError:
            continue  # It ended while we looked.
    return found


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    """Kills what a test leaves behind, and fails the test for it."""
    before = children_of(os.getpid())
    yield
    left = {
        pid: command
        for pid, command in children_of(os.getpid()).items()
        if pid not in before and not any(helper in command for helper in HELPERS)
    }
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the test left processes behind (killed now): {left}"
