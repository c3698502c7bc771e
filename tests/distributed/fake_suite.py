"""The runner of torch's suite with another suite in it: one that passes, fails, hangs, and more.

It writes the pids of its processes to the folder in FAKE_SUITE_FOLDER."""

from __future__ import annotations

import os
import signal
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "suite"))

import run
import tree


def note(name: str) -> None:
    """A file with this process's pid, whole or not there."""
    path = Path(os.environ["FAKE_SUITE_FOLDER"], name)
    path.with_suffix(".half").write_text(str(os.getpid()))
    path.with_suffix(".half").rename(path)


def stubborn(name: str) -> None:
    """Starts a process in a session of its own that only SIGKILL ends, and waits for its note."""
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(name)
        while True:
            signal.pause()
    while not Path(os.environ["FAKE_SUITE_FOLDER"], name).exists():
        os.sched_yield()


class First(unittest.TestCase):
    def test_passes(self) -> None:
        pass

    def test_fails(self) -> None:
        print("what it printed")
        self.fail("one is not two")

    def test_skips(self) -> None:
        self.skipTest("not today")

    @unittest.skip("the gate is shut")
    def test_of_the_second_gate(self) -> None:
        pass

    @unittest.skip("both gates are shut")
    def test_of_no_gate(self) -> None:
        pass

    def test_crashes(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def test_hangs(self) -> None:
        if not os.environ.get("FAKE_SUITE_HANGS"):
            self.fail("it would take the time limit")
        note("hanging")
        stubborn("hanging-child")
        print("hanging now", flush=True)
        signal.pause()

    def test_leaves_a_daemon(self) -> None:
        stubborn("daemon")


class Second(First):
    def test_of_the_second_gate(self) -> None:
        pass


def suites(backend: str, ranks: int, limit_s: float) -> Iterator[type[unittest.TestCase]]:
    yield First
    yield Second


if __name__ == "__main__":
    tree.LEAVE_S = 0.2
    sys.exit(run.main(sys.argv[1:], suites, "no torch"))
